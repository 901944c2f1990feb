"""What a person does with a rollout: start it, look at it, promote its version, roll it back.

They write to the database, and a promotion or rollback of what serves to the zoo. No service has to
run; one that runs follows within 5 s, and within 10 s if it has to load a version first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manybeam.db.deployment import open_database
from manybeam.db.serving.comparison import Compared
from manybeam.db.serving.rollouts import (
    PROMOTED,
    ROLLED_BACK,
    Kind,
    Rollout,
    Rollouts,
)
from manybeam.db.tokens import Instruments
from manybeam.errors import Conflict, InvalidInput, ManybeamError, NotFound, ZooUnreachable
from manybeam.predictor.pixel_size import policies_of, sizes_of_members_pm
from manybeam.serve.query import is_label
from manybeam.spec.elements import symbol_of
from manybeam.spec.facility import facility_library
from manybeam.zoo.lifecycle import life
from manybeam.zoo.lifecycle.changes import version_at
from manybeam.zoo.records import Record, Ref

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.spec import Library
    from manybeam.zoo.lifecycle.proposals import Promotion, PromotionProposal
    from manybeam.zoo.registry import Zoo


@dataclass(frozen=True)
class Started:
    """A rollout that was started.

    Attributes:
        rollout: it.
        warnings: what a person should know, a sentence each.
    """

    rollout: Rollout
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        rollout: that was ended; None if none ran.
        move: of the alias; None if it was not moved.
        serves: the version that serves now, "" if none does; None if the zoo does not answer.
    """

    rollout: Rollout | None
    move: "Promotion | None"
    serves: str | None


def start(
    zoo: "Zoo",
    kind: Kind,
    ref: str,
    *,
    share: float,
    instruments: Sequence[str] = (),
    who: str,
    reason: str = "",
) -> Started:
    """Start a rollout of a version beside the one that serves.

    The weights of both versions are read and checked first.

    Args:
        zoo: the zoo.
        kind: `shadow` or `canary`.
        ref: the new version.
        share: of the frames, above 0 and at most 1.
        instruments: ids of the instruments whose frames count; all if empty.
        who: the person, for the audit log.
        reason: for the audit log.

    Raises:
        UnknownRef: there is no such version.
        InvalidInput: the reference is of one member, or an instrument cannot have such an id.
        Conflict: it serves already, none serves, it is archived, or another rollout runs.
        Corrupt: its weights differ from those registered.
    """
    new = zoo.resolve(ref)
    base = _checked_pair(zoo, new, ref)
    for one in instruments:
        if not one or not is_label(one):
            raise InvalidInput(
                f"{one[:80]!r} cannot be the id of an instrument",
                "1 to 200 letters, digits, spaces and . _ : / @ -",
                "manybeam instrument ls lists those with a token",
            )
    warnings = [*_differences(zoo, base, new)]
    database = open_database()
    rollout = Rollouts(database).start(
        kind,
        new.ref,
        base.ref,
        share=share,
        instruments=instruments,
        who=who,
        reason=reason,
    )
    known = {one.id for one in Instruments(database).list() if one.retired is None}
    return Started(rollout, (*warnings, *_unknown(instruments, known)))


def compared(kind: Kind, *, with_ended: bool = False) -> list[Compared]:
    """Return the rollouts of a kind with the comparison so far, the newest first.

    Args:
        kind: `shadow` or `canary`.
        with_ended: also those that have ended.
    """
    rollouts = Rollouts(open_database())
    wanted = [one for one in rollouts.list() if one.kind == kind]
    return [
        Compared.of(one, rollouts.comparisons(one.id))
        for one in wanted
        if with_ended or one.ended is None
    ]


def promote(
    zoo: "Zoo",
    name: str,
    *,
    who: str,
    force: bool = False,
    reason: str = "",
    on_proposal: Callable[["PromotionProposal"], None] = lambda _: None,
) -> "tuple[Promotion, Rollout]":
    """Promote the version of the running rollout through the gates, and end the rollout.

    Args and errors are those of `zoo.lifecycle.life.promote`; `name` is the ensemble or the version
    of its rollout.

    Raises:
        NotFound: no rollout of this ensemble runs.
        RefusedByGate: the rollout goes on.
    """
    rollout = running(name)
    done = life.promote(
        zoo, rollout.ref, who=who, force=force, reason=reason, on_proposal=on_proposal
    )
    try:
        Rollouts(open_database()).end(rollout.id, PROMOTED, who=who, reason=reason)
    except Conflict as error:
        raise Conflict(
            f"{rollout.ref} serves now, but {error.what} meanwhile",
            error.why,
            f"manybeam zoo rollback {rollout.ensemble} if it should not serve",
        ) from error
    return done, rollout


def rollback(zoo: "Zoo", name: str, *, who: str, reason: str = "") -> RolledBack:
    """End the running rollout, so that its version answers no more frames.

    The version before serves again if no rollout runs, or if the version of the rollout serves
    already: it was promoted by another road, or the promotion was broken off before its end. While
    the zoo is away, the rollout is ended all the same.

    Args:
        zoo: the zoo.
        name: the ensemble, or the version of its rollout.
        who: the person, for the audit log.
        reason: for the audit log.

    Raises: as `running` and `zoo.lifecycle.life.rollback` do.
    """
    try:
        rollout = running(name)
    except NotFound:
        if Ref.parse(name).version is not None:
            raise
        move = life.rollback(zoo, name, who=who, reason=reason)
        return RolledBack(None, move, move.ref)
    ended = Rollouts(open_database()).end(rollout.id, ROLLED_BACK, who=who, reason=reason)
    try:
        now = version_at(zoo.listing(ended.ensemble), life.SERVING)
    except ZooUnreachable:
        return RolledBack(ended, None, None)
    serves = "" if now is None else f"{ended.ensemble}@{now}"
    if serves != ended.ref:
        return RolledBack(ended, None, serves)
    try:
        move = life.rollback(zoo, ended.ensemble, who=who, reason=reason, expect=now)
    except ManybeamError as error:
        what = f"the {ended.kind} of {ended.ref} has ended, but that version still serves: "
        raise type(error)(what + error.what, error.why, error.hint) from error
    return RolledBack(ended, move, move.ref)


def running(name: str) -> Rollout:
    """Return the rollout of an ensemble that runs.

    Args:
        name: the ensemble, or the version of its rollout.

    Raises:
        NotFound: none runs.
        Conflict: the rollout is of another version.
    """
    asked = Ref.parse(name)
    found = Rollouts(open_database()).running(asked.name)
    if not found:
        raise NotFound(
            f"no shadow or canary of {asked.name} runs",
            "a rollout begins with serve shadow or serve canary",
            f"manybeam serve shadow {asked.name}@candidate; without one: manybeam zoo promote "
            f"{asked.name}@candidate",
        )
    if asked.version is not None and f"{asked.name}@{asked.version}" != found[0].ref:
        raise Conflict(
            f"the {found[0].kind} that runs is of {found[0].ref}, not of {name}",
            "an ensemble has one rollout at a time",
            f"manybeam serve {found[0].kind} shows it",
        )
    return found[0]


def _checked_pair(zoo: "Zoo", new: Record, ref: str) -> Record:
    """Return the version that serves, if the new one can run beside it."""
    if new.selected is not None:
        raise InvalidInput(
            f"{ref} is one member",
            "only whole versions run beside the one that serves",
            f"give {new.version_ref}",
        )
    now = version_at(zoo.listing(new.name), life.SERVING)
    if now is None:
        raise Conflict(
            f"no version of {new.name} serves",
            "a rollout runs beside the version that serves",
            f"manybeam zoo promote {new.ref}",
        )
    if now == new.version:
        others = [one.ref for one in zoo.listing(new.name) if one.version != now]
        raise Conflict(
            f"{new.ref} serves already",
            "a rollout needs another version of the ensemble",
            f"other versions: {', '.join(others[:10])}" if others else "train another one first",
        )
    if new.archived is not None:
        raise Conflict(
            f"{new.ref} is archived",
            "an archived version cannot serve",
            f"manybeam zoo unarchive {new.ref}",
        )
    return zoo.resolve(f"{new.name}@{now}")


def _differences(zoo: "Zoo", base: Record, new: Record) -> Iterator[str]:
    """Yield in what two versions differ so that they may not answer the same frames alike.

    The weights of both are read, and checked against their digests.
    """
    library = facility_library()
    old, now = (zoo.members(one.ref) for one in (base, new))
    facts = {
        "crystals": [_structures(one, library) for one in (old, now)],
        "elements": [_elements(one) for one in (old, now)],
    }
    for name, (before, after) in facts.items():
        if before != after:
            yield (
                f"{base.ref} and {new.ref} were trained for other {name}: "
                f"{_list(before)}, and {_list(after)}"
            )
    low_pm, high_pm = sizes_of_members_pm(old, library)
    new_low_pm, new_high_pm = sizes_of_members_pm(now, library)
    if new_low_pm > low_pm or new_high_pm < high_pm:
        yield (
            f"{new.ref} was trained for {new_low_pm:g} to {new_high_pm:g} pm a pixel, {base.ref} "
            f"for {low_pm:g} to {high_pm:g}: it may refuse frames that {base.ref} answers"
        )
    if len(now) > len(old):
        yield f"{new.ref} has {len(now)} members, {base.ref} {len(old)}: its answers take longer"


def _structures(members: Sequence["Member"], library: "Library") -> list[str]:
    return sorted({one.sample.structure for one in policies_of(members, library)})


def _elements(members: Sequence["Member"]) -> list[str]:
    known = {number for one in members for number in one.recipe.tiles.elements}
    return [symbol_of(number) for number in sorted(known)]


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "none"


def _unknown(instruments: Sequence[str], known: set[str]) -> Iterator[str]:
    """Yield which instruments have no token: a name that nobody sends would have no effect."""
    strange = [one for one in instruments if one not in known]
    if strange:
        yield (
            f"no instrument {', '.join(map(repr, strange))} was added here: only frames whose "
            "caller names it count (manybeam instrument ls)"
        )
