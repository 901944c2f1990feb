"""The report a demo leaves: its sections, each with the pictures and tables behind one claim."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.cli.demo.report import Report
from manybeam.cli.demo.story import Story
from manybeam.cli.terminal.figures import answer_figure, reliability_figure, truth_figure
from manybeam.zoo.reports.plots import matrix_figure

Array = np.ndarray[Any, Any]


def write_report(story: Story, path: Path) -> Iterator[str]:
    """Write the page of a finished story and yield the line that says where it is."""
    record = story.record
    report = Report(
        f"Manybeam demo: {record.ref}",
        f"{record.member_count} members trained on simulated frames, judged on frames of the "
        f"condition {story.drift.id}, which none of them was trained on. Every frame here is "
        "simulated, so its truth is known; a number without its rivals would prove nothing.",
    )
    _answer(story, report)
    _matrix(story, report)
    _selection(story, report)
    _reliability(story, report)
    _round(story, report)
    _seconds(story, report)
    report.write(path)
    yield f"{path}, {path.stat().st_size / 1e6:.1f} MB, opens without a network"


def _answer(story: Story, report: Report) -> None:
    frame, size = story.unseen.frame(0), story.unseen.pixel_size_pm(0)
    report.section(
        "One answer",
        "The frame, the mean probability over members, their spread, and the atoms found.",
    )
    prediction = story.ensemble.predict(frame, size)
    report.picture(answer_figure(frame, prediction), f"Unseen frame, {size} pm a pixel")


def _matrix(story: Story, report: Report) -> None:
    from manybeam.zoo.matrix import member_label

    matrix = story.zoo.matrix(story.record.ref)
    report.section(
        "Members x conditions",
        "F1 of every member on every condition it was measured on; hatched means not measured.",
    )
    report.picture(matrix_figure(matrix), "F1, members by rows, conditions by columns")
    rows = [
        {"member": member_label(member), "condition": condition, **matrix.values(member, condition)}
        for member in matrix.scored
        for condition in matrix.conditions
    ]
    report.numbers("matrix", rows)


def _selection(story: Story, report: Report) -> None:
    answer = story.facts["selection"]
    report.section("Selection", f"Verdict {answer['verdict']}: {answer['why']}")
    rows = [
        {
            "member": row["member"],
            "chosen": row["chosen"],
            "predicted_f1": row["predicted_f1"],
            "interval": f"{row['low']:.2f} to {row['high']:.2f}",
            "why": row["why"],
        }
        for row in answer["candidates"]
    ]
    report.table("candidates", rows)
    report.section(
        "Against its rivals",
        "F1 on the unseen frames with its 95 % interval. The oracle knows the truth.",
    )
    report.table("rivals", story.facts["rivals"])


def _reliability(story: Story, report: Report) -> None:
    from manybeam.learn.scoring.scores import match_frame, reliability

    found, shape = story.atoms_of(story.ensemble), story.unseen.shape
    true = [
        match_frame(atoms, story.unseen.truth(i), story.unseen.pixel_size_pm(i), shape)
        for i, atoms in enumerate(found)
    ]
    probability = np.concatenate([atoms[:, 3] for atoms in found])
    curve = reliability(probability, np.concatenate([one.is_true for one in true]))
    report.section(
        "Reliability",
        "How often an atom of a given probability was true. Not calibrated: on a drifted "
        f"condition the line leaves the diagonal (expected calibration error {curve.ece:.3f}).",
    )
    line = ("ensemble", curve.mean_probability, curve.share_true, curve.count)
    report.picture(reliability_figure([line]), "Atoms of the unseen frames")


def _round(story: Story, report: Report) -> None:
    from manybeam.learn.nets.ensemble import Ensemble

    told = story.facts["round"]
    report.section("One round of adaptation", told["why"])
    report.table("round", told["rows"])
    frame, truth = story.unseen.frame(0), story.unseen.truth(0)
    size = story.unseen.pixel_size_pm(0)
    members = story.facts["round"]["members"]
    before = story.ensemble.predict(frame, size, members=members).atoms
    answers: list[tuple[str, Array]] = [("before", before)]
    if told["ref"]:
        after: Ensemble = story.zoo.ensemble(told["ref"])
        answers.append(("after", after.predict(frame, size, members=members).atoms))
    radius_px = 50.0 / (size or 16.0)
    report.picture(truth_figure(frame, truth, answers, radius_px), "Atoms against the truth")


def _seconds(story: Story, report: Report) -> None:
    report.section("Where the time went")
    rows = [{"step": name, "seconds": s} for name, s in story.facts.get("seconds", {}).items()]
    report.table("seconds", rows)
