"""Speed of scoring large frames: 10,000 atoms are to take less than 0.2 s."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manybeam.learn.analysis.fitness import Lattice
from manybeam.learn.scoring.kinds import confusion, vacancies
from manybeam.learn.scoring.scores import match_frame, reliability, score_frames

RANDOM = np.random.default_rng(0)
SHAPE = (1040, 1040)
LATTICE = 10.0 * np.argwhere(np.ones((100, 100))) + 20
SCATTERED = RANDOM.uniform(0, 1040, (10_000, 2))


def found_of(
    truth: NDArray[np.floating], jitter_px: float, copies: int = 1
) -> NDArray[np.floating]:
    """Return atoms as an ensemble gives them: y, x, class, probability."""
    moved = [truth + RANDOM.normal(0, jitter_px, truth.shape) for _ in range(copies)]
    rows = np.concatenate(moved)
    return np.column_stack([rows, np.ones(len(rows)), RANDOM.uniform(0.5, 1, len(rows))])


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        pytest.param(LATTICE, found_of(LATTICE, 1.0), id="lattice"),
        pytest.param(LATTICE, found_of(LATTICE, 3.0), id="lattice, badly found"),
        pytest.param(LATTICE, found_of(LATTICE, 1.0, 2), id="lattice, found twice"),
        pytest.param(SCATTERED, found_of(SCATTERED, 2.0), id="scattered"),
        pytest.param(SCATTERED, found_of(RANDOM.uniform(0, 1040, (10_000, 2)), 0), id="unrelated"),
    ],
)
def test_score_a_frame_of_10_000_atoms(benchmark: Any, truth: Any, found: Any) -> None:
    benchmark(score_frames, [found], [truth], [10.0], 80.0, [SHAPE])


def test_kinds_of_a_frame_of_10_000_atoms(benchmark: Any) -> None:
    found = found_of(LATTICE, 1.0)
    truth = np.column_stack([LATTICE, np.full(10_000, 6)])
    matched = match_frame(found, truth, 10.0, SHAPE)
    benchmark(confusion, [matched], [found], [truth], (6, 14))


def test_vacancies_of_a_frame_of_10_000_atoms(benchmark: Any) -> None:
    benchmark(vacancies, LATTICE, 10.0, Lattice(bond_pm=100.0, bond_count=4), SHAPE)


def test_calibration_of_the_pixels_of_a_1024_frame(benchmark: Any) -> None:
    prob_yx = RANDOM.random((1024, 1024))
    benchmark(reliability, prob_yx, prob_yx > 0.5)
