"""An ensemble of the zoo on a labelled FrameSet, beside its rivals and what selection chooses.

    python tests/benchmarks/labelled_frames.py ptnc frames/ptnc --radius-pm 147

Selected: for each frame the members that selection chooses, without its truth. The classical
detector is tuned on these very frames, which flatters it.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.learn.scoring import classical
from manybeam.learn.scoring.scores import Scores, score_frames
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.zoo.registry import Zoo

Found = list[np.ndarray[Any, Any]]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ref")
    parser.add_argument("frames")
    parser.add_argument("--radius-pm", type=float, default=None)
    words = parser.parse_args()
    frames = FrameSet.open(words.frames)
    rows = _rows(words.ref, frames, words.radius_pm)
    print("| answer | F1 | 95 % interval | precision | recall | position RMSE, pm |")
    print("|---|---|---|---|---|---|")
    for name, s in rows:
        print(
            f"| {name} | {s.f1:.3f} | {s.f1_low:.3f} to {s.f1_high:.3f} "
            f"| {s.precision:.3f} | {s.recall:.3f} | {s.rmse_pm:.0f} |"
        )


def _rows(ref: str, frames: FrameSet, radius_pm: float | None) -> list[tuple[str, Scores]]:
    zoo = Zoo()
    record, ensemble, predictor = zoo.resolve(ref), zoo.ensemble(ref), Predictor.of_zoo(zoo)
    places = range(len(frames))
    truth = [frames.truth(i) for i in places]
    sizes = [frames.pixel_size_pm(i) for i in places]

    def scores(found: Sequence[Any]) -> Scores:
        return score_frames(found, truth, sizes, radius_pm, [frames.shape] * len(frames))

    answers = [ensemble.predict(frames.frame(i), sizes[i]) for i in places]
    alone = sorted(
        (
            (f"member {m:02d}", scores([one.member_atoms[k] for one in answers]))
            for k, m in enumerate(ensemble.indices)
        ),
        key=lambda row: row[1].f1,
    )
    selected: Found = []
    question = Question(record.ref, is_selecting=True)
    for i in places:
        frame, size = frames.frame(i), sizes[i]
        selection = predictor.rank(Frame(frame, size), question)[0].selection
        assert selection is not None
        selected.append(ensemble.predict(frame, size, members=selection.chosen).atoms)
    whole = [frames.frame(i) for i in places]
    blob, _ = classical.tune(whole, truth, sizes, radius_pm)
    print(f"mean of members: F1 {np.mean([s.f1 for _, s in alone]):.3f}\n")
    return [
        (
            "classical, tuned on these frames",
            scores([classical.detect(f, s, blob) for f, s in zip(whole, sizes, strict=True)]),
        ),
        (f"worst ({alone[0][0]})", alone[0][1]),
        (f"best ({alone[-1][0]})", alone[-1][1]),
        ("ensemble", scores([one.atoms for one in answers])),
        ("selected for each frame", scores(selected)),
    ]


if __name__ == "__main__":
    main()
