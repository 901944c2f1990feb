"""Frame analysis: the answers of all members for a frame, and their scores without truth.

Command line, service and calibration set all use it, so that what is learned on simulated frames
applies to real ones.
Axis letters: m member, f score, c crop, s number of a summary, y row, x column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from manybeam.errors import InvalidFrame
from manybeam.learn.analysis.condition_inference import LEAST_SIDE_PX, crops
from manybeam.learn.analysis.fitness import (
    SCORES,
    ForwardModel,
    Lattice,
    consistency,
    lattice_score,
    scores,
)
from manybeam.learn.analysis.summaries import summaries
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.prediction import Prediction

WINDOW_PX = 256  # side of the analysed window, in pixels of the members


@dataclass(frozen=True, eq=False)
class FrameAnalysis:
    """The analysis of one frame.

    Attributes:
        prediction: the members' answer on the window.
        score_mf: label-free scores by `fitness.SCORES`; NaN if one does not apply.
        summary_cs: summaries of crops of the frame.
        window: rows and columns of the frame that were analysed.
        pixel_size_pm: edge of a pixel, or None.
        lattice: the crystal, or None.
        model: the forward model of the window.
    """

    prediction: Prediction
    score_mf: np.ndarray
    summary_cs: np.ndarray
    window: tuple[slice, slice]
    pixel_size_pm: float | None
    lattice: Lattice | None
    model: ForwardModel

    @property
    def radius_px(self) -> float:
        """Radius of the members' training masks, in pixels of the frame."""
        return self.prediction.radius_px

    def score_of(self, weights: Mapping[int, float]) -> np.ndarray:
        """Return the scores (f,) of a sub-ensemble's answer on the window.

        `forward` and `lattice` are those of its atoms; the others are means over the members.

        Args:
            weights: member -> share; shares sum to 1.
        """
        atoms = self.prediction.atoms_of(list(weights), list(weights.values()))
        places = [self.prediction.members.index(member) for member in weights]
        score_f = self.score_mf[places].mean(axis=0)
        score_f[SCORES.index("forward")] = self.model.score(atoms)
        if self.lattice is not None and self.pixel_size_pm is not None:
            score_f[SCORES.index("lattice")] = lattice_score(
                atoms, self.pixel_size_pm, self.lattice, self.prediction.shape
            )
        return np.asarray(score_f)


def analyse(
    ensemble: Ensemble,
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    lattice: Lattice | None,
    *,
    prediction: Prediction | None = None,
    window_px: int = WINDOW_PX,
    check: Callable[[], None] = lambda: None,
) -> FrameAnalysis:
    """Return the analysis of a frame, or of the middle of a large one.

    Each network runs once on the window and what has an effect on it, unless its prediction is
    given, and once on the turned window.

    Args:
        ensemble: the members.
        frame_yx: the frame.
        pixel_size_pm: edge of a pixel, or None.
        lattice: the crystal, or None if there is none.
        prediction: the answer of all members for the frame or the window, if it is known.
        window_px: side of the window, in pixels of the members.
        check: called before each network and tile; what it raises ends the work.

    Raises:
        InvalidFrame: the array is too small for frame analysis, or not a frame.
    """
    window = _window(ensemble, frame_yx, pixel_size_pm, window_px)
    part_yx = np.ascontiguousarray(frame_yx[window])
    whole = prediction or predict_window(ensemble, frame_yx, pixel_size_pm, window, check=check)
    prediction = whole if part_yx.shape == frame_yx.shape else whole.inside(window)
    turned_yx = np.ascontiguousarray(np.rot90(part_yx))
    turned = ensemble.predict(turned_yx, pixel_size_pm, check=check)
    steady = consistency(
        prediction.member_atoms, turned.member_atoms, part_yx.shape, prediction.radius_px
    )
    model, score_mf = scores(part_yx, prediction.member_atoms, pixel_size_pm, lattice, steady)
    summary_cs = _summaries(part_yx, pixel_size_pm)
    return FrameAnalysis(prediction, score_mf, summary_cs, window, pixel_size_pm, lattice, model)


def predict_window(
    ensemble: Ensemble,
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    window: tuple[slice, slice] | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> Prediction:
    """Return the answer of all members, of use in the analysed window only; see `analyse`."""
    window = window or _window(ensemble, frame_yx, pixel_size_pm, WINDOW_PX)
    is_whole = frame_yx[window].shape == frame_yx.shape
    return ensemble.predict(
        frame_yx, pixel_size_pm, window=None if is_whole else window, check=check
    )


def summary_of(ensemble: Ensemble, frame_yx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    """Return the mean summary of a frame, (s,), as `analyse` finds it; no network runs.

    Raises:
        InvalidFrame: the array is too small for frame analysis, or not a frame.
    """
    window = _window(ensemble, frame_yx, pixel_size_pm, WINDOW_PX)
    return np.asarray(_summaries(frame_yx[window], pixel_size_pm).mean(axis=0))


def _summaries(part_yx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    return summaries(crops(part_yx[None]), pixel_size_pm)


def _window(
    ensemble: Ensemble, frame_yx: np.ndarray, pixel_size_pm: float | None, window_px: int
) -> tuple[slice, slice]:
    """Return the part of a frame that is analysed."""
    check_size(frame_yx)
    own_pm = min(member.recipe.tiles.pixel_size_pm for member in ensemble.members)
    side = int(window_px * (own_pm / pixel_size_pm if pixel_size_pm else 1.0))
    window = _middle(frame_yx.shape, max(side, 64))
    if np.ptp(frame_yx[window]) == 0:  # a hole in the middle of a large frame
        return _middle(frame_yx.shape, max(frame_yx.shape))
    return window


def check_size(frame_yx: np.ndarray) -> None:
    """Refuse an array that is too small for frame analysis, or not a frame."""
    if frame_yx.ndim != 2 or min(frame_yx.shape) < LEAST_SIDE_PX:
        sides = " x ".join(map(str, frame_yx.shape))
        raise InvalidFrame(
            f"a frame of {sides} px is too small to select members for it",
            f"two axes, at least {LEAST_SIDE_PX} px a side",
            "give a larger frame, or name the ensemble",
        )


def _middle(shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """Return the middle of a frame, at most `side` wide and high."""
    starts = [max(0, (length - side) // 2) for length in shape[:2]]
    stops = [min(length, start + side) for length, start in zip(shape, starts, strict=False)]
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])
