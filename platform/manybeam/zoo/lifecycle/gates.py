"""Gates: what a version must show before an alias may point at it.

A version must be what was registered and answer as it did then. One that is to replace a serving
version must also not be worse: on no condition by more F1 than is allowed and beyond noise, and
not worse calibrated. What the old version was measured on and the new one was not counts against
the new one: nobody knows what instruments there would get.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from manybeam.errors import Corrupt, NotFound
from manybeam.spec.job import Gates
from manybeam.zoo.compare import (
    NOT_MEASURED,
    NUMBERS_CHANGED,
    OTHER_FRAMES,
    Difference,
    compare,
    differing_frames,
)
from manybeam.zoo.integrity.verify import verify
from manybeam.zoo.matrix import ENSEMBLE, Matrix
from manybeam.zoo.records import Record
from manybeam.zoo.registry import Zoo

BYTES, ANSWERS, STATUS = "bytes", "self-test", "status"
REGRESSION, CALIBRATION = "regression", "calibration"
NEVER_FORCED = (BYTES, STATUS)  # what is damaged or put aside cannot serve, whoever insists


@dataclass(frozen=True)
class Verdict:
    """What one gate says.

    Attributes:
        gate: `bytes`, `self-test`, `status`, `regression` or `calibration`.
        passed: whether it lets the version through.
        what: in words, with the numbers.
        condition: the condition it speaks of; "" if of the whole version.
    """

    gate: str
    passed: bool
    what: str
    condition: str = ""

    @property
    def words(self) -> str:
        """The gate, the condition if there is one, and what it says."""
        return f"{' on '.join(filter(None, (self.gate, self.condition)))}: {self.what}"


def judge(zoo: Zoo, old: str, new: Record, gates: Gates | None = None) -> tuple[Verdict, ...]:
    """Return what every gate says of a version.

    Args:
        zoo: where both are.
        old: reference of the version it would replace; "" to ask only whether it is whole.
        new: the version.
        gates: the limits; those of the job that made the version if left out.

    Raises:
        ZooUnreachable: the zoo does not answer.
    """
    limits = gates_of(new) if gates is None else gates
    bytes_ = _bytes(zoo, new)
    verdicts = [_status(new), bytes_]
    if not bytes_.passed:
        return tuple(verdicts)  # the others would read what is damaged
    verdicts.append(_answers(zoo, new))
    if old:
        verdicts += _compared(zoo, old, new, limits)
    return tuple(verdicts)


def gates_of(record: Record) -> Gates:
    """Return the gates that the job of a version set; the defaults if it set none we can read."""
    try:
        return Gates.model_validate(record.job.get("gates") or {})
    except ValidationError:
        return Gates()


def _status(new: Record) -> Verdict:
    if new.archived is None:
        return Verdict(STATUS, passed=True, what="not archived")
    hint = f"manybeam zoo unarchive {new.ref} first"
    return Verdict(STATUS, passed=False, what=f"archived on {new.archived:%Y-%m-%d}; {hint}")


def _bytes(zoo: Zoo, new: Record) -> Verdict:
    """Read every file of a version from the store: what this machine keeps of it does not count."""
    checks = verify(zoo, new.ref)
    bad = [f"{one.what}: {one.told or one.signature}" for one in checks if not one.passed]
    fine = f"{len(checks)} files are as they were registered"
    return Verdict(BYTES, passed=not bad, what=", ".join(bad) or fine)


def _answers(zoo: Zoo, new: Record) -> Verdict:
    try:
        tests = zoo.test(new.ref)
    except NotFound as error:  # none was kept
        return Verdict(ANSWERS, passed=False, what=error.what)
    bad = [one for one in tests if not one.reproduces]
    told = ", ".join(f"member {one.member:02d} is off by {one.difference:.2g}" for one in bad)
    fine = f"{len(tests)} members answer as they did when they were registered"
    return Verdict(ANSWERS, passed=not bad, what=told or fine)


def _compared(zoo: Zoo, old: str, new: Record, gates: Gates) -> list[Verdict]:
    try:
        before = zoo.matrix(old)
    except Corrupt as error:  # the way to replace it has to stay open, for whoever gives a reason
        return [Verdict(REGRESSION, passed=False, what=f"{old} cannot be read: {error.what}")]
    after = zoo.matrix(new.ref)
    known = [one for one in compare(before, after) if one.old is not None]
    verdicts = [_regression(one, before, after, gates.max_regression) for one in known]
    if not known:
        what = f"{old} was measured on nothing, so there is nothing to lose"
        verdicts = [Verdict(REGRESSION, passed=True, what=what)]
    verdicts += _changed(old, before)
    return [*verdicts, *_calibration(before, after, gates.max_ece_increase)]


def _regression(one: Difference, before: Matrix, after: Matrix, allowed: float) -> Verdict:
    if one.reason in (NOT_MEASURED, NUMBERS_CHANGED) or one.difference is None:
        why = {
            NOT_MEASURED: "not measured on it",
            NUMBERS_CHANGED: "the condition's numbers changed between the two measurements",
        }.get(one.reason, one.reason)
        what = f"{why}; F1 was {one.old:.3f}; manybeam evaluate measures it"
        return Verdict(REGRESSION, passed=False, what=what, condition=one.condition)
    if one.is_significant is None:
        noise = _noise(one.condition, before, after)
        is_beyond_noise, told = one.difference + noise < 0, f"noise {noise:.3f}, {one.reason}"
    else:
        is_beyond_noise = one.is_significant
        told = f"95 % {one.low:+.3f} to {one.high:+.3f}, {one.frame_count} frames"
        told += f", {one.reason}" if one.reason else ""
    return Verdict(
        REGRESSION,
        passed=not (one.difference < -allowed and is_beyond_noise),
        what=f"F1 {one.old:.3f} -> {one.new:.3f}, {one.difference:+.3f} ({told})",
        condition=one.condition,
    )


def _noise(condition: str, before: Matrix, after: Matrix) -> float:
    """Return the half width of the difference's interval, from those of both scores; 0 if none.

    Only without counts by frame: the two are taken for independent, so that it is too wide.
    """
    parts = []
    for matrix, end in ((before, "f1_low"), (after, "f1_high")):
        values = matrix.values(ENSEMBLE, condition)
        parts.append(abs(values["f1"] - values[end]) if end in values else 0.0)
    return math.hypot(*parts)


def _changed(old: str, before: Matrix) -> Iterator[Verdict]:
    """Refuse where the old version's score is of numbers that its condition no longer has."""
    for condition, digest in before.superseded:
        was = before.at(condition, digest).value(ENSEMBLE, condition)
        if was is not None and before.value(ENSEMBLE, condition) is None:
            told = f"the condition's numbers changed; F1 of {old} was {was:.3f}; measure both again"
            yield Verdict(REGRESSION, passed=False, what=told, condition=condition)


def _calibration(before: Matrix, after: Matrix, limit: float) -> Iterator[Verdict]:
    """Compare the ensemble's mean calibration error over what both were measured on."""
    increases = {
        condition: new - old
        for condition in before.conditions
        if before.condition_digest(condition) == after.condition_digest(condition)
        if (old := before.value(ENSEMBLE, condition, "ece")) is not None
        if (new := after.value(ENSEMBLE, condition, "ece")) is not None
    }
    if not increases:
        return
    elsewhere = [one for one in increases if _is_elsewhere(one, before, after)]
    told = f"; {len(elsewhere)} of them on other frames" if elsewhere else ""
    mean, worst = math.fsum(increases.values()) / len(increases), max(increases, key=increases.get)  # type: ignore[arg-type]
    yield Verdict(
        CALIBRATION,
        passed=mean <= limit,
        what=f"calibration error {mean:+.3f} over {len(increases)} conditions, allowed "
        f"{limit:+.3f}; most on {worst}, {increases[worst]:+.3f}{told}",
    )


def _is_elsewhere(condition: str, before: Matrix, after: Matrix) -> bool:
    """Tell whether the ensemble's two scores on a condition are of different frames."""
    old, new = before.score(ENSEMBLE, condition), after.score(ENSEMBLE, condition)
    if old is None or new is None:
        return False
    return differing_frames(old, new).startswith(OTHER_FRAMES)
