"""The report of a demo: what Manybeam is, one frame that shows it, the matrix, what to do next.

The details come after that. F1 is explained where it first stands.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manybeam.cli.demo.comparison import member_names, score, truth_words, verdict_words
from manybeam.cli.demo.pictures import answer_panel, frame_panel, truth_panel
from manybeam.cli.demo.report import GridRow, Report
from manybeam.cli.demo.story import Story
from manybeam.cli.terminal.figures import reliability_figure

Row = Mapping[str, Any]
WAYS = {"everyone": "all members", "selected": "selected members"}
CLEAR = 0.05  # difference of two F1 that the words speak of
TIE = 0.005  # members this near to the best of a condition are as good


def write_report(story: Story, path: Path) -> None:
    """Write the page of a finished story."""
    report = Report(
        "Manybeam: the right networks for each frame",
        "Manybeam finds atoms in microscope frames with an ensemble: many small networks, each "
        "trained for other imaging conditions. For every new frame it selects the networks that "
        "suit it, and predicts how good their answer is.",
    )
    _answer(story, report)
    _matrix(story, report)
    _next(story, report)
    _selection(story, report)
    _predicted(story, report)
    _members(story, report)
    _ways(story, report)
    _reliability(story, report)
    _round(story, report)
    _seconds(story, report)
    report.write(path)


def _answer(story: Story, report: Report) -> None:
    """Show the result: one unseen frame, its truth and both answers."""
    one, count = story.typical, story.record.member_count
    frame, unseen = one.frame, story.facts["compared"][-1]
    selected = member_names(one.selection.chosen)
    report.panels(
        [
            frame_panel(frame, "An unseen frame"),
            truth_panel(frame),
            answer_panel(frame, f"All {count} members", one.everyone.atoms),
            answer_panel(frame, f"Selected: {selected}", one.selected.atoms),
        ],
        name="demo-frame",
    )
    is_worse = unseen["selected"] - unseen["everyone"] > CLEAR
    report.text(
        "F1 says how good an answer is: 1 means that every atom was found and nothing else, 0 "
        "that no atom was found. A member is one network of the ensemble. The frame is from a day "
        f"that no member was measured on: {_uncapitalised(story.drift.title)}. "
        + (f"All {count} together are worse, because most were trained for other days. " * is_worse)
        + f"Over all {unseen['frames']} frames of that day, F1 is {unseen['everyone']:.2f} with "
        f"all members and {unseen['selected']:.2f} with those selected for each frame."
    )
    verdict = verdict_words(one.selection.verdict, one.selection.reasons, one.predicted)
    reached = score([one.selected.atoms], [frame]).f1
    report.text(
        f"The selection did not know the truth. Its verdict on this frame: {verdict}. Measured "
        f"afterwards, {truth_words(one.predicted, reached)}. This frame is shown because its "
        f"predicted F1 is the middle one of the {unseen['frames']}. All frames are simulated, so "
        "that the true atoms are known; the README has figures on real frames that people marked."
    )


def _matrix(story: Story, report: Report) -> None:
    """Show that different members win on different days, and what selection makes of it."""
    rows: list[Row] = story.facts["compared"]
    names = list(rows[0]["members"])
    winners = {name for row in rows for name in _winners(row) if not _is_tie_of_all(row)}
    policies = {f"{one.index:02d}": one.policy for one in story.record.members}
    report.section("Different days, different networks")
    report.text(
        "Each row is a day: an imaging condition, with its dose, defocus, pixel size and "
        "contamination. Each numbered column is a member: one network. The numbers are F1, "
        "outlined for the best members of the day. "
        f"{len(winners)} of {len(names)} members are best on some day. Nobody knows in advance "
        "which day it is; the selection uses the frame only."
    )
    columns = [(name, _policy_title(story, policies[name])) for name in names]
    columns += [("all", "all members together"), ("selected", "those that suit the frame")]
    grid = [
        GridRow(row["title"], _day(row), _values(row), [names.index(n) for n in _winners(row)])
        for row in rows
    ]
    mean = np.mean([line.values for line in grid], axis=0).tolist()
    grid.append(GridRow("Mean of all days", "", mean, is_last=True))
    report.grid("F1 on each day", columns, grid, apart=len(names))
    best = max(mean[: len(names)])
    report.text(
        f"Over all days: {mean[-1]:.2f} selected, {mean[-2]:.2f} all members together, "
        f"{best:.2f} the best single member, if one always takes the same. Every frame here was "
        "simulated for this table: no frame trained, calibrated or chose anything. "
        f"{rows[0]['frames']} frames of each day, {rows[-1]['frames']} of the unseen one."
    )
    report.numbers("matrix", rows)


def _next(story: Story, report: Report) -> None:
    home = f"MANYBEAM_HOME={shlex.quote(str(story.out / 'platform'))}"
    report.section("What to do next")
    report.text("Run these in the folder where you ran the demo, after `. .venv/bin/activate`.")
    report.steps(
        [
            (
                f"{home} manybeam web",
                "Open the pages of this zoo in a browser: http://127.0.0.1:8000.",
            ),
            (
                f"{home} manybeam predict FRAME.dm4 --atoms atoms.csv --png pictures",
                "Find the atoms in a graphene frame of your own; the members that suit it are "
                "selected. If the file does not state its pixel size, add `--pixel-size-pm`.",
            ),
            (
                "manybeam init lab\ncd lab\nmanybeam train jobs/quickstart.yaml",
                "Train on your own policy: before the last line, write the dose, the pixel size "
                "and the defocus of your microscope into a file of `lab/zoo/policies`, and name it "
                "in `lab/zoo/recipes/quickstart.yaml`.",
            ),
        ]
    )


def _selection(story: Story, report: Report) -> None:
    selection = story.typical.selection
    report.section("Why this choice for the frame above")
    report.text(
        f"Before, the members were measured on {story.facts['calibrated']} simulated frames of "
        "many other conditions: the calibration set. From it Manybeam predicts the F1 of every "
        "member on a new frame, without its truth."
    )
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


def _predicted(story: Story, report: Report) -> None:
    rows = story.facts["compared"]
    report.section("Is the predicted F1 right?")
    report.text(
        "The 90 % interval should hold in nine of ten frames. The best single member is known "
        "from the truth only: a perfect choice of one member for the whole day."
    )
    report.table(
        "conditions",
        [
            {
                "condition": row["condition"],
                "F1 of the selected": row["selected"],
                "F1 of the best member": row["best"],
                "predicted F1 (90 % interval)": _interval(row),
                "frames in the interval": f"{row['in_interval']} of {row['frames']}",
                "called out of distribution": f"{row['warned']} of {row['frames']}",
            }
            for row in rows
        ],
    )


def _members(story: Story, report: Report) -> None:
    report.section("Members and their policies")
    report.text(
        "A policy is what a member was trained on: a range for each quantity of a condition. "
        "The members are small networks of the same kind; only their policies differ."
    )
    report.table(
        "members",
        [
            {
                "member": f"{member.index:02d}",
                "policy": member.policy,
                "trained on": story.library.policy(member.policy).title,
                "training, s": round(member.wall_s),
            }
            for member in story.record.members
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
    for name in WAYS:
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
    shown = [answer_panel(frame, "Before", before)]
    if done["ref"]:
        after = story.zoo.ensemble(done["ref"]).predict(*seen, members=members).atoms
        shown.append(answer_panel(frame, "After", after))
    report.panels(shown)


def _seconds(story: Story, report: Report) -> None:
    report.section("Where the time went")
    rows = [{"step": name, "seconds": s} for name, s in story.facts.get("seconds", {}).items()]
    report.table("seconds", rows)


def _values(row: Row) -> list[float]:
    return [*row["members"].values(), row["everyone"], row["selected"]]


def _winners(row: Row) -> list[str]:
    """Return the best members of a condition; several if they are as good."""
    return [name for name, f1 in row["members"].items() if f1 >= row["best"] - TIE]


def _is_tie_of_all(row: Row) -> bool:
    return len(_winners(row)) == len(row["members"])


def _day(row: Row) -> str:
    return "the unseen frames" if row["is_unseen"] else ""


def _policy_title(story: Story, policy: str) -> str:
    return _uncapitalised(story.library.policy(policy).title)


def _uncapitalised(words: str) -> str:
    return words[:1].lower() + words[1:]


def _interval(row: Row) -> str:
    return f"{row['predicted_f1']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
