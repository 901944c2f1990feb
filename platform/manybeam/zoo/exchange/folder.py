"""The common content of all packages: members as safetensors, a manifest of digests, scores.

A folder contains these and a model card. A bioimage.io package contains the same files as
attachments, in addition to the files for other programs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from manybeam.errors import Corrupt, InvalidInput, InvalidSpec, TooLarge, UnreadableFile
from manybeam.learn.nets.card import MemberCard
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.checks import check_frame_set
from manybeam.zoo.exchange.documents import (
    CalibrationSetEntry,
    FileEntry,
    FrameSetEntry,
    Manifest,
    MemberEntry,
)
from manybeam.zoo.exchange.extras import ORIGINAL_FILE, TABLE_FILE, is_signed_with, read_table
from manybeam.zoo.exchange.unpack import below, is_safe_path, sha256_of_file
from manybeam.zoo.matrix import FrameSetUse, Score
from manybeam.zoo.score_reports import read_report, write_report

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.zoo.records import Record
    from manybeam.zoo.registration import Attachment

FORMAT = "manybeam-exchange-1"
MANIFEST_FILE = "manifest.json"
DOCUMENT_BYTES = 64_000_000  # of one JSON document: a million scores

# Fields of a manifest that are not part of the origin: the record has them in other places.
_OWN = {"format", "members", "scores", "failed", "inputs", "calibration_set", "original"}
Naming = Callable[[int, str], str]


@dataclass(frozen=True)
class ImportedPackage:
    """The content of a package.

    Attributes:
        members: the members with their weights.
        rows: their scores, as they were measured.
        failed: members that failed in training, each with the reason.
        origin: the origin, as plain data.
        inputs: FrameSets of the training, with their URLs at that time.
        calibration_set: their calibration set, if it belongs to exactly these weights.
        notes: sentences for the user: parts that were not imported, and why.
    """

    members: Sequence["Member"]
    rows: Sequence[Score] = ()
    failed: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[FrameSetUse, ...] = ()
    calibration_set: "Attachment | None" = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
    """Files of a version that are exported with its members.

    Attributes:
        calibration_set: its calibration set, as bytes; None if it has none.
        original: its manifest as it was registered; its signature is of these bytes.
    """

    calibration_set: bytes | None = None
    original: bytes | None = None


def nested(index: int, file: str) -> str:
    """Return the path of a file of a member in a folder."""
    return f"members/{index:02d}/{file}"


def flat(index: int, file: str) -> str:
    """Return the name of a file of a member in a package without folders."""
    return f"member-{index:02d}-{file}"


def write(
    folder: Path,
    record: "Record",
    members: Sequence["Member"],
    rows: Sequence[Score],
    naming: Naming = nested,
    extras: Extras | None = None,
) -> list[str]:
    """Write members, scores, extras and the manifest; return the names of the files."""
    entries = [_write_member(folder, member, naming) for member in members]
    manifest = Manifest(
        format=FORMAT,
        ensemble=record.name,
        version=record.version,
        digest=record.sha256,
        created=record.created,
        exported=datetime.now(UTC),
        code_version=record.code_version,
        parent=record.parent,
        job=record.job,
        failed=record.failed,
        environment=dict(getattr(record, "environment", {})),
        members=tuple(entries),
        scores=_put(folder, "scores.json", write_report(rows)),
        inputs=tuple(FrameSetEntry(url=one.url, digest=one.digest) for one in record.inputs),
        calibration_set=_put_calibration_set(folder, record, extras),
        original=_put(folder, ORIGINAL_FILE, extras.original)
        if extras and extras.original
        else None,
        signature=record.signature,
    )
    _put(folder, MANIFEST_FILE, manifest.model_dump_json(indent=1, by_alias=True).encode())
    return [MANIFEST_FILE, *(one.path for one in manifest.files)]


def read(folder: Path, source: str) -> ImportedPackage:
    """Return the content of a folder; every file is checked against its digest.

    Args:
        folder: an unpacked package.
        source: name of the package in messages.

    Raises:
        UnreadableFile: there is no manifest; a file is missing, changed or no safetensors; or
            weights do not fit their recipe.
        InvalidSpec: a manifest or recipe breaks the rules, or is unknown.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise foreign(source, [path.name for path in folder.iterdir()])
    manifest: Manifest = _parsed(Manifest, folder / MANIFEST_FILE, source)
    _check_files(folder, manifest, source)
    cards = [_read_card(folder, entry, source) for entry in manifest.members]
    pairs = zip(manifest.members, cards, strict=True)
    calibration_set, note = _read_calibration_set(folder, manifest)
    return ImportedPackage(
        members=[_read_member(folder, entry, card, source) for entry, card in pairs],
        rows=_read_scores(folder, manifest, source),
        failed=manifest.failed,
        origin={
            **manifest.model_dump(mode="json", exclude=_OWN, by_alias=True),
            "parents": {str(c.index): c.parent for c in cards if c.parent},
            **_signed(folder, manifest, source),
        },
        inputs=_read_inputs(manifest, source),
        calibration_set=calibration_set,
        notes=(note,) if note else (),
    )


def stray_in(folder: Path, own: Collection[str] = ()) -> str:
    """Return why a folder is not exactly one export; "" if it is.

    Args:
        folder: the folder.
        own: names of files of an export that are not in its manifest.
    """
    try:
        manifest: Manifest = _parsed(Manifest, folder / MANIFEST_FILE, folder.name)
    except (InvalidInput, OSError):
        return f"it has no {MANIFEST_FILE} of an export"
    known = {MANIFEST_FILE, *(one.path for one in manifest.files), *own}
    for item in below(folder):
        name = item.relative_to(folder).as_posix()
        if item.is_symlink() or not (item.is_dir() or name in known):
            return f"it holds {name}"
    return ""


def foreign(source: str, names: Sequence[str]) -> UnreadableFile:
    """Return the error for a package from another program."""
    is_bioimageio = {"rdf.yaml", "bioimageio.yaml"} & set(names)
    what = (
        "a bioimage.io package from another program" if is_bioimageio else "no package of Manybeam"
    )
    return UnreadableFile(
        f"{source} is {what}: it has no {MANIFEST_FILE}",
        "an import needs the recipe and the weights of each member, as Manybeam exports them",
        "export it with `manybeam zoo export`, or train members with Manybeam",
    )


def check_fit(member: "Member", source: str) -> None:
    """Refuse weights that do not fit the network of the recipe, before memory is used."""
    import torch

    from manybeam.learn.nets.networks import build

    with torch.device("meta"):
        expected = {
            name: tuple(v.shape) for name, v in build(member.recipe.network).state_dict().items()
        }
    found = {name: tuple(tensor.shape) for name, tensor in member.weights.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        raise UnreadableFile(
            f"{source}: weights of member {member.index:02d} do not fit the network "
            f"{member.recipe.network.name!r} of its recipe {member.recipe.id!r}",
            f"{len(wrong)} of {len(expected)} tensors differ, such as {', '.join(wrong[:3])}",
            "ask its author for recipe and weights that belong together",
        )


def _write_member(folder: Path, member: "Member", naming: Naming) -> MemberEntry:
    from manybeam.learn.nets.member import save_weights

    card = MemberCard.of(member).to_json()
    weights = naming(member.index, "weights.safetensors")
    return MemberEntry(
        index=member.index,
        weights=_put(folder, weights, save_weights(member.weights)),
        card=_put(folder, naming(member.index, "member.json"), card),
    )


def _put_calibration_set(
    folder: Path, record: "Record", extras: Extras | None
) -> CalibrationSetEntry | None:
    if extras is None or extras.calibration_set is None:
        return None
    file = _put(folder, TABLE_FILE, extras.calibration_set)
    weights = {str(one.index): one.sha256 for one in record.members}
    return CalibrationSetEntry(path=file.path, sha256=file.sha256, weights=weights)


def _put(folder: Path, name: str, content: bytes) -> FileEntry:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return FileEntry(path=name, sha256=sha256_of(content))


def _check_files(folder: Path, manifest: Manifest, source: str) -> None:
    """Refuse a package with missing or changed files; all are listed at once."""
    faults = [fault for one in manifest.files if (fault := _file_fault(folder, one))]
    if faults:
        raise UnreadableFile(
            f"{source}: {'; '.join(faults[:10])}",
            f"{len(faults)} of {len(manifest.files)} files differ from its manifest",
            "ask its author for the package again",
        )


def _file_fault(folder: Path, entry: FileEntry) -> str:
    if not is_safe_path(entry.path):
        return f"the manifest names {entry.path[:80]!r}, which is outside the package"
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        return f"{entry.path} is missing"
    found = sha256_of_file(path)
    if found != entry.sha256:
        return f"{entry.path} has SHA-256 {found[:12]}, not {entry.sha256[:12]}"
    return ""


def _read_card(folder: Path, entry: MemberEntry, source: str) -> MemberCard:
    card: MemberCard = _parsed(MemberCard, folder / entry.card.path, source)
    if card.index != entry.index:
        raise InvalidSpec(
            f"{source}: {entry.card.path} is of member {card.index}, not {entry.index}",
            "the manifest and the cards must name the same members",
            "ask its author for the package again",
        )
    return card


def _read_member(folder: Path, entry: MemberEntry, card: MemberCard, source: str) -> "Member":
    """Return a member without its parent, because the parent is in another zoo."""
    from manybeam.learn.nets.member import load_weights

    try:
        weights = load_weights((folder / entry.weights.path).read_bytes())
    except Corrupt as error:
        raise UnreadableFile(
            f"{source}: {entry.weights.path} is no safetensors file",
            "weights are read in this format only",
            "ask its author for the package again",
        ) from error
    member = card.model_copy(update={"parent": ""}).to_member(weights)
    check_fit(member, source)
    return member


def _read_scores(folder: Path, manifest: Manifest, source: str) -> list[Score]:
    path = folder / manifest.scores.path
    _keep_short(path, source)
    try:
        rows = read_report(path.read_bytes())
    except Corrupt as error:
        raise UnreadableFile(f"{source}: {error.what}", error.why, error.hint) from error
    for row in rows:
        if not all(isinstance(x, str) for x in (row.condition, row.condition_digest, row.scorer)):
            raise UnreadableFile(
                f"{source}: {path.name} names a condition that is no text",
                "ids of conditions and their digests must be texts",
                "ask its author for the package again",
            )
    return rows


def _read_calibration_set(folder: Path, manifest: Manifest) -> "tuple[Attachment | None, str]":
    """Return the calibration set, or a sentence that says why it is not imported."""
    entry = manifest.calibration_set
    if entry is None:
        return None, ""
    found, why = read_table(folder / entry.path, entry.weights, manifest.weights)
    return found, f"its calibration set was not imported: {why}" if why else ""


def _read_inputs(manifest: Manifest, source: str) -> tuple[FrameSetUse, ...]:
    found = tuple(FrameSetUse(one.url, one.digest) for one in manifest.inputs)
    try:
        for one in found:
            check_frame_set(one)
    except InvalidInput as error:
        raise InvalidSpec(f"{source}: inputs: {error.what}", error.why, error.hint) from error
    return found


def _signed(folder: Path, manifest: Manifest, source: str) -> dict[str, Any]:
    """Return whether the signature in the package belongs to these weights, if it has one."""
    if not manifest.signature or manifest.original is None:
        return {}
    path = folder / manifest.original.path
    _keep_short(path, source)
    bound = is_signed_with(path.read_bytes(), manifest.digest, manifest.weights)
    return {"is_signed_with": bound}


def _keep_short(path: Path, source: str) -> None:
    size = path.stat().st_size
    if size > DOCUMENT_BYTES:
        raise TooLarge(
            f"{source}: {path.name} has {size:,} bytes",
            f"at most {DOCUMENT_BYTES:,} bytes",
            "import the members in smaller ensembles",
        )


def _parsed(model: type[Any], path: Path, source: str) -> Any:
    name = path.name
    _keep_short(path, source)
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = [
            f"{name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise InvalidSpec(
            f"{source}: {'; '.join(faults[:5])}",
            f"this version of Manybeam reads {FORMAT}",
            "update Manybeam if a newer version exported it",
        ) from error
