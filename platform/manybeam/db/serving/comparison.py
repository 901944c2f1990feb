"""How the two versions of a rollout answered, read from the sums that replicas add up.

Latencies are counts in buckets of equal ratio, so that percentiles of all replicas together are
known to 5 %.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from manybeam.db.serving.rollouts import LOADING, Rollout, added

Sums = dict[str, Any]
RATIO = 2 ** (1 / 8)  # of two edges of buckets
ALL = "all"  # instruments together


@dataclass(frozen=True)
class Side:
    """What one version did.

    Attributes:
        frames: that it answered.
        predicted_f1: mean; None if it is unknown.
        drifted: share of frames out of distribution; None if it is unknown.
        members: mean number in an answer; None without a frame.
        p50_ms, p99_ms: time of an answer; None if none was timed.
        timed: number of answers that were timed.
        late: answers that came after the deadline of the caller.
    """

    frames: int
    predicted_f1: float | None
    drifted: float | None
    members: float | None
    p50_ms: float | None
    p99_ms: float | None
    timed: int
    late: int

    @classmethod
    def of(cls, sums: Mapping[str, Any]) -> "Side":
        """Return that of the sums of one version."""
        buckets = sums.get("ms", {})
        return cls(
            frames=int(sums.get("frames", 0)),
            predicted_f1=_ratio(sums, "predicted_f1", "predicted"),
            drifted=_ratio(sums, "drifted", "judged"),
            members=_ratio(sums, "members", "frames"),
            p50_ms=percentile_ms(buckets, 0.5),
            p99_ms=percentile_ms(buckets, 0.99),
            timed=sum(buckets.values()),
            late=int(sums.get("late", 0)),
        )


@dataclass(frozen=True)
class Comparison:
    """Both versions of a rollout on the frames of one instrument, or of all.

    Attributes:
        base: the version that served at the start.
        new: the new version.
        agreed: share of the base's atoms that the new version found too; None if not compared.
        f1_between: F1 of the new version's atoms against those of the base.
        offset_pm: root mean square distance of the atoms that both found.
        skipped: frames that were to be compared, but there was no time or no room.
        failed: frames for which the new version gave no answer.
        fault: the last reason for that.
    """

    base: Side
    new: Side
    agreed: float | None
    f1_between: float | None
    offset_pm: float | None
    skipped: int
    failed: int
    fault: str

    @classmethod
    def of(cls, sums: Mapping[str, Any]) -> "Comparison":
        """Return that of the sums of one instrument."""
        between = sums.get("between", {})
        both = between.get("agreed", 0)
        alone = between.get("only_base", 0) + between.get("only_new", 0)
        squares = _ratio(between, "square_pm", "pairs")
        return cls(
            base=Side.of(sums.get("base", {})),
            new=Side.of(sums.get("new", {})),
            agreed=_share(both, both + between.get("only_base", 0)),
            f1_between=_share(2 * both, 2 * both + alone),
            offset_pm=None if squares is None else math.sqrt(squares),
            skipped=int(sums.get("skipped", 0)),
            failed=int(sums.get("failed", 0)),
            fault=str(sums.get("fault", "")),
        )


@dataclass(frozen=True)
class Compared:
    """The comparison so far of one rollout.

    Attributes:
        rollout: it.
        rows: (instrument, comparison); `ALL` first if there are several, "" for callers without an
            instrument, `OTHERS` for those beyond the number that is kept apart.
        fault: why the new version cannot be loaded, or the last failure; "" if there is none.
    """

    rollout: Rollout
    rows: tuple[tuple[str, Comparison], ...]
    fault: str = ""

    @classmethod
    def of(cls, rollout: Rollout, sums: Mapping[str, Sums]) -> "Compared":
        """Return that of the sums of each instrument."""
        own = {name: one for name, one in sums.items() if name != LOADING}
        faults = [sums.get(LOADING, {}), *own.values()]
        fault = next((str(one["fault"]) for one in faults if one.get("fault")), "")
        return cls(rollout, tuple(_rows(own)), fault)


def _rows(sums: Mapping[str, Sums]) -> Iterator[tuple[str, Comparison]]:
    total: Sums = {}
    for one in sums.values():
        total = added(total, one)
    if len(sums) > 1:
        yield ALL, Comparison.of(total)
    for instrument, one in sums.items():
        yield instrument, Comparison.of(one)


def percentile_ms(buckets: Mapping[str, int], share: float) -> float | None:
    """Return a percentile of times, as the middle of its bucket; None if there is none.

    Example:
        >>> percentile_ms({"0": 98, "80": 2}, 0.5), percentile_ms({}, 0.5)
        (1.0442737824274138, None)
    """
    left = share * sum(buckets.values())
    for bucket in sorted(buckets, key=int):
        left -= buckets[bucket]
        if left <= 0:
            return float(RATIO ** (int(bucket) + 0.5))
    return None


def _ratio(sums: Mapping[str, Any], part: str, whole: str) -> float | None:
    return _share(sums.get(part, 0), sums.get(whole, 0))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
