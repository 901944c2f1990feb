"""What members found on the frames of one condition, and the scores made of it."""

import numpy as np
import pytest

from manybeam.jobs.evaluate import Judgements, Labelled

TRUTH = np.array([[20.0, 20.0, 42], [20.0, 40.0, 16], [40.0, 20.0, 16]])
FRAME = Labelled(np.zeros((64, 64), np.float32), TRUTH, 16.0)


def found(classes: tuple[int, int, int]) -> np.ndarray:
    return np.column_stack([TRUTH[:, :2], classes, [0.9, 0.9, 0.9]])


def test_kinds_told_apart_have_a_score_each() -> None:
    judgements = Judgements()
    judgements.add(0, found((1, 2, 1)), FRAME, None, (42, 16))
    values = judgements.values(0)
    assert values["f1"] == 1.0
    assert values["f1_Mo"] == pytest.approx(2 / 3)
    assert values["f1_S"] == pytest.approx(2 / 3)


def test_kinds_are_counted_over_all_blocks() -> None:
    first, second = Judgements(), Judgements()
    first.add(0, found((1, 2, 2)), FRAME, None, (42, 16))
    second.add(0, found((2, 2, 2)), FRAME, None, (42, 16))
    first.extend(second)
    assert first.values(0)["f1_Mo"] == pytest.approx(2 / 3)


def test_a_network_of_one_kind_has_no_such_scores() -> None:
    judgements = Judgements()
    judgements.add(0, found((0, 0, 0)), FRAME, None)
    assert not [
        name for name in judgements.values(0) if name.startswith("f1_") and name[3].isupper()
    ]
