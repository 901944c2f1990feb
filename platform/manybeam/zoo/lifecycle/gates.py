"""Gates: checks of a version before an alias may point to it.

The files of a version must be unchanged, and its members must give the same answers as at
registration. A version that replaces the serving version must also not be worse: its F1 must not
be lower than allowed, beyond noise, on any condition, and its calibration must not be worse. A
condition that was measured for the old version only is a refusal, because the F1 of the new
version on it is unknown.
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
NEVER_FORCED = (BYTES, STATUS)  # a damaged or archived version cannot serve


@dataclass(frozen=True)
class Verdict:
    """The result of one gate.

    Attributes:
        gate: `bytes`, `self-test`, `status`, `regression` or `calibration`.
        passed: whether the gate accepts the version.
        what: the result in words, with numbers.
        condition: the condition of the check; "" for the whole version.
    """

    gate: str
    passed: bool
    what: str
    condition: str = ""

    @property
    def words(self) -> str:
        """The gate, the condition if there is one, and the result."""
        return f"{' on '.join(filter(None, (self.gate, self.condition)))}: {self.what}"


def check_gates(zoo: Zoo, old: str, new: Record, gates: Gates | None = None) -> tuple[Verdict, ...]:
    """Return the results of all gates for a version.

    Args:
        zoo: the zoo of both versions.
        old: reference of the version that would be replaced; "" to check only the new version.
        new: the new version.
        gates: the limits; if left out, those of the job that made the version.

    Raises:
        ZooUnreachable: the zoo does not answer.
    """
    limits = gates_of(new) if gates is None else gates
    bytes_ = _bytes(zoo, new)
    verdicts = [_status(new), bytes_]
    if not bytes_.passed:
        return tuple(verdicts)  # the other gates would read damaged files
    verdicts.append(_answers(zoo, new))
    if old:
        verdicts += _compared(zoo, old, new, limits)
    return tuple(verdicts)


def gates_of(record: Record) -> Gates:
    """Return the gates in the job of a version; the defaults if it has none that can be read."""
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
    """Check every file of a version in the store, without the cache."""
    checks = verify(zoo, new.ref)
    bad = [f"{one.what}: {one.problem or one.signature}" for one in checks if not one.passed]
    fine = f"{len(checks)} files are as they were registered"
    return Verdict(BYTES, passed=not bad, what=", ".join(bad) or fine)


def _answers(zoo: Zoo, new: Record) -> Verdict:
    try:
        tests = zoo.test(new.ref)
    except NotFound as error:  # there is no self-test
        return Verdict(ANSWERS, passed=False, what=error.what)
    bad = [one for one in tests if not one.reproduces]
    faults = ", ".join(f"member {one.member:02d} differs by {one.difference:.2g}" for one in bad)
    fine = f"{len(tests)} members give the same answers as at registration"
    return Verdict(ANSWERS, passed=not bad, what=faults or fine)


def _compared(zoo: Zoo, old: str, new: Record, gates: Gates) -> list[Verdict]:
    try:
        before = zoo.matrix(old)
    except Corrupt as error:  # with a reason, a damaged version can still be replaced
        return [Verdict(REGRESSION, passed=False, what=f"{old} cannot be read: {error.what}")]
    after = zoo.matrix(new.ref)
    known = [one for one in compare(before, after) if one.old is not None]
    verdicts = [_regression(one, before, after, gates.max_regression) for one in known]
    if not known:
        what = f"{old} has no scores, so there is nothing to compare with"
        verdicts = [Verdict(REGRESSION, passed=True, what=what)]
    verdicts += _changed(old, before)
    return [*verdicts, *_calibration(before, after, gates.max_ece_increase)]


def _regression(one: Difference, before: Matrix, after: Matrix, allowed: float) -> Verdict:
    if one.reason in (NOT_MEASURED, NUMBERS_CHANGED) or one.difference is None:
        why = {
            NOT_MEASURED: "not measured on it",
            NUMBERS_CHANGED: "the numbers of the condition changed between the two measurements",
        }.get(one.reason, one.reason)
        what = f"{why}; F1 of the old version was {one.old:.3f}; manybeam evaluate measures it"
        return Verdict(REGRESSION, passed=False, what=what, condition=one.condition)
    if one.is_significant is None:
        noise = _noise(one.condition, before, after)
        is_beyond_noise, details = one.difference + noise < 0, f"noise {noise:.3f}, {one.reason}"
    else:
        is_beyond_noise = one.is_significant
        details = f"95 % {one.low:+.3f} to {one.high:+.3f}, {one.frame_count} frames"
        details += f", {one.reason}" if one.reason else ""
    return Verdict(
        REGRESSION,
        passed=not (one.difference < -allowed and is_beyond_noise),
        what=f"F1 {one.old:.3f} -> {one.new:.3f}, {one.difference:+.3f} ({details})",
        condition=one.condition,
    )


def _noise(condition: str, before: Matrix, after: Matrix) -> float:
    """Return the half width of the interval of the difference; 0 if there are no intervals.

    It is used only if there are no counts by frame. Both scores are assumed to be independent, so
    the interval is too wide.
    """
    parts = []
    for matrix, end in ((before, "f1_low"), (after, "f1_high")):
        values = matrix.values(ENSEMBLE, condition)
        parts.append(abs(values["f1"] - values[end]) if end in values else 0.0)
    return math.hypot(*parts)


def _changed(old: str, before: Matrix) -> Iterator[Verdict]:
    """Refuse conditions whose numbers changed after the measurement of the old version."""
    for condition, digest in before.superseded:
        was = before.at(condition, digest).value(ENSEMBLE, condition)
        if was is not None and before.value(ENSEMBLE, condition) is None:
            what = (
                f"the numbers of the condition changed; F1 of {old} was {was:.3f}; measure both "
                "versions again"
            )
            yield Verdict(REGRESSION, passed=False, what=what, condition=condition)


def _calibration(before: Matrix, after: Matrix, limit: float) -> Iterator[Verdict]:
    """Compare the mean calibration error of the ensembles over their common conditions."""
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
    note = f"; {len(elsewhere)} of them on other frames" if elsewhere else ""
    mean, worst = math.fsum(increases.values()) / len(increases), max(increases, key=increases.get)  # type: ignore[arg-type]
    yield Verdict(
        CALIBRATION,
        passed=mean <= limit,
        what=f"change of the calibration error {mean:+.3f} over {len(increases)} conditions, "
        f"allowed {limit:+.3f}; largest on {worst}, {increases[worst]:+.3f}{note}",
    )


def _is_elsewhere(condition: str, before: Matrix, after: Matrix) -> bool:
    """Return whether the scores of the two ensembles on a condition are of different frames."""
    old, new = before.score(ENSEMBLE, condition), after.score(ENSEMBLE, condition)
    if old is None or new is None:
        return False
    return differing_frames(old, new).startswith(OTHER_FRAMES)
