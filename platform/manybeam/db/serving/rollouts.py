"""Rollouts: new versions that run beside what serves, and how both answered the same traffic.

A shadow answers frames after the serving version did, and nobody waits for it. A canary answers a
share of the frames, or those of some instruments. An ensemble has one rollout at a time.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy import Connection, Row, insert, or_, select, update

from manybeam.db.audit import append
from manybeam.db.database import Database, insert_if_new, now
from manybeam.db.tables import AuditHead, RolloutComparisonRow, RolloutRow
from manybeam.errors import Conflict, InvalidInput, NotFound

Kind = Literal["shadow", "canary"]
KINDS: tuple[Kind, ...] = ("shadow", "canary")
PROMOTED, ROLLED_BACK, FOLLOWED = "promoted", "rolled back", "followed by another"
LIMIT_S = 5.0  # of the reading of a replica, so that the next one is soon
# An instrument is what a caller writes, so only so many are kept apart; the rest is one more.
MOST_INSTRUMENTS = 200
# What no instrument can be called: the rest, and the loading of the new version.
OTHERS, LOADING = "(others)", "(loading)"


@dataclass(frozen=True)
class Rollout:
    """A version under traffic.

    Attributes:
        id: its number.
        ensemble: name of the ensemble.
        ref: the new version, as `graphene@4`.
        base: the version that served at the start. The rollout rests while another one serves.
        kind: `shadow` or `canary`.
        share: of the frames, above 0 and at most 1.
        instruments: ids of the instruments whose frames count; all if empty.
        started: when.
        started_by: the person.
        ended: when; None while it runs.
        ended_by: the person; "" while it runs.
        outcome: `promoted`, `rolled back`, `followed by another`, or "" while it runs.
    """

    id: int
    ensemble: str
    ref: str
    base: str
    kind: Kind
    share: float
    instruments: tuple[str, ...]
    started: datetime
    started_by: str
    ended: datetime | None = None
    ended_by: str = ""
    outcome: str = ""

    @property
    def words(self) -> str:
        """What it does, as `canary of graphene@4 with 10 % of the frames of STEM-1`."""
        whose = f" of {', '.join(self.instruments)}" if self.instruments else ""
        part = "all frames" if self.share == 1 else f"{100 * self.share:.3g} % of the frames"
        return f"{self.kind} of {self.ref} with {part}{whose}"


@dataclass(frozen=True)
class Watched:
    """What a replica reads every few seconds.

    Attributes:
        running: the rollouts that run.
        kept: versions that served before a promotion of the last hour.
        change: number of the last record of the audit log; it grows with every promotion.
    """

    running: tuple[Rollout, ...] = ()
    kept: tuple[str, ...] = ()
    change: int = 0


class Rollouts:
    """The rollouts of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(
        self,
        kind: Kind,
        ref: str,
        base: str,
        *,
        share: float = 1.0,
        instruments: Sequence[str] = (),
        who: str,
        reason: str = "",
    ) -> Rollout:
        """Return a new rollout of a version; one of the same version that runs is ended by it.

        One whose version serves already is ended too: it was promoted.

        Args:
            kind: `shadow` or `canary`.
            ref: the new version, as `graphene@4`.
            base: the version that serves now.
            share: of the frames, above 0 and at most 1.
            instruments: ids of the instruments whose frames count; all if empty.
            who: the person, for the audit log.
            reason: for the audit log.

        Raises:
            Conflict: a rollout of another version of the ensemble runs, or the same one.
            InvalidInput: the share is out of bounds.
        """
        if not 0 < share <= 1:
            raise InvalidInput(
                f"a share of {share:g} of the frames", "above 0 and at most 1", "--share 0.1"
            )
        whose = tuple(dict.fromkeys(instruments))
        wanted = {"ref": ref, "base": base, "kind": kind, "share": share, "instruments": [*whose]}
        with self._database.writing() as connection:
            # Whoever starts a second one waits here until this transaction has ended.
            connection.execute(select(AuditHead.number).with_for_update())
            ensemble = ref.partition("@")[0]
            for other in _found(connection, RolloutRow.ensemble == ensemble, _RUNS):
                if other.ref == base:
                    _end(connection, other, PROMOTED, who)
                    continue
                _check_follows(other, ref, base, kind, share, whose)
                _end(connection, other, FOLLOWED, who)
            row = {"ensemble": ensemble, "started": now(connection), "started_by": who, **wanted}
            made = connection.execute(insert(RolloutRow).values({**row, "outcome": ""}))
            (number,) = made.inserted_primary_key or (0,)
            details = {"rollout": int(number), **wanted}
            append(connection, f"{kind} started", ref, who=who, reason=reason, details=details)
            return _found(connection, RolloutRow.id == number)[0]

    def end(self, rollout_id: int, outcome: str, *, who: str, reason: str = "") -> Rollout:
        """Return a rollout that is ended now.

        Args:
            rollout_id: its number.
            outcome: `PROMOTED` or `ROLLED_BACK`.
            who: the person, for the audit log.
            reason: for the audit log.

        Raises:
            NotFound: there is no such rollout.
            Conflict: it has ended already; the message says who ended it.
        """
        with self._database.writing() as connection:
            connection.execute(select(AuditHead.number).with_for_update())
            found = _found(connection, RolloutRow.id == rollout_id)
            if not found:
                raise _unknown(rollout_id)
            if found[0].ended is not None:
                raise Conflict(
                    f"the {found[0].kind} of {found[0].ref} has ended already",
                    f"{found[0].ended_by} ended it at {found[0].ended:%H:%M:%S} UTC: "
                    f"{found[0].outcome}",
                    f"manybeam serve {found[0].kind} --all",
                )
            _end(connection, found[0], outcome, who, reason)
            return _found(connection, RolloutRow.id == rollout_id)[0]

    def running(self, ensemble: str = "") -> Sequence[Rollout]:
        """Return the rollouts that run, of one ensemble or of all."""
        with self._database.reading() as connection:
            return _found(connection, _RUNS, *_of(ensemble))

    def list(self, ensemble: str = "") -> Sequence[Rollout]:
        """Return all rollouts, of one ensemble or of all, the newest first."""
        with self._database.reading() as connection:
            return _found(connection, *_of(ensemble))[::-1]

    def watched(self, keep: timedelta = timedelta(hours=1)) -> Watched:
        """Return what a replica needs, by two small queries.

        Args:
            keep: how long after a promotion the version before is kept, for a rollback.
        """
        with self._database.reading(LIMIT_S) as connection:
            change = connection.execute(select(AuditHead.number)).scalar_one()
            since = now(connection) - keep
            promoted = (RolloutRow.outcome == PROMOTED) & (RolloutRow.ended > since)
            found = _found(connection, or_(_RUNS, promoted))
        running = tuple(one for one in found if one.ended is None)
        kept = tuple(dict.fromkeys(one.base for one in found if one.ended is not None))
        return Watched(running, kept, change)

    def add(self, rollout_id: int, more: Mapping[str, Mapping[str, Any]]) -> None:
        """Add to the comparisons of a rollout; several replicas may do so at once.

        Args:
            rollout_id: its number.
            more: for each instrument ("" for callers without one), what is added: see `added`.
                `new.frames` is the number of frames that the new version answered. Beyond
                `MOST_INSTRUMENTS`, what a new one adds is that of `OTHERS`.

        Raises:
            NotFound: there is no such rollout.
        """
        with self._database.writing() as connection:
            if not _found(connection, RolloutRow.id == rollout_id):
                raise _unknown(rollout_id)
            kept = _capped(_instruments(connection, rollout_id), more)
            for instrument, sums in sorted(kept.items()):  # two replicas lock in the same order
                key = {"rollout_id": rollout_id, "instrument": instrument}
                empty = {"frames": 0, "sums": {}, "changed": now(connection)}
                insert_if_new(connection, RolloutComparisonRow, {**key, **empty})
                own = (RolloutComparisonRow.rollout_id == rollout_id) & (
                    RolloutComparisonRow.instrument == instrument
                )
                held = select(RolloutComparisonRow.sums).where(own).with_for_update()
                total = added(connection.execute(held).scalar_one(), sums)
                values = {"sums": total, "frames": int(total.get("new", {}).get("frames", 0))}
                change = update(RolloutComparisonRow).where(own)
                connection.execute(change.values({**values, "changed": now(connection)}))

    def comparisons(self, rollout_id: int) -> dict[str, dict[str, Any]]:
        """Return the sums of each instrument; "" are callers without one."""
        wanted = select(RolloutComparisonRow.instrument, RolloutComparisonRow.sums).where(
            RolloutComparisonRow.rollout_id == rollout_id
        )
        with self._database.reading() as connection:
            rows = connection.execute(wanted.order_by(RolloutComparisonRow.instrument))
            return {row.instrument: dict(row.sums) for row in rows}


def added(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sums with others added: numbers are added, text is replaced.

    Example:
        >>> added({"new": {"frames": 2}, "fault": "a"}, {"new": {"frames": 1}, "fault": "b"})
        {'new': {'frames': 3}, 'fault': 'b'}
    """
    total = dict(before)
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = added(total.get(name, {}), value)
        elif isinstance(value, str):
            total[name] = value
        else:
            total[name] = total.get(name, 0) + value
    return total


def keyed(known: Collection[str], instrument: str) -> str:
    """Return the instrument if it is known or there is room for one more, else `OTHERS`."""
    if instrument in known or instrument in (LOADING, OTHERS):
        return instrument
    count = len(known) - sum(one in known for one in (LOADING, OTHERS))
    return instrument if count < MOST_INSTRUMENTS else OTHERS


def _capped(known: set[str], more: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is added, with instruments beyond the number that is kept as one."""
    kept: dict[str, dict[str, Any]] = {}
    for instrument, sums in sorted(more.items()):
        key = keyed(known, instrument)
        kept[key] = added(kept.get(key, {}), sums)
        known.add(key)
    return kept


def _instruments(connection: Connection, rollout_id: int) -> set[str]:
    own = RolloutComparisonRow.rollout_id == rollout_id
    return set(connection.execute(select(RolloutComparisonRow.instrument).where(own)).scalars())


_RUNS = RolloutRow.ended.is_(None)


def _unknown(rollout_id: int) -> NotFound:
    return NotFound(f"no rollout {rollout_id}", "", "manybeam serve shadow --all")


def _of(ensemble: str) -> Iterable[Any]:
    return (RolloutRow.ensemble == ensemble,) if ensemble else ()


def _check_follows(
    running: Rollout, ref: str, base: str, kind: Kind, share: float, whose: tuple[str, ...]
) -> None:
    """Refuse a rollout beside one of another version, or one that runs already."""
    is_same = (running.base, running.kind, running.share) == (base, kind, share)
    if running.ref == ref and not (is_same and running.instruments == whose):
        return
    raise Conflict(
        f"a {running.words} runs already",
        f"{running.started_by} started it at {running.started:%Y-%m-%d %H:%M} UTC; "
        "an ensemble has one rollout at a time",
        f"manybeam serve rollback {running.ensemble} ends it",
    )


def _end(
    connection: Connection, rollout: Rollout, outcome: str, who: str, reason: str = ""
) -> None:
    values = {"ended": now(connection), "ended_by": who, "outcome": outcome}
    connection.execute(update(RolloutRow).where(RolloutRow.id == rollout.id).values(values))
    details = {"rollout": rollout.id, "base": rollout.base, "outcome": outcome}
    append(
        connection, f"{rollout.kind} ended", rollout.ref, who=who, reason=reason, details=details
    )


def _found(connection: Connection, *which: Any) -> Sequence[Rollout]:
    """Return the rollouts that meet all conditions, oldest first."""
    wanted = select(*RolloutRow.__table__.columns).where(*which).order_by(RolloutRow.id)
    return [_as_rollout(row) for row in connection.execute(wanted)]


def _as_rollout(row: Row[*tuple[Any, ...]]) -> Rollout:
    return Rollout(
        id=row.id,
        ensemble=row.ensemble,
        ref=row.ref,
        base=row.base,
        kind=cast("Kind", row.kind),
        share=row.share,
        instruments=tuple(row.instruments),
        started=row.started,
        started_by=row.started_by,
        ended=row.ended,
        ended_by=row.ended_by or "",
        outcome=row.outcome,
    )
