"""Ensembles brought out of a zoo and into another: packages that are whole, checked and bounded.

Out: a bioimage.io package, an ONNX graph or a folder of safetensors. In: a package or folder of
ours, and AtomAI's `.tar`. Of what is refused, nothing is registered; of what cannot be written,
nothing is left.
"""

import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from manybeam.errors import (
    Conflict,
    InvalidInput,
    ManybeamError,
    NotFound,
    UnreadableFile,
    WriteFailed,
)
from manybeam.settings import settings
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.checks import check_alias, check_name
from manybeam.zoo.exchange import folder as ours
from manybeam.zoo.exchange.atomai import LEGACY, AtomAIFrames, read_atomai
from manybeam.zoo.exchange.beside import table_of
from manybeam.zoo.exchange.bioimageio import (
    GRAPH_FILE,
    RDF_FILE,
    README_FILE,
    Credit,
    write_package,
)
from manybeam.zoo.exchange.onnx_graph import require, write_graph
from manybeam.zoo.exchange.unpack import Limits, files_of, names_in, sha256_of_file, unpack
from manybeam.zoo.lifecycle.life import settle

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.spec.imaging import Condition
    from manybeam.zoo.matrix import Matrix
    from manybeam.zoo.records import Record
    from manybeam.zoo.registry import Zoo

__all__ = ["AtomAIFrames", "Credit", "Limits", "export", "import_"]

logger = logging.getLogger(__name__)

Form = Literal["bioimageio", "onnx", "safetensors"]
FORMS: dict[str, str] = {"bioimageio": ".bioimageio.zip", "onnx": ".onnx", "safetensors": ""}
PICTURE_FILE = "matrix.png"


def export(
    zoo: "Zoo",
    ref: str,
    path: Path | None = None,
    *,
    form: Form = "bioimageio",
    overwrite: bool = False,
    credit: Credit | None = None,
) -> Path:
    """Write a version to a file or folder and return where; it is there whole or not at all.

    Args:
        zoo: where it is registered.
        ref: the version, or one member of it.
        path: what to write; `name-version` with the ending of the form, here, if left out.
        form: `bioimageio`, a .zip others can run and another zoo can import; `onnx`, the graph
            alone; `safetensors`, a folder of members, scores and card that can be imported.
        overwrite: replace the file, or the folder of an export, that is there.
        credit: authors, licence and citations of a package.

    Raises:
        UnknownRef: nothing is called that.
        Conflict: the path is taken, or is a folder of anything else than one export.
        InvalidInput: members that one graph cannot hold, or a credit the format does not take.
        MissingPackage: `pip install 'manybeam[exchange]'` is needed.
        WorkFailed: what was made does not answer as the members do, or is not valid.
        WriteFailed: the disk refused.
    """
    if form not in FORMS:
        raise InvalidInput(f"no form {form!r}", f"allowed: {', '.join(FORMS)}", "")
    record = zoo.resolve(ref)
    place = path or Path(record.ref.replace("@", "-").replace("/", "-") + FORMS[form])
    with _writing(place):
        _keep_free(place, is_folder=form == "safetensors", overwrite=overwrite)
    if form != "safetensors":
        require("onnx", "onnxscript", "onnxruntime")
    if form == "bioimageio":
        require("bioimageio.spec")
    members, matrix = zoo.members(record.ref), zoo.matrix(record.ref)
    has_more = form != "onnx"  # a graph is all that an .onnx holds
    beside = ours.Beside(table_of(zoo, record), zoo.manifest(record.ref)) if has_more else None
    with _whole(place, overwrite=overwrite) as (work, target):
        if form == "onnx":
            write_graph(members, target)
        elif form == "safetensors":
            _write_folder(target, _Goods(record, members, matrix, beside))
        else:
            _write_package(work, target, _Goods(record, members, matrix, beside), credit)
    logger.info("ensemble exported", extra={"ref": record.ref, "form": form, "path": str(place)})
    return place


def import_(
    zoo: "Zoo",
    path: Path,
    name: str,
    *,
    alias: str | None = None,
    frames: AtomAIFrames | None = None,
    limits: Limits | None = None,
    source: str = "",
    said: Callable[[str], None] = lambda _: None,
) -> "Record":
    """Register what a package, a folder or an AtomAI file holds as the next version of a name.

    Args:
        zoo: where to.
        path: a .zip or folder that `export` wrote, or an AtomAI `.tar`.
        name: name of the ensemble here.
        alias: `serving` or `candidate`, given through the gates: what they refuse is a candidate.
        frames: what an AtomAI file does not say about its frames.
        limits: how large it may be.
        source: what to record as its origin, if the path is not what it was called.
        said: told why the version does not serve, if the gates refuse that; that it is not signed,
            if the settings name a key: who signed the original vouches for nothing here; and what
            of the package was left out.

    Raises:
        NotFound: no such file.
        UnreadableFile: it is none of those, a file is missing, changed or not to be read, weights
            do not fit, names leave the package, or something in it may be a pickle.
        TooLarge: more than the limits allow, declared or met.
        InvalidSpec: a recipe that is unknown or breaks the rules.
        InvalidInput: a name or alias that cannot be kept, or frames that were not described.
        RefusedByGate: it is registered, and may not even be a candidate: nobody trusted signed it.
        ZooUnreachable: MLflow does not answer.
    """
    check_name(name)
    check_alias(alias)
    form, digest, parcel = _received(path, frames, limits or Limits())
    record = zoo.register(
        name,
        parcel.members,
        job={
            "kind": "import",
            "form": form,
            "source": source or path.name,
            "sha256": digest,
            "origin": dict(parcel.origin),
        },
        scores=parcel.rows,
        failed=parcel.failed,
        inputs=parcel.inputs,
        vouch=False,
        attachments=[parcel.rehearsal] if parcel.rehearsal else [],
    )
    for note in parcel.notes:
        said(f"{record.ref}: {note}")
    logger.info("ensemble imported", extra={"ref": record.ref, "form": form, "source": path.name})
    if settings().signing_key:
        said(f"{record.ref} is not signed: others made it; manybeam zoo sign {record.ref} does")
    return settle(zoo, record, alias, said=said)


def _received(
    path: Path, frames: AtomAIFrames | None, limits: Limits
) -> tuple[str, str, ours.Parcel]:
    """Return the form of what was given, its digest, and what it holds."""
    with _readable(path):
        if path.is_dir():
            files_of(path, limits)
            manifest = path / ours.MANIFEST_FILE
            parcel = ours.read(path, path.name)
            return "safetensors", sha256_of(manifest.read_bytes()), parcel
        if not path.is_file():
            hint = "give the path of a package, folder or AtomAI file"
            raise NotFound(f"no file {path}", "", hint)
        is_atomai, digest = _is_atomai(path, limits), sha256_of_file(path)
    if is_atomai:
        return "atomai", digest, read_atomai(path, frames)
    with tempfile.TemporaryDirectory(prefix="manybeam-import-") as work:
        names = unpack(path, Path(work), limits)
        form = "bioimageio" if RDF_FILE in names else "safetensors"
        root = Path(work) / _root(names)
        return form, digest, ours.read(root, path.name)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn a fault of the disk, met while a path is read, into an error of ours."""
    try:
        yield
    except ManybeamError:
        raise
    except OSError as error:
        place = error.filename or path
        raise UnreadableFile(
            f"{place} cannot be read: {error.strerror or error}",
            f"{path.name} has to be read whole",
            "mind who owns it, or copy it elsewhere",
        ) from error


def _is_atomai(path: Path, limits: Limits) -> bool:
    """Tell whether a file is what torch saves, which AtomAI's are; refuse what we know nothing of.

    A package of another maker is refused here, before its pickles are: it lacks more than that.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                return True
        raise UnreadableFile(
            f"{path.name} is nothing that can be imported",
            "a package or folder that `manybeam zoo export` wrote, or an AtomAI .tar",
            "an .onnx or a bare .safetensors lacks the recipe: ask for the package",
        )
    names = names_in(path, limits)
    if f"{_root(names)}{ours.MANIFEST_FILE}" in names:
        return False
    if any(name.endswith("data.pkl") and name.count("/") == 1 for name in names):
        return True
    raise ours.foreign(path.name, names)


def _root(names: list[str]) -> str:
    """Return the one folder all files lie in, as when a folder was zipped, or ""."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


@dataclass(frozen=True)
class _Goods:
    """What an export writes."""

    record: "Record"
    members: list["Member"]
    matrix: "Matrix"
    beside: ours.Beside | None

    def write(self, folder: Path, naming: ours.Naming = ours.nested) -> None:
        ours.write(folder, self.record, self.members, self.matrix.rows, naming, self.beside)


def _write_folder(target: Path, goods: _Goods) -> None:
    target.mkdir()
    goods.write(target)
    _write_card(target, goods.record, goods.matrix, "")


def _write_package(work: Path, target: Path, goods: _Goods, credit: Credit | None) -> None:
    content, named = work / "content", credit or Credit()
    content.mkdir()
    goods.write(content, ours.flat)
    _write_card(content, goods.record, goods.matrix, named.licence)
    view = write_graph(goods.members, content / GRAPH_FILE)
    imaging = _imaging(goods.matrix)
    write_package(content, goods.record, goods.members, view, named, imaging).replace(target)


def _write_card(target: Path, record: "Record", matrix: "Matrix", licence: str) -> None:
    from manybeam.zoo.reports.cards import card_markdown, card_picture, note_for

    note = note_for(record, settings().zoo, matrix.conditions)
    picture = PICTURE_FILE if len(matrix) else ""
    if picture:
        (target / picture).write_bytes(card_picture(matrix))
    card = card_markdown(record, matrix, note=note, licence=licence, picture=picture)
    (target / README_FILE).write_text(card, encoding="utf-8")


def _imaging(matrix: "Matrix") -> "Condition":
    """Return what to simulate a test frame under: a condition it was measured on, or graphene."""
    from manybeam.spec import Condition, Library

    known = Library(settings().zoo).conditions
    for name in matrix.conditions:
        if name in known and known[name].sample.structure != "unknown":
            return known[name]
    return Condition.model_validate({"id": "graphene", "sample": {"structure": "graphene"}})


def _keep_free(path: Path, *, is_folder: bool, overwrite: bool) -> None:
    """Refuse a path that is taken; of folders only that of an export may be replaced, by one."""
    if not path.parent.is_dir():
        raise NotFound(f"no folder {path.parent}", "", f"mkdir -p {path.parent}")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise Conflict(f"{path} is there already", "an export replaces nothing", "give --overwrite")
    if path.is_dir() and not path.is_symlink():
        own = (README_FILE, PICTURE_FILE)
        stray = ours.stray_in(path, own) if is_folder else "a file does not replace it"
        if stray:
            raise Conflict(
                f"{path} is a folder that stays: {stray}",
                "only a folder that an export wrote, with nothing else in it, is replaced",
                "name another path",
            )


@contextmanager
def _whole(path: Path, *, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Give a folder to work in and a name in it; what is there at the end appears as `path`."""
    with (
        _writing(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work,
    ):
        yield Path(work), Path(work) / path.name
        _appear(Path(work), path, overwrite=overwrite)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a fault of the disk, met while a path is written, into an error of ours."""
    try:
        yield
    except ManybeamError:
        raise
    except OSError as error:
        raise WriteFailed(
            f"{path} cannot be written: {error}", "what was there is untouched", "make room there"
        ) from error


def _appear(work: Path, path: Path, *, overwrite: bool) -> None:
    """Move what was made to its path; two folders cannot change places in one step."""
    made, before = work / path.name, work / ".before"
    _keep_free(path, is_folder=made.is_dir(), overwrite=overwrite)
    has_to_go = made.is_dir() or (path.is_dir() and not path.is_symlink())
    if os.path.lexists(path) and has_to_go:
        path.rename(before)
    try:
        made.replace(path)
    except OSError:
        if os.path.lexists(before):
            before.rename(path)
        raise
