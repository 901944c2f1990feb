"""Frames with truth, answered in several ways: by all members, selected members, each member.

The truth is used for scores only, never to choose members.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manybeam.jobs.test_sets import LabelledFrame

if TYPE_CHECKING:
    from manybeam.learn.nets.prediction import Prediction
    from manybeam.learn.scoring.scores import Scores
    from manybeam.predictor.selection import Selection
    from manybeam.spec import Condition, Library
    from manybeam.zoo.registry import Zoo

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answered:
    """One frame, answered by all members and by the selected members.

    Attributes:
        frame: the frame and its truth.
        everyone: the plain mean of all members.
        selected: the answer of the selected members.
        selection: the selected members, and the reasons.
    """

    frame: LabelledFrame
    everyone: "Prediction"
    selected: "Prediction"
    selection: "Selection"

    @property
    def predicted(self) -> tuple[float, float, float]:
        """Predicted F1 of the selected answer, with both ends of its 90 % interval."""
        known = self.selection.predicted(self.selected.members)
        return (known.f1, known.low, known.high) if known else (float("nan"),) * 3


def answer_each(
    zoo: "Zoo", ref: str, library: "Library", frames: Iterable[LabelledFrame]
) -> Iterator[Answered]:
    """Answer each frame with all members, and with the selected members.

    Args:
        zoo: zoo of the version, its scores and its calibration set.
        ref: the version.
        library: conditions and policies by id.
        frames: frames with their truth.
    """
    from manybeam.data.io.frame import Frame
    from manybeam.predictor.answer import Question
    from manybeam.predictor.predictor import Predictor
    from manybeam.predictor.versions.of_zoo import ZooVersions

    predictor = Predictor(ZooVersions(zoo), library)
    for frame in frames:
        seen, question = (
            Frame(frame.frame_yx, frame.pixel_size_pm),
            Question(ref, is_selecting=True),
        )
        answer = predictor.answer(seen, question)
        assert answer.selection is not None  # noqa: S101 - the frame is large enough
        yield Answered(frame, answer.whole, answer.prediction, answer.selection)


def score(found: Sequence[Array], frames: Sequence[LabelledFrame]) -> "Scores":
    """Return the scores of the atoms found in each frame."""
    from manybeam.learn.scoring.scores import score_frames

    truth, sizes = [one.truth for one in frames], [one.pixel_size_pm for one in frames]
    shapes = [(one.frame_yx.shape[0], one.frame_yx.shape[1]) for one in frames]
    return score_frames(found, truth, sizes, None, shapes)


def score_row(answer: str, found: Sequence[Array], frames: Sequence[LabelledFrame]) -> Row:
    """Return the scores of one way to answer as a row of a table."""
    scores = score(found, frames)
    return {
        "answer": answer,
        "f1": scores.f1,
        "low": scores.f1_low,
        "high": scores.f1_high,
        "precision": scores.precision,
        "recall": scores.recall,
        "rmse_pm": scores.rmse_pm,
    }


def condition_row(condition: "Condition", answers: Sequence[Answered], *, is_unseen: bool) -> Row:
    """Return the F1 of all members, of the selected ones and of the best one on a condition.

    The best member is known only from the truth: a perfect choice of one member for the whole
    condition. Predicted F1 and its interval are means over the frames; `warned` counts the frames
    that were called out of distribution.
    """
    frames = [one.frame for one in answers]
    alone = {
        member: score([one.everyone.member_atoms[place] for one in answers], frames).f1
        for place, member in enumerate(answers[0].everyone.members)
    }
    best = max(alone, key=lambda member: alone[member])
    predicted = np.array([one.predicted for one in answers])
    reached = np.array([score([one.selected.atoms], [one.frame]).f1 for one in answers])
    return {
        "condition": condition.id,
        "title": condition.title,
        "is_unseen": is_unseen,
        "frames": len(frames),
        "in_interval": int(((predicted[:, 1] <= reached) & (reached <= predicted[:, 2])).sum()),
        "warned": sum(bool(one.selection.is_drifted) for one in answers),
        "members": {f"{member:02d}": f1 for member, f1 in alone.items()},
        "everyone": score([one.everyone.atoms for one in answers], frames).f1,
        "selected": score([one.selected.atoms for one in answers], frames).f1,
        "best": alone[best],
        "best_member": best,
        "predicted_f1": float(predicted[:, 0].mean()),
        "low": float(predicted[:, 1].mean()),
        "high": float(predicted[:, 2].mean()),
    }


def ways_to_answer(answers: Sequence[Answered]) -> list[Row]:
    """Return the scores of each way to answer, the best member last."""
    from manybeam.learn.scoring.classical import detect

    frames = [one.frame for one in answers]
    alone = [
        score_row(f"member {m:02d}", [one.everyone.member_atoms[place] for one in answers], frames)
        for place, m in enumerate(answers[0].everyone.members)
    ]
    classical = [detect(one.frame_yx, one.pixel_size_pm) for one in frames]
    ranked = sorted(alone, key=lambda row: float(row["f1"]))
    return [
        score_row("classical detector", classical, frames),
        {**ranked[0], "answer": f"worst member ({ranked[0]['answer']})"},
        score_row("all members", [one.everyone.atoms for one in answers], frames),
        score_row("selected members", [one.selected.atoms for one in answers], frames),
        {**ranked[-1], "answer": f"best member ({ranked[-1]['answer']})"},
    ]


def verdict_words(
    verdict: str, reasons: Sequence[str], predicted: tuple[float, float, float]
) -> str:
    """Return the verdict on a frame with the numbers beside which it stands.

    Args:
        verdict: `ok` or `out-of-distribution`.
        reasons: reasons of the selection; those of the verdict begin with its words.
        predicted: predicted F1 of the answer, and both ends of its 90 % interval.

    Example:
        >>> verdict_words("ok", ["the frame is like 16k"], (0.85, 0.77, 0.93))
        'ok, predicted F1 0.85 (90 % interval 0.77 to 0.93)'
    """
    f1, low, high = predicted
    words = verdict.replace("-", " ")
    why = [one.removeprefix(f"{words}: ") for one in reasons if one.startswith(f"{words}: ")]
    numbers = f"predicted F1 {f1:.2f} (90 % interval {low:.2f} to {high:.2f})"
    return "; ".join([f"{words}, {numbers}", *why])


def truth_words(predicted: tuple[float, float, float], f1: float) -> str:
    """Return how the true F1 of an answer compares with the predicted one.

    Example:
        >>> truth_words((0.85, 0.77, 0.93), 0.87)
        'the true F1 is 0.87, inside the interval'
        >>> truth_words((0.48, 0.30, 0.66), 0.83)
        'the true F1 is 0.83, better than predicted'
    """
    _, low, high = predicted
    if round(low, 2) <= round(f1, 2) <= round(high, 2):
        return f"the true F1 is {f1:.2f}, inside the interval"
    word = "better" if f1 > high else "worse"
    return f"the true F1 is {f1:.2f}, {word} than predicted"


def member_names(members: Sequence[int]) -> str:
    """Return members for people.

    Example:
        >>> member_names([4, 5])
        'members 04, 05'
    """
    names = ", ".join(f"{member:02d}" for member in members)
    return f"member {names}" if len(members) == 1 else f"members {names}"
