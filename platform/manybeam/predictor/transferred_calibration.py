"""Calibration of an answer, transferred from the calibration frames that are most like a frame.

A calibration holds for one condition (`learn.scoring.calibration`), but the condition of a
recorded frame was not measured. So temperature, the bound on false atoms and the error of a
position come from the frames of the calibration set that are most like it. These frames are not of
one condition, so the bound is approximate. Decision 0013 measures how often it holds on conditions
that were never used.
Axis letters: n frame, k atom.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manybeam.learn.analysis.calibration_set import CalibrationSet
from manybeam.learn.scoring.calibration import bound, calibrated, fit

NEIGHBOURS = 96  # calibration frames most like the frame
BELIEVED = 0.5  # least probability of an atom
LEAST_ATOMS = 100
FAR = 1.5  # distance from the calibration set, 1 is usual, above which no bound can be kept
CONFIDENCE = 0.9
FRAMES_PER_SHARE = 2.4  # frames without a false atom needed for a bound of 1 (decision 0009)
COSTLY = 0.5  # if a bound keeps a smaller share of the atoms, a note says so
POSITION_SHARE = 0.9


@dataclass(frozen=True)
class TransferredCalibration:
    """The calibration of an answer's probabilities.

    Attributes:
        temperature: log-odds are divided by it; 1 if nothing was learned.
        shift: added to the log-odds afterwards.
        position_pm: 90 % of the true atoms are within this distance of their found position, in
            pm; NaN if nothing was learned.
        threshold: lowest probability, before calibration, of an atom kept under the bound; None
            if there is no bound, or it cannot be kept.
        false_atoms: the requested bound, a share of a frame's atoms; 0 for none.
        kept: share of the found atoms that the bound keeps, on the calibration frames.
        frame_count: number of these frames.
        atom_count: number of atoms on them.
        notes: the limits of the calibration, a sentence each.
    """

    temperature: float = 1.0
    shift: float = 0.0
    position_pm: float = float("nan")
    threshold: float | None = None
    false_atoms: float = 0.0
    kept: float = 1.0
    frame_count: int = 0
    atom_count: int = 0
    notes: tuple[str, ...] = ()

    def apply(self, atoms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return atoms (n, >= 4) with calibrated probabilities, without those below the threshold.

        If the requested bound cannot be kept, no atom is left out and the notes say so.
        """
        kept = atoms[atoms[:, 3] >= (self.threshold or 0.0)].copy()
        kept[:, 3] = calibrated(kept[:, 3], self.temperature, self.shift)
        return kept


def frames_needed(false_atoms: float) -> int:
    """Return the number of calibration frames for a bound; a strict bound needs more.

    Example:
        >>> frames_needed(0.05), frames_needed(0.01)
        (96, 240)
    """
    return max(NEIGHBOURS, math.ceil(FRAMES_PER_SHARE / false_atoms))


def transfer_calibration(
    table: CalibrationSet,
    alike_n: np.ndarray,
    weights: Mapping[int, float],
    *,
    distance: float,
    false_atoms: float = 0.0,
    nearest_n: np.ndarray | None = None,
) -> TransferredCalibration:
    """Return the calibration of a sub-ensemble's answer on a frame.

    Args:
        table: the calibration set.
        alike_n: its frames on which the answer is as often right, `PerformancePredictor.alike`.
        weights: the sub-ensemble, member -> share.
        distance: of the frame from the set, 1 is usual.
        false_atoms: the requested bound, 0 to 1; 0 for none.
        nearest_n: its frames most like this one, for the error of positions; `alike_n` if left
            out.
    """
    belief_k = table.belief(weights)
    seen_k = (belief_k >= BELIEVED) & table.counts_k
    found_k = seen_k & np.isin(table.frame_k, alike_n)
    near_k = found_k if nearest_n is None else seen_k & np.isin(table.frame_k, nearest_n)
    count = int(found_k.sum())
    if count < LEAST_ATOMS:
        why = f"not calibrated: the frames most like this one hold only {count} atoms"
        return TransferredCalibration(
            false_atoms=false_atoms, frame_count=len(alike_n), notes=(why,)
        )
    temperature, shift = fit(belief_k[found_k], table.is_true_k[found_k])
    threshold, notes = None, []
    if false_atoms:
        threshold = _threshold(table, alike_n, belief_k, found_k, false_atoms)
        if threshold is None or distance > FAR:
            threshold = None
            notes.append(_why_not(false_atoms, distance, len(alike_n)))
    kept = float((belief_k[found_k] >= (threshold or 0.0)).mean())
    if kept < COSTLY:
        notes.append(f"at most {false_atoms:g} false atoms leaves {100 * kept:.0f} % of the atoms")
    return TransferredCalibration(
        temperature=temperature,
        shift=shift,
        position_pm=_position_pm(table.error_k[near_k]),
        threshold=threshold,
        false_atoms=false_atoms,
        kept=kept,
        frame_count=len(alike_n),
        atom_count=count,
        notes=tuple(notes),
    )


def _position_pm(error_k: NDArray[np.floating]) -> float:
    """Return the 90 % quantile of the errors of position; NaN if no atom was true."""
    known_k = error_k[np.isfinite(error_k)]
    return float(np.quantile(known_k, POSITION_SHARE)) if len(known_k) else float("nan")


def _threshold(
    table: CalibrationSet,
    near_n: np.ndarray,
    belief_k: np.ndarray,
    found_k: np.ndarray,
    false_atoms: float,
) -> float | None:
    frames = [found_k & (table.frame_k == n) for n in near_n]
    probability = [belief_k[one] for one in frames]
    is_true = [table.is_true_k[one] for one in frames]
    return bound(probability, is_true, false_atoms, CONFIDENCE)


def _why_not(false_atoms: float, distance: float, frame_count: int) -> str:
    if distance > FAR:
        return (
            f"the bound of {false_atoms:g} false atoms cannot be kept: the frame is {distance:.1f} "
            "times as far from the calibration set as its frames lie apart"
        )
    if frame_count < frames_needed(false_atoms):
        return (
            f"the bound of {false_atoms:g} false atoms cannot be kept: it needs "
            f"{frames_needed(false_atoms)} calibration frames like this one, it has {frame_count}"
        )
    return (
        f"the bound of {false_atoms:g} false atoms cannot be kept: no threshold keeps it on the "
        "simulated frames most like this one"
    )
