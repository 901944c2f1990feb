"""The report of an adaptation: the new frames before and after, the scores, the decision."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from manybeam.cli.terminal.output import NOT_MEASURED, cell
from manybeam.data.disk import write_files
from manybeam.zoo.reports.markdown import plain
from manybeam.zoo.reports.plots import png

if TYPE_CHECKING:
    from manybeam.jobs.adapt import AdaptOutcome
    from manybeam.learn.adaptation.step_checkpoint import Step
    from manybeam.learn.analysis.condition_inference import Inferred
    from manybeam.learn.nets.ensemble import Ensemble

MOST_FRAMES = 4

Row = Mapping[str, Any]


def iterate_report(done: "AdaptOutcome", folder: Path) -> Path:
    """Write `before.png`, `after.png` and, last, `report.md`; return the path of the page.

    The files appear together, when all are complete.

    Args:
        done: the result of an adaptation, accepted or refused.
        folder: folder of the files; created if it does not exist.
    """
    from manybeam.learn.nets.ensemble import Ensemble

    members = done.round.members
    after = [one for one in members if one.index in done.round.parents]
    frames_nyx = done.frames_nyx[:MOST_FRAMES]
    files: dict[Path, bytes] = {}
    for name, ensemble in (
        ("before", Ensemble(done.parents)),
        ("after", Ensemble(after or done.round.tuned or done.parents)),
    ):
        answers = [ensemble.predict(frame, done.pixel_size_pm) for frame in frames_nyx]
        title = f"{name}: {_members_of(ensemble)}"
        figure = _atoms_figure(frames_nyx, [one.atoms for one in answers], title)
        files[folder / f"{name}.png"] = png(figure, 100)
    page = folder / "report.md"
    write_files({**files, page: ("\n".join(_page(done)) + "\n").encode()})
    return page


def assessment_rows(steps: "Sequence[Step]") -> list[dict[str, Any]]:
    """Return one row for each step: the scores before and after, and the decision."""
    return [
        {
            "member": f"{step.member:02d}",
            "round": step.round,
            "accepted": step.accepted,
            "fitness_before": step.before.fitness,
            "fitness_after": step.after and step.after.fitness,
            "f1_before": step.before.f1,
            "f1_after": step.after and step.after.f1,
            "twin_f1_before": step.before.twin_f1,
            "twin_f1_after": step.after and step.after.twin_f1,
            "noise_after": step.after and step.after.on_noise,
            "why": step.why,
        }
        for step in steps
    ]


def _page(done: "AdaptOutcome") -> Iterator[str]:
    from manybeam.learn.adaptation.acceptance import USELESS_F1

    found, count = done.round, len(done.frames_nyx)
    size = f"{done.pixel_size_pm:.4g} pm" if done.pixel_size_pm else "an unknown size"
    yield "# Adaptation to frames without labels"
    yield ""
    yield _verdict(done)
    yield ""
    yield f"{count} frames with pixels of {size}, digest `{found.frames_digest}`; "
    yield f"{found.round_count} round(s), {found.wall_s:.0f} s."
    yield ""
    yield "| before | after |"
    yield "|---|---|"
    yield "| ![before](before.png) | ![after](after.png) |"
    if not found.accepted and found.tuned:
        yield ""
        yield "The picture `after` shows the adapted members. The gate refused them."
    yield from _section("Scores of the members", assessment_rows(found.steps))
    yield ""
    yield (
        "`fitness` is a score on the new frames that needs no labels. `noise` is the same score "
        "on noise with the spectrum of the new frames. `f1` is the mean F1 over held-out truth: "
        "1 if every atom is found and nothing else is. `twin_f1` is F1 on labelled simulated "
        "frames that resemble the new ones. The gate ignores conditions on which F1 was below "
        f"{USELESS_F1:g} before the adaptation."
    )
    yield from _section("Held-out truth by condition", _held_rows(found.steps))
    if found.inferred:
        yield from _section("Inferred condition", _condition_rows(found.inferred))


def _verdict(done: "AdaptOutcome") -> str:
    if done.record is None:
        return f"**Refused: the version is unchanged.** {plain(done.round.why)}."
    names = ", ".join(f"{index:02d}" for index in sorted(done.round.parents))
    what = f"**Registered as candidate `{done.record.ref}`, adapted: {names}.**"
    return f"{what} {plain(done.round.why)}."


def _held_rows(steps: "Sequence[Step]") -> list[Row]:
    return [
        {
            "member": f"{step.member:02d}",
            "round": step.round,
            "condition": name,
            "f1_before": f1,
            "f1_after": step.after.held[name][0]
            if step.after and name in step.after.held
            else None,
        }
        for step in steps
        for name, (f1, _) in step.before.held.items()
    ]


def _condition_rows(inferred: "Inferred") -> list[Row]:
    return [
        {
            "quantity": path,
            "median": one.median,
            "low (5 %)": one.low,
            "high (95 %)": one.high,
            "determined by the frames": "yes" if one.is_determined else "hardly",
        }
        for path, one in inferred.posterior.items()
    ]


def _section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a heading and a table; yield nothing if there are no rows."""
    if not rows:
        return
    yield from ("", f"## {title}", "")
    yield f"| {' | '.join(rows[0])} |"
    yield f"|{'---|' * len(rows[0])}"
    for row in rows:
        yield f"| {' | '.join(plain(cell(value, NOT_MEASURED)) for value in row.values())} |"


def _atoms_figure(frames_nyx: np.ndarray, atoms: Sequence[np.ndarray], title: str) -> Figure:
    """Return the frames one below the other; atoms are coloured by probability."""
    figure = Figure(figsize=(4.2, 0.5 + 4.2 * len(frames_nyx)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(frames_nyx), 1))
    for axis, frame_yx, found in zip(axes, frames_nyx, atoms, strict=True):
        low, high = np.nanpercentile(frame_yx, [1, 99.7])
        axis.imshow(frame_yx, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
        axis.scatter(found[:, 1], found[:, 0], c=found[:, 3], s=12, cmap="viridis", vmin=0, vmax=1)
        axis.set_title(f"{len(found)} atoms", fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def _members_of(ensemble: "Ensemble") -> str:
    return "members " + ", ".join(f"{index:02d}" for index in ensemble.indices)
