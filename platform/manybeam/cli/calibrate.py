"""`manybeam calibrate`: measure a version on simulated frames of many conditions."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say

if TYPE_CHECKING:
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.records import Record

OLD_NAME = "The old name of `manybeam calibrate`.\n\nExample: manybeam calibrate graphene"


def calibrate(
    ref: Annotated[str, typer.Argument(help="Which version: name, name@serving, name@3.")],
    *,
    policy: Annotated[
        list[str] | None, typer.Option(help="Policies to draw conditions from.")
    ] = None,
    frames: Annotated[int, typer.Option(min=200, help="Frames to simulate.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Measure every member of a version on simulated frames of many conditions.

    The result is the calibration set. Selection uses it, and the preferences that people record,
    to predict F1 with an interval, to choose sub-ensembles, to recognise frames out of
    distribution and to calibrate probabilities. A new calibration replaces the one before. If
    the command is interrupted, run it again: it continues with the finished frames.

    F1 is 1 if every atom is found and nothing else is, and 0 if no atom is found.

    Example: manybeam calibrate graphene --frames 600
    """
    from manybeam.cli.terminal.progress import Progress

    with Progress(f"start calibrating {ref}") as bars:
        from manybeam.jobs.calibrate import calibrate_ensemble
        from manybeam.learn.analysis.precision import KIND, PrecisionGate
        from manybeam.predictor.learned import performance_predictor
        from manybeam.settings import settings
        from manybeam.spec import Library
        from manybeam.zoo.registry import Zoo

        zoo = Zoo()
        record = calibrate_ensemble(
            zoo,
            ref,
            Library(settings().zoo),
            policies=policy or (),
            frame_count=frames,
            seed=seed,
            progress=lambda done, total: bars.update("calibrate", done, total, ""),
        )
    known = performance_predictor(zoo, record.ref)
    assert known is not None  # noqa: S101 - it was stored a moment ago
    emit(
        _rows(record, known.table),
        form,
        title=f"{record.ref} on {len(known.table)} simulated frames",
    )
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in known.weights.items())
    say(f"weights of the predicted F1: {weights}")
    say(f"a frame is out of distribution if every predicted F1 is below {known.poor_f1:.2f}")
    if gate := zoo.attached(record.ref, KIND):
        say(str(PrecisionGate.from_bytes(gate)))
    if record.member_count > 1:
        say(f"manybeam evaluate {record.ref} now also measures the members selected for each frame")


def _rows(record: "Record", table: "CalibrationSet") -> list[dict[str, Any]]:
    """Return one row for each member."""
    f1_nm = table.f1_nm
    is_best_nm = f1_nm == f1_nm.max(axis=1, keepdims=True)  # equal members share a frame
    return [
        {"member": f"{member:02d}", "policy": one.policy, "mean_f1": f1, "best_on": best}
        for member, one, f1, best in zip(
            table.members,
            record.members,
            f1_nm.mean(axis=0).tolist(),
            (is_best_nm / is_best_nm.sum(axis=1, keepdims=True)).mean(axis=0).tolist(),
            strict=True,
        )
    ]
