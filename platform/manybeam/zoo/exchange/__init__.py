"""Export and import of ensembles: packages are complete, checked and limited in size.

Export writes a bioimage.io package, an ONNX graph or a folder of safetensors. Import reads a
package or folder of Manybeam, and `.tar` files of AtomAI. If an import is refused, nothing is
registered. If an export fails, no file remains.
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
from manybeam.zoo.checks import check_alias, check_folder, check_name
from manybeam.zoo.exchange import folder as ours
from manybeam.zoo.exchange.atomai import LEGACY, AtomAIFrames, read_atomai
from manybeam.zoo.exchange.bioimageio import (
    GRAPH_FILE,
    RDF_FILE,
    README_FILE,
    Credit,
    check_credit,
    write_package,
)
from manybeam.zoo.exchange.extras import table_of
from manybeam.zoo.exchange.onnx_graph import require, write_graph
from manybeam.zoo.exchange.unpack import UnpackLimits, files_of, names_in, sha256_of_file, unpack
from manybeam.zoo.lifecycle.life import settle
from manybeam.zoo.lifecycle.noted import IMPORTED, note_registered

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
    """Write a version to a file or folder and return its path.

    Args:
        zoo: zoo of the version.
        ref: the version, or one member of it.
        path: file or folder to write; if left out, `name-version` with the ending of the format,
            in the present folder.
        form: `bioimageio`: a .zip that other programs can run and another zoo can import; `onnx`:
            the graph only; `safetensors`: a folder of members, scores and card for another zoo.
        overwrite: replace an existing file, or the folder of an export.
        credit: authors, licence and citations of a package; a licence that is not given is "not
            stated".

    Raises:
        UnknownRef: there is no such version.
        Conflict: the path exists, or is a folder that is not exactly one export.
        InvalidInput: one graph cannot hold the members, or the format refuses the credit.
        MissingPackage: `pip install 'manybeam[exchange]'` is needed.
        WorkFailed: the result is not valid, or its answers differ from those of the members.
        WriteFailed: the disk cannot be written to.
    """
    if form not in FORMS:
        raise InvalidInput(
            f"there is no format {form!r}", f"allowed: {', '.join(FORMS)}", "use one of these"
        )
    record = zoo.resolve(ref)
    place = path or Path(record.ref.replace("@", "-").replace("/", "-") + FORMS[form])
    with _writing(place):
        _keep_free(place, is_folder=form == "safetensors", overwrite=overwrite)
    if form != "safetensors":
        require("onnx", "onnxscript", "onnxruntime")
    named = credit or Credit()
    if form == "bioimageio":
        check_credit(named)
    check_folder(place.parent, 2 * sum(member.byte_count for member in record.members))
    members, matrix = zoo.members(record.ref), zoo.matrix(record.ref)
    has_more = form != "onnx"  # an .onnx holds only the graph
    extras = ours.Extras(table_of(zoo, record), zoo.manifest(record.ref)) if has_more else None
    with _complete(place, overwrite=overwrite) as (work, target):
        if form == "onnx":
            write_graph(members, target)
        elif form == "safetensors":
            _write_folder(target, _ExportContent(record, members, matrix, extras), named)
        else:
            _write_package(work, target, _ExportContent(record, members, matrix, extras), named)
    logger.info("ensemble exported", extra={"ref": record.ref, "form": form, "path": str(place)})
    return place


def import_(
    zoo: "Zoo",
    path: Path,
    name: str,
    *,
    alias: str | None = None,
    frames: AtomAIFrames | None = None,
    limits: UnpackLimits | None = None,
    source: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> "Record":
    """Register the ensemble in a package, a folder or an AtomAI file as the next version.

    Args:
        zoo: zoo of the new version.
        path: a .zip or folder that `export` wrote, or an AtomAI `.tar`.
        name: name of the ensemble in this zoo.
        alias: `serving` or `candidate`, through the gates; if they refuse, it is the candidate.
        frames: information about the frames that an AtomAI file does not contain.
        limits: limits of the size.
        source: name of the source for the record, if it is not the name of the path.
        say: called with notes: why the version does not serve; that it is not signed, if the
            settings name a key, because the signature of a package is not trusted; and which
            parts of the package were not imported.

    Raises:
        NotFound: there is no such file.
        UnreadableFile: the file is none of these; a file in it is missing, changed or unreadable;
            weights do not fit the network; names lead out of the package; or it may contain a
            pickle.
        TooLarge: it is larger than the limits.
        InvalidSpec: a recipe is unknown or breaks the rules.
        InvalidInput: a name or alias is not allowed, or information about frames is missing.
        RefusedByGate: it is registered, but it cannot be a candidate: no trusted key signed it.
        ZooUnreachable: MLflow does not answer.
    """
    check_name(name)
    check_alias(alias)
    form, digest, package = _received(path, frames, limits or UnpackLimits())
    zoo.check_writable(name, _size(path))
    record = zoo.register(
        name,
        package.members,
        job={
            "kind": "import",
            "form": form,
            "source": source or path.name,
            "sha256": digest,
            "origin": dict(package.origin),
        },
        scores=package.rows,
        failed=package.failed,
        inputs=package.inputs,
        sign=False,
        attachments=[package.calibration_set] if package.calibration_set else [],
    )
    note_registered(record, IMPORTED)
    for note in package.notes:
        say(f"{record.ref}: {note}")
    logger.info("ensemble imported", extra={"ref": record.ref, "form": form, "source": path.name})
    if settings().signing_key:
        say(
            f"{record.ref} is not signed, because it was imported; if you trust it, run "
            f"manybeam zoo sign {record.ref}"
        )
    return settle(zoo, record, alias, say=say)


def _received(
    path: Path, frames: AtomAIFrames | None, limits: UnpackLimits
) -> tuple[str, str, ours.ImportedPackage]:
    """Return the format of a file or folder, its digest, and its content."""
    with _readable(path):
        if path.is_dir():
            files_of(path, limits)
            manifest = path / ours.MANIFEST_FILE
            package = ours.read(path, path.name)
            return "safetensors", sha256_of(manifest.read_bytes()), package
        if not path.is_file():
            hint = "give the path of a package, folder or AtomAI file"
            raise NotFound(f"there is no file {path}", "an import needs a file or folder", hint)
        is_atomai, digest = _is_atomai(path, limits), sha256_of_file(path)
    if is_atomai:
        return "atomai", digest, read_atomai(path, frames)
    with tempfile.TemporaryDirectory(prefix="manybeam-import-") as work:
        names = unpack(path, Path(work), limits)
        form = "bioimageio" if RDF_FILE in names else "safetensors"
        root = Path(work) / _root(names)
        return form, digest, ours.read(root, path.name)


def _size(path: Path) -> int:
    """Return the size of a file; 0 for a folder or no file, which are checked later."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error of the disk during reading into an UnreadableFile."""
    try:
        yield
    except ManybeamError:
        raise
    except OSError as error:
        place = error.filename or path
        raise UnreadableFile(
            f"{place} cannot be read: {error.strerror or error}",
            f"the whole of {path.name} must be readable",
            "check its permissions, or copy it to another place",
        ) from error


def _is_atomai(path: Path, limits: UnpackLimits) -> bool:
    """Return whether a file was saved by torch, as those of AtomAI; refuse unknown files.

    A package from another program is refused here, with a more helpful error than for its pickles.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                return True
        raise UnreadableFile(
            f"{path.name} cannot be imported",
            "allowed: a package or folder that `manybeam zoo export` wrote, or an AtomAI .tar",
            "an .onnx or a single .safetensors has no recipe; ask for the whole package",
        )
    names = names_in(path, limits)
    if f"{_root(names)}{ours.MANIFEST_FILE}" in names:
        return False
    if any(name.endswith("data.pkl") and name.count("/") == 1 for name in names):
        return True
    raise ours.foreign(path.name, names)


def _root(names: list[str]) -> str:
    """Return the one folder that contains all files, as in a zipped folder, or ""."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


@dataclass(frozen=True)
class _ExportContent:
    """The content of an export."""

    record: "Record"
    members: list["Member"]
    matrix: "Matrix"
    extras: ours.Extras | None

    def write(self, folder: Path, naming: ours.Naming = ours.nested) -> None:
        ours.write(folder, self.record, self.members, self.matrix.rows, naming, self.extras)


def _write_folder(target: Path, content: _ExportContent, credit: Credit) -> None:
    target.mkdir()
    content.write(target)
    _write_card(target, content.record, content.matrix, credit.licence)


def _write_package(work: Path, target: Path, content: _ExportContent, credit: Credit) -> None:
    folder = work / "content"
    folder.mkdir()
    content.write(folder, ours.flat)
    _write_card(folder, content.record, content.matrix, credit.licence)
    view = write_graph(content.members, folder / GRAPH_FILE)
    imaging = _imaging(content.matrix)
    write_package(folder, content.record, content.members, view, credit, imaging).replace(target)


def _write_card(target: Path, record: "Record", matrix: "Matrix", licence: str) -> None:
    from manybeam.zoo.reports.cards import card_markdown, card_picture, note_for

    note = note_for(record, settings().zoo, matrix.conditions)
    picture = PICTURE_FILE if len(matrix) else ""
    if picture:
        (target / picture).write_bytes(card_picture(matrix))
    card = card_markdown(record, matrix, note=note, licence=licence, picture=picture)
    (target / README_FILE).write_text(card, encoding="utf-8")


def _imaging(matrix: "Matrix") -> "Condition":
    """Return the condition of the test frame: a measured condition, or graphene."""
    from manybeam.spec import Condition, Library

    known = Library(settings().zoo).conditions
    for name in matrix.conditions:
        if name in known and known[name].sample.structure != "unknown":
            return known[name]
    return Condition.model_validate({"id": "graphene", "sample": {"structure": "graphene"}})


def _keep_free(path: Path, *, is_folder: bool, overwrite: bool) -> None:
    """Refuse a path that exists; only the folder of an export may be replaced, by a folder."""
    if not path.parent.is_dir():
        raise NotFound(
            f"there is no folder {path.parent}",
            "an export is written into an existing folder",
            f"mkdir -p {path.parent}",
        )
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise Conflict(
            f"{path} exists already", "an export does not replace files", "give --overwrite"
        )
    if path.is_dir() and not path.is_symlink():
        own = (README_FILE, PICTURE_FILE)
        stray = ours.stray_in(path, own) if is_folder else "a file cannot replace a folder"
        if stray:
            raise Conflict(
                f"the folder {path} is not replaced: {stray}",
                "only a folder that contains one export and nothing else is replaced",
                "give another path",
            )


@contextmanager
def _complete(path: Path, *, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Yield a working folder and a target in it; at the end the target is moved to `path`."""
    with (
        _writing(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as work,
    ):
        yield Path(work), Path(work) / path.name
        _appear(Path(work), path, overwrite=overwrite)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk during writing into a WriteFailed."""
    try:
        yield
    except ManybeamError:
        raise
    except OSError as error:
        raise WriteFailed(
            f"{path} cannot be written: {error}",
            "existing files are unchanged",
            "free space there, or give another path",
        ) from error


def _appear(work: Path, path: Path, *, overwrite: bool) -> None:
    """Move the result to its path; a folder cannot be replaced in one step."""
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
