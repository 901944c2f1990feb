"""`manybeam rehearse`: teach selection what an ensemble's members do under which conditions."""

from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say


def rehearse(
    ref: Annotated[str, typer.Argument(help="Which version: name, name@serving, name@3.")],
    *,
    policy: Annotated[
        list[str] | None, typer.Option(help="Policies to draw conditions from.")
    ] = None,
    frames: Annotated[int, typer.Option(min=200, help="Frames to simulate.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    form: FormOption = Form.auto,
) -> None:
    """Simulate labelled frames under many conditions and note what every member makes of them.

    From then on predicted F1, its interval, sub-ensembles, `none fits` and calibrated
    probabilities are learnt from it, and from every pick that people make (at once). The last
    rehearsal counts. Interrupted, the same command goes on where it was.

    Example: manybeam rehearse graphene --frames 600
    """
    from manybeam.cli.terminal.progress import Progress
    from manybeam.jobs.calibrate import calibrate_ensemble
    from manybeam.predictor.learned import performance_predictor
    from manybeam.settings import settings
    from manybeam.spec import Library
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    with Progress() as bars:
        record = calibrate_ensemble(
            zoo,
            ref,
            Library(settings().zoo),
            policies=policy or (),
            frame_count=frames,
            seed=seed,
            progress=lambda done, total: bars.update("rehearse", done, total, ""),
        )
    known = performance_predictor(zoo, record.ref)
    assert known is not None  # noqa: S101 - it was kept a moment ago
    f1_nm = known.table.f1_nm
    is_best_nm = f1_nm == f1_nm.max(axis=1, keepdims=True)  # a tie is shared
    rows = [
        {"member": f"{member:02d}", "policy": one.policy, "mean_f1": f1, "best_on": best}
        for member, one, f1, best in zip(
            known.table.members,
            record.members,
            f1_nm.mean(axis=0).tolist(),
            (is_best_nm / is_best_nm.sum(axis=1, keepdims=True)).mean(axis=0).tolist(),
            strict=True,
        )
    ]
    emit(rows, form, title=f"{record.ref} on {len(known.table)} rehearsed frames")
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in known.weights.items())
    say(f"the forecast weighs {weights}; none fits below F1 {known.poor_f1:.2f}")
