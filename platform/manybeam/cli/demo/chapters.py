"""The report of a demo: the answer first, then the details, then what to do next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.cli.demo.comparison import in_words, member_names, score
from manybeam.cli.demo.report import Report
from manybeam.cli.demo.story import Story
from manybeam.cli.terminal.figures import (
    Shown,
    conditions_figure,
    doubt_figure,
    reliability_figure,
    truth_figure,
)
from manybeam.jobs.test_sets import LabelledFrame
from manybeam.zoo.reports.plots import matrix_figure

Array = np.ndarray[Any, Any]
WAYS = {"everyone": "all members", "selected": "selected members", "best": "best single member"}


def write_report(story: Story, path: Path) -> None:
    """Write the page of a finished story."""
    count = story.record.member_count
    report = Report(
        "Manybeam: which networks suit this frame?",
        "Manybeam trains many small networks that find atoms in microscope frames, and selects "
        "for each new frame those that suit it.",
    )
    report.text(
        f"This demo trained {count} networks on this machine. Each network is a member of one "
        "ensemble. The frames below are from a bad day: a condition that no member was "
        "measured on. All frames are simulated, so the true atoms are known."
    )
    _answer(story, report)
    _conditions(story, report)
    _members(story, report)
    _selection(story, report)
    _ways(story, report)
    _reliability(story, report)
    _round(story, report)
    _seconds(story, report)
    _next(story, report)
    report.write(path)


def _answer(story: Story, report: Report) -> None:
    """Show the result: three numbers, and one frame with both answers."""
    unseen = next(row for row in story.facts["compared"] if row["is_unseen"])
    report.figures(
        [
            (f"{unseen['everyone']:.2f}", f"F1 of all {story.record.member_count} members"),
            (f"{unseen['selected']:.2f}", "F1 of the selected members"),
            (
                f"{unseen['predicted_f1']:.2f}",
                "predicted F1 of the selected members, without the truth "
                f"({unseen['low']:.2f} to {unseen['high']:.2f})",
            ),
        ]
    )
    report.section("The answer")
    report.text(
        "F1 says how good an answer is: 1 means that every atom was found and nothing else, 0 "
        "means that no atom was found. The plain mean of all members is poor here, because some "
        "of them were trained on other conditions. Manybeam selects members for each frame, "
        "without the truth."
    )
    one, frame = story.typical, story.typical.frame
    selected = member_names(one.selection.chosen)
    shown = [
        _shown("all members", one.everyone.atoms, frame),
        _shown(selected, one.selected.atoms, frame),
    ]
    f1, low, high = one.predicted
    report.picture(
        doubt_figure(frame.frame_yx, frame.truth, frame.pixel_size_pm, shown),
        f"One unseen frame ({story.drift.title.lower()}; a pixel is {frame.pixel_size_pm:g} pm). "
        f"Left: the frame and its true atoms. Middle: all members. Right: the selected {selected}. "
        f"Predicted F1 of the selected answer: {f1:.2f} (90 % interval {low:.2f} to {high:.2f}). "
        f"Verdict: {in_words(one.selection.verdict)}. Of all unseen frames the one with the middle "
        "predicted F1 is shown.",
        name="demo-frame",
    )


def _conditions(story: Story, report: Report) -> None:
    rows = story.facts["compared"]
    report.section("Good days and bad days")
    report.text(
        "A condition is how the microscope and the sample were: dose, defocus, pixel size, "
        "contamination. Each line is one condition. On good days every answer is right. On bad "
        "days the mean of all members falls, and the selected members stay near the best single "
        "member. Nobody knows the best member in advance; here the truth shows which one it was."
    )
    report.picture(
        conditions_figure(rows, WAYS),
        f"F1 on each condition: {rows[0]['frames']} frames each, {rows[-1]['frames']} unseen ones.",
        name="demo-conditions",
    )
    report.table(
        "conditions",
        [
            {
                "condition": row["condition"],
                "all members": row["everyone"],
                "selected members": row["selected"],
                "best single member": row["best"],
                "predicted F1 (90 % interval)": _interval(row),
                "frames in the interval": f"{row['in_interval']} of {row['frames']}",
            }
            for row in rows
        ],
    )


def _members(story: Story, report: Report) -> None:
    from manybeam.zoo.matrix import member_label

    matrix = story.zoo.matrix(story.record.ref)
    best = {condition: matrix.best(condition) for condition in matrix.conditions}
    report.section("Members x conditions")
    report.text(
        "A policy is what a member was trained on: a range for each quantity of a condition. The "
        "members have different policies, so different members win on different days."
    )
    report.table(
        "members",
        [
            {
                "member": f"{member.index:02d}",
                "policy": member.policy,
                "trained on": story.library.policy(member.policy).title,
                "best on": [name for name, index in best.items() if index == member.index],
            }
            for member in story.record.members
        ],
    )
    report.picture(
        matrix_figure(matrix),
        "F1 of every member on every condition, measured on other frames than those above. "
        "Outlined: the best member.",
    )
    cells = [
        {"member": member_label(member), "condition": condition, **matrix.values(member, condition)}
        for member in matrix.scored
        for condition in matrix.conditions
    ]
    report.numbers("matrix", cells)


def _selection(story: Story, report: Report) -> None:
    selection = story.typical.selection
    report.section("Selection for the frame above")
    report.text(
        f"Before, the members were measured on {story.facts['calibrated']} simulated frames of "
        "many other conditions: the calibration set. From it Manybeam predicts the F1 of every "
        "member on a new frame, without its truth. The interval should hold in nine of ten "
        "frames; the table above says in how many it did."
    )
    report.text(f"Verdict: {in_words(selection.verdict)}. Reasons:")
    report.points(selection.reasons)
    report.table(
        "candidates",
        [
            {
                "member": f"{one.member:02d}",
                "selected": "yes" if one.member in selection.chosen else "",
                "predicted F1 (90 % interval)": _interval(vars(one)),
                "why": one.why,
            }
            for one in selection.candidates
        ],
    )


def _ways(story: Story, report: Report) -> None:
    report.section("All ways to answer")
    report.text(
        f"Scores on the {len(story.frames)} unseen frames. Precision is the share of the found "
        "atoms that are there, recall the share of the true atoms that were found, F1 their "
        "harmonic mean, with its 95 % interval over frames. The classical detector (difference of "
        "Gaussians) uses no network."
    )
    report.table(
        "ways",
        [
            {
                "answer": row["answer"],
                "F1": row["f1"],
                "95 % interval": f"{row['low']:.3f} to {row['high']:.3f}",
                "precision": row["precision"],
                "recall": row["recall"],
                "position error, pm": f"{row['rmse_pm']:.0f}",
            }
            for row in story.facts["ways"]
        ],
    )


def _reliability(story: Story, report: Report) -> None:
    from manybeam.learn.scoring.scores import beliefs, match_frame, reliability

    lines, errors = [], []
    for name in ("everyone", "selected"):
        found = [getattr(one, name).atoms for one in story.answered]
        matched = [
            match_frame(atoms, one.truth, one.pixel_size_pm, one.frame_yx.shape)
            for atoms, one in zip(found, story.frames, strict=True)
        ]
        curve = reliability(*beliefs(matched, found))
        lines.append((WAYS[name], curve.mean_probability, curve.share_true, curve.count))
        errors.append(f"{curve.ece:.3f} ({WAYS[name]})")
    report.section("Are the probabilities right?")
    report.text(
        "Of all atoms with a probability of 0.8, eight in ten should be there: the diagonal. The "
        "answer of the selected members is calibrated on the simulated frames that are most like "
        f"this one. Mean distance from the diagonal: {' and '.join(errors)}."
    )
    report.picture(reliability_figure(lines), "Atoms of the unseen frames", width=460)


def _round(story: Story, report: Report) -> None:
    done = story.facts["round"]
    report.section("One round of adaptation")
    report.text(
        "Members can adapt to frames that nobody labelled. Manybeam infers the condition of the "
        "frames, simulates labelled frames like them, and trains the selected members a little "
        "more. The acceptance gate compares the member before and after. Only what passes is "
        f"registered, as a candidate. Here the gate said: {done['why']}"
    )
    report.table("round", done["rows"])
    frame, members = story.typical.frame, done["members"]
    seen = (frame.frame_yx, frame.pixel_size_pm)
    before = story.ensemble.predict(*seen, members=members).atoms
    shown = [_shown("before", before, frame)]
    if done["ref"]:
        after = story.zoo.ensemble(done["ref"]).predict(*seen, members=members).atoms
        shown.append(_shown("after", after, frame))
    figure = truth_figure(frame.frame_yx, frame.truth, shown)
    report.picture(figure, "The same frame, before and after", width=400 * len(shown))


def _seconds(story: Story, report: Report) -> None:
    report.section("Where the time went")
    rows = [{"step": name, "seconds": s} for name, s in story.facts.get("seconds", {}).items()]
    report.table("seconds", rows)


def _next(story: Story, report: Report) -> None:
    home = f"MANYBEAM_HOME={story.out / 'platform'}"
    report.next_steps(
        "What to do next",
        "Run these in the project's folder, after `. .venv/bin/activate`.",
        [
            (f"{home} manybeam web", "Look at the members of this demo in a browser."),
            (
                f"{home} manybeam select FRAME.dm4 --show",
                "Ask which of them suit a graphene frame of your own.",
            ),
            ("manybeam train jobs/graphene-ten.yaml", "Train ten members that last."),
        ],
    )


def _shown(name: str, atoms: Array, frame: LabelledFrame) -> Shown:
    """Return an answer for a picture: its name with its F1 on this frame."""
    from manybeam.learn.scoring.scores import match_frame

    shape = (frame.frame_yx.shape[0], frame.frame_yx.shape[1])
    matched = match_frame(atoms, frame.truth, frame.pixel_size_pm, shape)
    return Shown(f"{name}: F1 {score([atoms], [frame]).f1:.2f}", atoms, matched)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['predicted_f1']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
