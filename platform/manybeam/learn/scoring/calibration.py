"""Calibrated probabilities, and a bound on the share of false atoms.

Both are fitted on labelled frames of one condition. These are usually simulated.
Axis letters: n frame or atom, t threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from manybeam.errors import InvalidInput
from manybeam.learn.scoring.scores import MatchedFrame
from manybeam.spec import Condition

Array = NDArray[np.floating]
Atoms = NDArray[np.float32]

LEAST_ATOMS = 100  # fewer are not enough to estimate rare errors
SURE = 1e-4  # least distance of a probability from 0 and 1, so that log-odds are finite
SUREST = (-30.0, 30.0)  # in log-odds
TEMPERATURE = (0.05, 20.0)  # limits of the fit
SHIFT = (-8.0, 8.0)  # in log-odds
THRESHOLDS = expit(np.linspace(0, 7, 36))  # 0.5 to 0.999, tested from the strictest down


@dataclass(frozen=True)
class Calibration:
    """The calibration of the probabilities of an ensemble on one condition.

    Attributes:
        condition: id of the condition of the frames; the calibration is valid there only.
        digest: digest of the numbers of that condition, because two of one id may differ.
        temperature: log-odds are divided by it; above 1, the ensemble was overconfident.
        shift: added to the log-odds after that; it corrects for false atoms on dirt.
        threshold: least probability, before calibration, of atoms under the bound; None if no
            threshold satisfies the bound.
        false_atoms: the bound, a share of the atoms of a frame.
        confidence: probability that the bound holds, over calibrations on such frames.
        kept: share of the found true atoms above the threshold; the rest is lost by the bound.
        atom_count, frame_count: numbers of atoms and frames of the fit, without borders.
        notes: what could not be fitted, and why.
    """

    condition: str
    digest: str
    temperature: float = 1.0
    shift: float = 0.0
    threshold: float | None = None
    false_atoms: float = 0.05
    confidence: float = 0.9
    kept: float = 0.0
    atom_count: int = 0
    frame_count: int = 0
    notes: tuple[str, ...] = ()

    def probability(self, raw: Array) -> Array:
        """Return the calibrated probabilities; their order does not change."""
        return calibrated(raw, self.temperature, self.shift)

    def apply(self, atoms: Atoms, condition_digest: str, *, bounded: bool = False) -> Atoms:
        """Return the atoms with calibrated probabilities, and under the bound if `bounded`.

        Args:
            atoms: (atoms, >= 4) as an ensemble gave them: y, x, class, probability, ...
            condition_digest: `condition.digest` of the condition of their frame.
            bounded: leave out atoms below the threshold, so that the share of false atoms stays
                below the bound.

        Raises:
            InvalidInput: the condition is another one, or the bound could not be fitted.
        """
        if condition_digest != self.digest:
            raise InvalidInput(
                f"the calibration of {self.condition} is not valid for frames of other conditions",
                f"its digest is {self.digest!r}, that of the frame is {condition_digest!r}",
                "calibrate on frames of that condition, or use the raw probabilities",
            )
        if bounded and self.threshold is None:
            raise InvalidInput(
                f"no threshold keeps the share of false atoms below {self.false_atoms:g} "
                f"on {self.condition}",
                "; ".join(self.notes),
                "allow more false atoms, or select members that fit the condition",
            )
        kept = atoms[:, 3] >= (self.threshold or 0.0) if bounded else slice(None)
        calibrated = np.array(atoms[kept])
        calibrated[:, 3] = self.probability(calibrated[:, 3])
        return calibrated


def calibrate(
    matched: Sequence[MatchedFrame],
    found: Sequence[Array],
    condition: Condition,
    *,
    false_atoms: float = 0.05,
    confidence: float = 0.9,
) -> Calibration:
    """Return the calibration fitted on labelled frames of one condition.

    Args:
        matched: the frames, matched with their truth.
        found: their atoms, (atoms, >= 4); the fourth column is the probability.
        condition: of the frames; the calibration is valid for no other.
        false_atoms: share of the atoms of a frame that may be false, 0 to 1; 0.05 needs at least
            48 frames, half the share twice as many.
        confidence: see `bound`.

    Raises:
        InvalidInput: no frames, or shares that are not between 0 and 1.
    """
    _check(matched, found, false_atoms, confidence)
    probability = [np.asarray(a)[j.found_counts, 3] for a, j in zip(found, matched, strict=True)]
    is_true = [frame.is_true[frame.found_counts] for frame in matched]
    atom_count = sum(map(len, probability))
    notes = []
    temperature, shift = 1.0, 0.0
    if atom_count < LEAST_ATOMS:
        notes.append(
            f"probabilities are not calibrated: {atom_count} atoms, {LEAST_ATOMS} are needed"
        )
    else:
        temperature, shift = fit(np.concatenate(probability), np.concatenate(is_true))
    threshold = bound(probability, is_true, false_atoms, confidence)
    if threshold is None:
        notes.append(_why_not(probability, is_true, false_atoms, confidence))
    return Calibration(
        condition=condition.id,
        digest=condition.digest,
        temperature=temperature,
        shift=shift,
        threshold=threshold,
        false_atoms=false_atoms,
        confidence=confidence,
        kept=_kept(probability, is_true, threshold),
        atom_count=atom_count,
        frame_count=len(matched),
        notes=tuple(notes),
    )


def calibrated(raw: Array, temperature: float, shift: float) -> Array:
    """Return probabilities whose log-odds are divided by a temperature and shifted."""
    odds = logit(np.clip(np.asarray(raw, float), SURE, 1 - SURE))
    # Beyond these limits a double is 0 or 1.
    return np.asarray(expit(np.clip(odds / temperature + shift, *SUREST)))


def fit(probability: Array, is_true: NDArray[np.bool_]) -> tuple[float, float]:
    """Return temperature and shift of the log-odds with the greatest likelihood.

    All atoms are found with more than .5. A temperature alone cannot express that less than half of
    them are true; a shift can. The facts count as slightly uncertain, so that frames without a
    false atom do not make the ensemble certain.

    Source:
        Guo et al., ICML 2017 (temperature); Platt, 1999 (shift, and facts softened by count).

    Example:
        >>> claimed = np.full(1000, 0.9)
        >>> temperature, shift = fit(claimed, np.arange(1000) < 700)
        >>> round(float(expit(logit(0.9) / temperature + shift)), 2)
        0.7
    """
    odds = logit(np.clip(np.asarray(probability, float), SURE, 1 - SURE))
    true = np.asarray(is_true, bool)
    hits, false = int(true.sum()), int((~true).sum())
    fact = np.where(true, (hits + 1) / (hits + 2), 1 / (false + 2))

    def loss(word: Array) -> tuple[float, Array]:
        """Return the mean negative log-likelihood and its slope at (log temperature, shift)."""
        scaled = odds * math.exp(-word[0])
        logits = scaled + word[1]
        gap = expit(logits) - fact
        slope = np.array([-(gap * scaled).mean(), gap.mean()])
        return float((np.logaddexp(0, logits) - fact * logits).mean()), slope

    low, high = (math.log(edge) for edge in TEMPERATURE)
    best = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(low, high), SHIFT])
    return math.exp(best.x[0]), float(best.x[1])


def bound(
    probability: Sequence[Array],
    is_true: Sequence[NDArray[np.bool_]],
    false_atoms: float,
    confidence: float,
) -> float | None:
    """Return the least threshold that bounds the mean share of false atoms in a frame; else None.

    The guarantee: if the calibration is repeated on frames drawn in the same way, then at least a
    share `confidence` of the thresholds have an expected share of false atoms of at most
    `false_atoms` in further frames of the same condition. It does not hold for other conditions.
    What is drawn are frames, not atoms. Thresholds are tested from the strictest down. The first
    that fails ends the test, so no correction for the number of tests is needed. Conformal risk
    control would need a share that falls as the threshold rises. That is not so here: few atoms lie
    above a strict threshold, and one false atom among them is a large share.

    Args:
        probability: of each counted atom, frame by frame.
        is_true: whether each of them is an atom.
        false_atoms: the bound, 0 to 1.
        confidence: 0 to 1.

    Source:
        Angelopoulos et al., 2021, "Learn then test", fixed-sequence testing; the test is the
        betting one of Waudby-Smith & Ramdas, JRSS B 86, 1 (2024), as in Bates et al., JACM 2021.
    """
    passed: float | None = None
    for threshold in THRESHOLDS[::-1]:
        share_n = false_share(probability, is_true, threshold)
        if not _is_below(share_n, false_atoms, 1 - confidence):
            break
        passed = float(threshold)
    return passed


def false_share(
    probability: Sequence[Array], is_true: Sequence[NDArray[np.bool_]], threshold: float
) -> Array:
    """Return the share of false atoms above the threshold in each frame; 0 without any atom."""
    kept = [values >= threshold for values in probability]
    counts = [(keep.sum(), (keep & ~true).sum()) for keep, true in zip(kept, is_true, strict=True)]
    return np.array([false / max(int(all_of), 1) for all_of, false in counts])


def _is_below(share_n: Array, limit: float, error: float) -> bool:
    """Return whether the mean share is below the limit; it is wrong with at most that chance.

    This is a test by betting: the stake on each frame depends on the frames before it. If the mean
    were at the limit or above, the capital would grow by 1 / error with at most that chance.
    """
    before = np.arange(1, len(share_n) + 1)
    mean_n = (0.5 + np.cumsum(share_n)) / (before + 1)
    variance_n = (0.25 + np.cumsum((share_n - mean_n) ** 2)) / (before + 1)
    known_n = np.concatenate([[0.25], variance_n[:-1]])
    stake_n = np.minimum(1.0, np.sqrt(2 * math.log(1 / error) / (len(share_n) * known_n)))
    purse_n = np.cumsum(np.log1p(-stake_n * (share_n - limit)))
    return bool(purse_n.max() >= math.log(1 / error))


def _kept(
    probability: Sequence[Array], is_true: Sequence[NDArray[np.bool_]], threshold: float | None
) -> float:
    true = np.concatenate(
        [values[facts] for values, facts in zip(probability, is_true, strict=True)]
    )
    return float((true >= threshold).mean()) if threshold is not None and len(true) else 0.0


def _why_not(
    probability: Sequence[Array],
    is_true: Sequence[NDArray[np.bool_]],
    false_atoms: float,
    confidence: float,
) -> str:
    if not _is_below(np.zeros(len(probability)), false_atoms, 1 - confidence):
        return f"no bound: {len(probability)} frames are too few, even without any false atom"
    share = false_share(probability, is_true, THRESHOLDS[-1]).mean()
    return (
        f"no bound: the share of false atoms is {share:.3f} "
        f"even at probability {THRESHOLDS[-1]:.3f}"
    )


def _check(
    matched: Sequence[MatchedFrame], found: Sequence[Array], false_atoms: float, confidence: float
) -> None:
    if len(matched) != len(found) or not matched:
        raise InvalidInput(
            f"{len(matched)} matched frames and atoms of {len(found)} frames",
            "calibration needs both for each frame, and at least one frame",
        )
    for name, share in (("false_atoms", false_atoms), ("confidence", confidence)):
        if not 0 < share < 1:
            raise InvalidInput(
                f"{name} {share!r} is out of bounds", "between 0 and 1, both excluded"
            )
