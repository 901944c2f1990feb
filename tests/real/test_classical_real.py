"""learn.classical on real frames: single Pt atoms that people marked."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from manybeam.data.io.reading import read_frames, read_truth_csv
from manybeam.learn.scoring.classical import detect, tune
from manybeam.learn.scoring.scores import score_frames

Array = NDArray[np.floating]

PIXEL_SIZE_PM = 29.3
RADIUS_PM = 5 * PIXEL_SIZE_PM

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def marked(shared_data: Path) -> list[tuple[Array, Array]]:
    """Frames and the atoms marked on them."""
    paths = sorted((shared_data / "frames" / "ptnc").glob("*.tif"))
    return [
        (
            read_frames(path, pixel_size_pm=PIXEL_SIZE_PM).frame,
            read_truth_csv(path.with_suffix(".csv")),
        )
        for path in paths
    ]


@pytest.mark.slow
def test_the_tuned_detector_finds_single_atoms_it_was_not_tuned_on(
    marked: list[tuple[Array, Array]],
) -> None:
    frames, truths = zip(*marked[::2], strict=True)
    sizes, few = [PIXEL_SIZE_PM] * len(frames), (60, 75)
    blob, tuned_f1 = tune(
        frames, truths, sizes, RADIUS_PM, sigmas_pm=few, ratios=(2.5, 4.0), locals_pm=(0, 400)
    )
    unseen, truths = zip(*marked[1::2], strict=True)
    found = [detect(frame, PIXEL_SIZE_PM, blob) for frame in unseen]
    count, shapes = len(unseen), [(frame.shape[0], frame.shape[1]) for frame in unseen]
    scores = score_frames(found, truths, [PIXEL_SIZE_PM] * count, RADIUS_PM, shapes)
    assert 0.66 < tuned_f1 < 0.76  # all eleven: .692; the design's own figure is .69 to .71
    assert scores.f1 > 0.58  # .617 here, .715 with the halves swapped
    assert 40 < scores.rmse_pm < 90  # the marks themselves are about 2 px, 59 pm, off
    assert blob.local_pm == 400  # the support varies: one threshold for all of it will not do
