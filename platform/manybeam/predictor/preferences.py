"""Picks: members that a person chose for a frame, kept with who, when and what was known then.

A person who looks at the members side by side knows what no score does. Each pick is one object
below the facility's store; taking one back writes a second object beside it, and nothing is ever
deleted. So picks can be made by many at once, and what selection proposed, what was measured of
every member and what was picked instead can teach the next combined model.
"""

import getpass
import hashlib
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from manybeam.data.store import Store, open_store
from manybeam.errors import Conflict, InvalidInput, MemberCountError, NotAllowed, NotFound
from manybeam.settings import settings
from manybeam.spec import Condition
from manybeam.zoo.records import Record

if TYPE_CHECKING:
    from manybeam.predictor.selection import Selection

logger = logging.getLogger(__name__)

FOLDER = "picks"
MAX_WHO, MAX_NOTE = 100, 2000  # characters
_PICK, _RETRACTED = ".json", ".retracted.json"


@dataclass(frozen=True)
class Pick:
    """One choice of members for one frame, by a person.

    Attributes:
        id: names it; begins with the time.
        who: who picked.
        when: UTC, ISO 8601.
        ensemble: name of the ensemble.
        version: of the ensemble.
        members: indices of the members picked, in order.
        proposed: those that selection had chosen.
        frame_digest: see `frame_digest`.
        file: name of the frame's file, without its folder.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        condition: numbers known of how the frame was recorded, by dotted path; None if nothing is.
        features: for each member that selection ranked, the components of its score and
            `predicted_f1` as they were then; what was not finite is left out.
        summary: what the frame looks like, `learn.analysis.summaries`; None for what it is too
            small to tell. With `features` it is what the next combined model learns from.
        note: free words.
        format: of the stored object.
    """

    id: str
    who: str
    when: str
    ensemble: str
    version: int
    members: tuple[int, ...]
    proposed: tuple[int, ...]
    frame_digest: str
    file: str
    pixel_size_pm: float | None
    condition: Mapping[str, float] | None
    features: Mapping[int, Mapping[str, float]]
    summary: tuple[float | None, ...] = ()
    note: str = ""
    format: Literal["manybeam-pick-1"] = "manybeam-pick-1"

    @property
    def ref(self) -> str:
        """The version picked from: `graphene@3`."""
        return f"{self.ensemble}@{self.version}"

    @property
    def is_as_proposed(self) -> bool:
        """Whether exactly those that selection had chosen were picked."""
        return set(self.members) == set(self.proposed)


@dataclass(frozen=True)
class Retraction:
    """What stands beside a pick that was taken back."""

    id: str
    who: str
    when: str
    format: Literal["manybeam-retraction-1"] = "manybeam-retraction-1"


_AS_PICK, _AS_RETRACTION = TypeAdapter(Pick), TypeAdapter(Retraction)


def record_pick(
    record: Record,
    selection: "Selection",
    members: Sequence[int],
    *,
    frame_yx: np.ndarray,
    file: str,
    pixel_size_pm: float | None,
    condition: Condition | None = None,
    who: str | None = None,
    note: str = "",
) -> Pick:
    """Record that a person picked these members for a frame, and return what was recorded.

    Args:
        record: the version picked from.
        selection: what selection said of its members on this frame.
        members: indices of those picked, at least one.
        frame_yx: the frame.
        file: its file; the folder is left out.
        pixel_size_pm: edge of a pixel, in pm, or None.
        condition: what is known of how it was recorded.
        who: who picked; the login name if left out.
        note: free words, at most 2000 characters.

    Raises:
        MemberCountError: no member.
        UnknownRef: a member that the version does not have.
        InvalidInput: no name or too long a one, or too long a note.
        StoreUnreachable, WriteFailed: it could not be kept.
    """
    if not members:
        raise MemberCountError("no member was picked", "a pick names at least one", "--pick 03,05")
    name, now = _checked_who(who), datetime.now(UTC)
    pick = Pick(
        id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        who=name,
        when=now.isoformat(timespec="milliseconds"),
        ensemble=record.name,
        version=record.version,
        members=tuple(record.member(index).index for index in dict.fromkeys(members)),
        proposed=tuple(selection.chosen),
        frame_digest=frame_digest(frame_yx),
        file=file.replace("\\", "/").rsplit("/", 1)[-1],
        pixel_size_pm=pixel_size_pm,
        condition=_known(condition),
        features=_features(selection),
        summary=tuple(one if math.isfinite(one) else None for one in selection.summary),
        note=_checked_note(note),
    )
    _store().create(f"{pick.ensemble}/{pick.id}{_PICK}", _AS_PICK.dump_json(pick, indent=1))
    logger.info("members picked", extra={"ref": pick.ref, "who": name, "pick": pick.id})
    return pick


def picks(name: str | None = None) -> list[Pick]:
    """Return the picks that stand, oldest first: of one ensemble, or of all.

    An object that cannot be read is named in a warning and passed over: one bad file must not
    hide the others.

    Raises:
        StoreUnreachable: the store does not answer.
    """
    store = _store()
    keys = store.list(name or "")
    gone = {key.removesuffix(_RETRACTED) for key in keys if key.endswith(_RETRACTED)}
    wanted = [
        key
        for key in keys
        if key.endswith(_PICK) and not key.endswith(_RETRACTED) and key[: -len(_PICK)] not in gone
    ]
    found = [pick for key in wanted if (pick := _read(store, key)) is not None]
    return sorted(found, key=lambda pick: (pick.when, pick.id))


def retract(pick_id: str, who: str | None = None) -> None:
    """Take a pick back: from now on `picks` leaves it out. It stays in the store, with who did it.

    Taking back twice is once.

    Raises:
        NotFound: no pick has that id.
        InvalidInput: no name, or too long a one.
        StoreUnreachable, WriteFailed: it could not be kept.
    """
    store, name = _store(), _checked_who(who)
    keys = [key for key in store.list() if key.endswith(f"/{pick_id}{_PICK}")]
    if not keys or "/" in pick_id:
        raise NotFound(f"no pick {pick_id!r}", "", "manybeam select --picks lists them")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = _AS_RETRACTION.dump_json(Retraction(pick_id, name, now), indent=1)
    try:
        store.create(keys[0].removesuffix(_PICK) + _RETRACTED, content)
    except Conflict:
        return  # somebody else was first; theirs stands
    logger.info("pick retracted", extra={"pick": pick_id, "who": name})


def frame_digest(frame_yx: np.ndarray) -> str:
    """Return 32 hex digits of a frame's shape and values as float32, whatever file held it.

    Example:
        >>> frame_digest(np.zeros((2, 3), np.uint8)) == frame_digest(np.zeros((2, 3)))
        True
    """
    values = np.ascontiguousarray(frame_yx, "<f4")
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()[:32]


def _store() -> Store:
    return open_store(settings().store_url).child(FOLDER)


def _read(store: Store, key: str) -> Pick | None:
    try:
        return _AS_PICK.validate_json(store.get(key))
    except (ValidationError, NotFound, NotAllowed) as error:
        why = str(error).replace("\n", " ")[:200]
        logger.warning("pick %s/%s cannot be read and is passed over: %s", store.url, key, why)
        return None


def _checked_who(who: str | None) -> str:
    """Return a name on one line; that of the login if none is given."""
    if who is None:
        try:
            who = getpass.getuser()
        except (OSError, KeyError, ImportError):  # no such user, or none at all
            who = ""
    name = " ".join(who.split())
    if not 0 < len(name) <= MAX_WHO:
        raise InvalidInput(
            f"{name[:40]!r} does not tell who picked",
            f"1 to {MAX_WHO} characters",
            "add --who NAME",
        )
    return name


def _checked_note(note: str) -> str:
    if len(note) > MAX_NOTE:
        raise InvalidInput(f"a note of {len(note)} characters", f"at most {MAX_NOTE}", "shorten it")
    return note


def _known(condition: Condition | None) -> dict[str, float] | None:
    quantities = () if condition is None else condition.quantities()
    return {path: float(v) for path, v in quantities if isinstance(v, (int, float))} or None


def _features(selection: "Selection") -> dict[int, dict[str, float]]:
    rows = {
        one.member: {**one.components, "predicted_f1": one.predicted_f1}
        for one in selection.candidates
    }
    return {
        member: {name: float(value) for name, value in row.items() if math.isfinite(value)}
        for member, row in rows.items()
    }
