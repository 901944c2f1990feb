"""Gates: checks of a version before an alias may point to it.

The files of a version must be unchanged, and its members must give the same answers as at
registration. A version that replaces the serving version must also not be worse: its F1 must not
be lower than allowed, beyond noise, on any condition, and its calibration must not be worse. A
condition that was measured for the old version only is a refusal, because the F1 of the new
version on it is unknown.
"""

import math
from collections.abc import Iterator, Sequence
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
        command: of a refusal, the command that mends it, or that shows more.
        is_missing: whether it refuses because a score is missing.
    """

    gate: str
    passed: bool
    what: str
    condition: str = ""
    command: str = ""
    is_missing: bool = False

    @property
    def words(self) -> str:
        """The gate, the condition if there is one, and the result."""
        return f"{' on '.join(filter(None, (self.gate, self.condition)))}: {self.what}"


def reasons(refusals: Sequence[Verdict]) -> list[str]:
    """Return one line for each reason: what is wrong, and the command that mends it.

    Conditions that were not measured are one reason, because one command measures them all.
    """
    missing = [one for one in refusals if one.is_missing]
    said = [f"{one.words}; run: {one.command}" for one in refusals if not one.is_missing]
    if len(missing) == 1:
        said.insert(0, f"{missing[0].words}; run: {missing[0].command}")
    elif missing:
        names = [one.condition for one in missing]
        first, _, _ = missing[0].command.partition(" --conditions ")
        flags = " ".join(f"--conditions '{name}'" for name in names)
        what = f"{REGRESSION}: not measured on {len(names)} conditions ({', '.join(names)})"
        said.insert(0, f"{what}; run: {first} {flags}")
    return said


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
    what = f"archived on {new.archived:%Y-%m-%d}"
    return Verdict(STATUS, passed=False, what=what, command=f"manybeam zoo unarchive {new.ref}")


def _bytes(zoo: Zoo, new: Record) -> Verdict:
    """Check every file of a version in the store, without the cache."""
    checks = verify(zoo, new.ref)
    bad = [f"{one.what}: {one.problem or one.signature}" for one in checks if not one.passed]
    fine = f"{len(checks)} files are as they were registered"
    is_unsigned = bool(bad) and all(one.is_whole for one in checks if not one.passed)
    command = f"manybeam zoo {'sign' if is_unsigned else 'verify'} {new.ref}"
    return Verdict(BYTES, passed=not bad, what=", ".join(bad) or fine, command=command)


def _answers(zoo: Zoo, new: Record) -> Verdict:
    try:
        tests = zoo.test(new.ref)
    except NotFound as error:  # there is no self-test
        command = f"manybeam zoo export {new.ref} --format safetensors, then manybeam zoo import"
        return Verdict(ANSWERS, passed=False, what=error.what, command=command)
    bad = [one for one in tests if not one.reproduces]
    faults = ", ".join(f"member {one.member:02d} differs by {one.difference:.2g}" for one in bad)
    fine = f"{len(tests)} members give the same answers as at registration"
    command = f"manybeam zoo test {new.ref}"
    return Verdict(ANSWERS, passed=not bad, what=faults or fine, command=command)


def _compared(zoo: Zoo, old: str, new: Record, gates: Gates) -> list[Verdict]:
    try:
        before = zoo.matrix(old)
    except Corrupt as error:  # with a reason, a damaged version can still be replaced
        what = f"{old} cannot be read: {error.what}"
        command = f"manybeam zoo verify {old}"
        return [Verdict(REGRESSION, passed=False, what=what, command=command)]
    after = zoo.matrix(new.ref)
    known = [one for one in compare(before, after) if one.old is not None]
    refs = (old, new.ref)
    verdicts = [_regression(one, before, after, gates.max_regression, refs) for one in known]
    if not known:
        what = f"{old} has no scores, so there is nothing to compare with"
        verdicts = [Verdict(REGRESSION, passed=True, what=what)]
    verdicts += _changed(old, new.ref, before)
    return [*verdicts, *_calibration(before, after, gates.max_ece_increase, refs)]


def _measuring(ref: str, condition: str) -> str:
    return f"manybeam evaluate {ref} --conditions '{condition}'"


def _regression(
    one: Difference, before: Matrix, after: Matrix, allowed: float, refs: tuple[str, str]
) -> Verdict:
    old, new = refs
    if one.reason == NUMBERS_CHANGED:
        return _unlike(old, new, one.condition, f"F1 of {old} was {one.old:.3f}")
    if one.difference is None:
        why = "not measured" if one.reason == NOT_MEASURED else one.reason
        return Verdict(
            REGRESSION,
            passed=False,
            what=f"{why}, F1 of {old} was {one.old:.3f}",
            condition=one.condition,
            command=_measuring(new, one.condition),
            is_missing=True,
        )
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
        command=f"manybeam zoo diff {old} {new}",
    )


def _unlike(old: str, new: str, condition: str, known: str) -> Verdict:
    """Return the refusal of a condition whose numbers changed between the two measurements."""
    return Verdict(
        REGRESSION,
        passed=False,
        what=f"the numbers of the condition changed, {known}",
        condition=condition,
        command=f"{_measuring(old, condition)} && {_measuring(new, condition)}",
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


def _changed(old: str, new: str, before: Matrix) -> Iterator[Verdict]:
    """Refuse conditions whose numbers changed after the measurement of the old version."""
    for condition, digest in before.superseded:
        was = before.at(condition, digest).value(ENSEMBLE, condition)
        if was is not None and before.value(ENSEMBLE, condition) is None:
            yield _unlike(old, new, condition, f"F1 of {old} was {was:.3f}")


def _calibration(
    before: Matrix, after: Matrix, limit: float, refs: tuple[str, str]
) -> Iterator[Verdict]:
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
    note = f", {len(elsewhere)} of them on other frames" if elsewhere else ""
    mean, worst = math.fsum(increases.values()) / len(increases), max(increases, key=increases.get)  # type: ignore[arg-type]
    yield Verdict(
        CALIBRATION,
        passed=mean <= limit,
        what=f"change of the calibration error {mean:+.3f} over {len(increases)} conditions, "
        f"allowed {limit:+.3f}, largest on {worst}, {increases[worst]:+.3f}{note}",
        command=f"manybeam zoo diff {refs[0]} {refs[1]} --score ece",
    )


def _is_elsewhere(condition: str, before: Matrix, after: Matrix) -> bool:
    """Return whether the scores of the two ensembles on a condition are of different frames."""
    old, new = before.score(ENSEMBLE, condition), after.score(ENSEMBLE, condition)
    if old is None or new is None:
        return False
    return differing_frames(old, new).startswith(OTHER_FRAMES)
