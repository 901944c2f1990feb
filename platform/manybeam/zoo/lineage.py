"""Lineage: the origin of a version, and what was made from it.

FrameSet -> job -> member -> ensemble -> prediction, in both directions. FrameSets are those of
training and of scores. Downward needs one listing of the zoo: each version has tags for its parent
and for both kinds of FrameSets.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manybeam.data.store import open_store
from manybeam.errors import InvalidInput, ManybeamError, NotFound, UnknownRef
from manybeam.zoo.matrix import FrameSetUse
from manybeam.zoo.older_objects import predictions_kept
from manybeam.zoo.records import Ref
from manybeam.zoo.registration import INPUT_TAG, MEASURED_TAG, PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from manybeam.data.store import Store
    from manybeam.zoo.records import Record, VersionEntry
    from manybeam.zoo.registry import Zoo


_GROUP = "zarr.json"  # the file of a Zarr group


@dataclass(frozen=True)
class Lineage:
    """A version with its frames, job, predictions, parents and children.

    Attributes:
        record: the version.
        parents: versions it was adapted from, the nearest first.
        missing: references of parents that are no longer in the zoo.
        children: references of versions adapted from it, oldest first.
        predictions: URLs of its recorded answers, oldest first.
        measured: FrameSets of its scores, by URL.
    """

    record: "Record"
    parents: "tuple[Record, ...]"
    missing: tuple[str, ...]
    children: tuple[str, ...]
    predictions: tuple[str, ...]
    measured: tuple[FrameSetUse, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each item of the lineage: its kind, its name and details."""
        record = self.record
        rows = [_row("prediction", url, "answered by this version") for url in self.predictions]
        rows += [_row("child", ref, "adapted from this version") for ref in self.children]
        rows.append(_row("version", record.ref, f"SHA-256 {record.sha256}"))
        rows += [_row("alias", f"{record.name}@{a}", "points here") for a in record.aliases]
        rows += [
            _row("member", f"{record.version_ref}/{one.index:02d}", _origin(one))
            for one in record.members
        ]
        rows.append(_row("job", record.job.get("kind", ""), f"Manybeam {record.code_version}"))
        there = ", before it was imported" if record.job.get("kind") == "import" else ""
        rows += [
            _row("frame set", one.url, f"trained on{there}, digest {one.digest}")
            for one in record.inputs
        ]
        rows += [
            _row("frame set", one.url, f"measured on, digest {one.digest}") for one in self.measured
        ]
        rows += [_row("parent", one.ref, f"SHA-256 {one.sha256}") for one in self.parents]
        rows += [_row("parent", ref, "gone from the zoo") for ref in self.missing]
        return rows


def lineage(zoo: "Zoo", ref: str) -> Lineage:
    """Return the lineage of a version; raises UnknownRef."""
    record = zoo.resolve(ref)
    parents: list[Record] = []
    missing: list[str] = []
    above = record.parent
    while above and above not in {one.ref for one in parents}:
        try:
            parents.append(zoo.resolve(above))
        except UnknownRef:
            missing.append(above)
            break
        above = parents[-1].parent
    own, listing = record.version_ref, zoo.listing()
    children = _refs(one for one in listing if one.tags.get(PARENT_TAG) == own)
    measured = tuple(use for one in listing if one.ref == own for use in measured_on(one))
    return Lineage(
        record, tuple(parents), tuple(missing), children, predictions_kept().of(own), measured
    )


def note_prediction(ref: str, url: str) -> None:
    """Record the URL of answers of a version, for its lineage.

    Args:
        ref: `name@version`.
        url: where the answers were written.
    """
    predictions_kept().note(ref, url)


def prediction_of(url: str) -> str:
    """Return the version of the answers at a URL; "" if there are none.

    The URL may be of anything. Only the attributes of the Zarr group and of its first group are
    read, because answers name their version there.

    Raises:
        StoreUnreachable, NotAllowed: the URL cannot be read.
    """
    if Ref.is_one(url):
        return ""
    try:
        store = open_store(url, create=False)
        if not store.exists(_GROUP):
            return ""
        groups = ["", *(f"{folder}/" for folder in store.folders()[:1])]
        return next(filter(None, (_answered_by(store, f"{group}{_GROUP}") for group in groups)), "")
    except (NotFound, InvalidInput):
        return ""
    except OSError as error:
        if isinstance(error, ManybeamError):
            raise
        return ""  # not a valid name on a disk, so nothing is there


def _answered_by(store: "Store", key: str) -> str:
    """Return the version in the attributes of a Zarr group; "" if there is none."""
    try:
        attributes = json.loads(store.get(key))["attributes"]
        ref = attributes["ensemble"]
    except (NotFound, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return ref if isinstance(ref, str) and Ref.is_one(ref) else ""


def uses_of(zoo: "Zoo", frames: str) -> tuple[tuple[str, str], ...]:
    """Return the versions that used a FrameSet, given by URL or digest, and their use.

    Returns:
        (reference, `trained on` or `measured on` or both), by name, oldest first.

    Raises:
        NotFound: no version used it.
    """
    entries = sorted(zoo.listing(), key=lambda one: (one.name, one.version))
    found = [(f"{one.name}@{one.version}", _use(one, frames)) for one in entries]
    if not any(how for _, how in found):
        raise NotFound(
            f"no version was trained on {frames}, or measured on it",
            "versions are found by the URL or the digest of a FrameSet",
            "manybeam data ls shows FrameSets, manybeam zoo lineage REF those of a version",
        )
    return tuple((ref, how) for ref, how in found if how)


def measured_on(entry: "VersionEntry") -> tuple[FrameSetUse, ...]:
    """Return the FrameSets of a version's scores, by URL."""
    return _uses(entry, MEASURED_TAG)


def _use(entry: "VersionEntry", frames: str) -> str:
    """Return the use of a FrameSet by a version, in words; "" if there is none."""
    kinds = ((INPUT_TAG, "trained on"), (MEASURED_TAG, "measured on"))
    return " and ".join(
        how
        for tag, how in kinds
        if any(frames == x.digest or _same(frames, x.url) for x in _uses(entry, tag))
    )


def _uses(entry: "VersionEntry", tag: str) -> tuple[FrameSetUse, ...]:
    """Return the FrameSets in the tags of a version, by URL; a key may have a suffix."""
    named = [(url, key) for key, url in entry.tags.items() if key.startswith(tag)]
    return tuple(
        FrameSetUse(url, key.removeprefix(tag).partition(".")[0]) for url, key in sorted(named)
    )


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")


def _refs(entries: "Iterable[VersionEntry]") -> tuple[str, ...]:
    return tuple(one.ref for one in sorted(entries, key=lambda one: one.place))


def _origin(member: Any) -> str:
    came = f"seed {member.seed}, policy {member.policy}, recipe {member.recipe}"
    return f"{came}, from {member.parent}" if member.parent else came


def _row(what: str, which: str, details: str) -> dict[str, Any]:
    return {"what": what, "which": which, "details": details}
