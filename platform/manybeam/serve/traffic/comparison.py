"""How the two versions of a rollout answered, as sums that replicas add up, and what they mean.

Latencies are counts in buckets of equal ratio, so that percentiles of all replicas together are
known to 5 %.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manybeam.errors import MissingPixelSize
from manybeam.learn.scoring.scores import match_frame
from manybeam.predictor.answer import Answer

Sums = dict[str, Any]
RATIO = 2 ** (1 / 8)  # of two edges of buckets


def answered(answer: Answer) -> Sums:
    """Return what one answer of one version adds: its members, drift and predicted F1."""
    known = answer.predicted_f1
    sums: Sums = {"frames": 1, "members": len(answer.members), "atoms": len(answer.atoms)}
    if answer.is_drifted is not None:
        sums |= {"judged": 1, "drifted": int(answer.is_drifted)}
    if known is not None:
        sums |= {"predicted": 1, "predicted_f1": float(known.f1)}
    return sums


def took(seconds: float) -> Sums:
    """Return what the time of one answer adds."""
    bucket = math.floor(math.log(max(seconds, 1e-6) * 1000, RATIO))
    return {"ms": {str(bucket): 1}}


def agreement(base: Answer, new: Answer) -> Sums:
    """Return what the atoms of two answers for one frame add.

    They are matched as found atoms are matched with the truth: one to one, within the radius used
    for scores, and atoms at the edges do not count. Nothing is added if there is no such radius.
    """
    shape = base.frame.pixels_yx.shape
    try:
        matched = match_frame(new.atoms, base.atoms, base.frame.pixel_size_pm, (shape[0], shape[1]))
    except MissingPixelSize:
        return {}
    agreed, only_new, only_base = matched.counts
    sums: Sums = {"frames": 1, "agreed": agreed, "only_base": only_base, "only_new": only_new}
    if base.frame.pixel_size_pm is not None:
        sums |= {"pairs": len(matched.square_pm), "square_pm": float(matched.square_pm.sum())}
    return sums


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
