"""Probabilities that mean what they say, and a bound on the share of false atoms.

Both are fitted on labelled frames of one condition, simulated ones as a rule: they cost nothing.
Axis letters: n frame or atom, t threshold.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from manybeam.errors import Corrupt, InvalidInput
from manybeam.learn.scoring.scores import Judged
from manybeam.spec import Condition

Array = NDArray[np.floating]
Atoms = NDArray[np.float32]

LEAST_ATOMS = 100  # fewer tell nothing of rare faults
SURE = 1e-4  # probabilities are held this far from 0 and 1: log-odds have to be finite
SUREST = (-30.0, 30.0)  # in log-odds
TEMPERATURE = (0.05, 20.0)  # beyond, the fit has run away
SHIFT = (-8.0, 8.0)  # in log-odds
THRESHOLDS = expit(np.linspace(0, 7, 36))  # 0.5 to 0.999, tried from the strictest down


@dataclass(frozen=True)
class Calibration:
    """What one condition teaches about an ensemble's probabilities.

    Attributes:
        condition: id of the condition the frames were of; it holds there and nowhere else.
        digest: of that condition's numbers: two of one id may differ.
        temperature: log-odds are divided by it; above 1 the ensemble was too sure.
        shift: and this is added, in log-odds: dirt makes false atoms that look like any others.
        threshold: least probability, before calibration, of an atom that is kept under the bound;
            None if no threshold keeps it.
        false_atoms: the bound, a share of a frame's atoms.
        confidence: how surely it holds: this share of such calibrations keeps it.
        kept: share of the true atoms found that stay above the threshold; what the bound costs.
        atom_count, frame_count: what it was fitted on, borders left out.
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
        """Return calibrated probabilities of the ensemble's own; the order never changes."""
        return calibrated(raw, self.temperature, self.shift)

    def apply(self, atoms: Atoms, condition_digest: str, *, bounded: bool = False) -> Atoms:
        """Return the atoms with calibrated probabilities, under the bound if that is asked for.

        Args:
            atoms: (atoms, >= 4) as an ensemble gave them: y, x, class, probability, ...
            condition_digest: of the condition that their frame is of, `condition.digest`.
            bounded: leave out those below the threshold, so that the share of false ones keeps
                the bound.

        Raises:
            InvalidInput: another condition than the one it was fitted on, or the bound is asked
                for and could not be fitted.
        """
        if condition_digest != self.digest:
            raise InvalidInput(
                f"a calibration of {self.condition} for a frame of another condition",
                f"its digest is {self.digest!r}, the frame's is {condition_digest!r}",
                "calibrate on frames of that condition, or take the raw probabilities",
            )
        if bounded and self.threshold is None:
            raise InvalidInput(
                f"no threshold keeps {self.false_atoms:g} false atoms on {self.condition}",
                "; ".join(self.notes),
                "allow more false atoms, or ask members that fit the condition",
            )
        kept = atoms[:, 3] >= (self.threshold or 0.0) if bounded else slice(None)
        calibrated = np.array(atoms[kept])
        calibrated[:, 3] = self.probability(calibrated[:, 3])
        return calibrated

    def to_json(self) -> str:
        """Return it as JSON; `from_json` gives back the same."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Return what `to_json` was called on.

        Raises:
            Corrupt: the text is no calibration.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "notes": tuple(fields["notes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupt(
                f"{text[:60]!r} is no calibration", str(error), "calibrate the ensemble again"
            ) from error


def calibrate(
    judged: Sequence[Judged],
    found: Sequence[Array],
    condition: Condition,
    *,
    false_atoms: float = 0.05,
    confidence: float = 0.9,
) -> Calibration:
    """Return the calibration that labelled frames of one condition teach.

    Args:
        judged: the frames, judged against their truth.
        found: their atoms, (atoms, >= 4), the fourth column the ensemble's probability.
        condition: theirs; the calibration applies to no other.
        false_atoms: share of a frame's atoms that may be false, 0 to 1; 0.05 needs 48 frames at
            least, half the share twice as many.
        confidence: see `bound`.

    Raises:
        InvalidInput: no frames, or shares that are none.
    """
    _check(judged, found, false_atoms, confidence)
    probability = [np.asarray(a)[j.found_counts, 3] for a, j in zip(found, judged, strict=True)]
    is_true = [frame.is_true[frame.found_counts] for frame in judged]
    atom_count = sum(map(len, probability))
    notes = []
    temperature, shift = 1.0, 0.0
    if atom_count < LEAST_ATOMS:
        notes.append(f"probabilities left as they are: {atom_count} atoms, {LEAST_ATOMS} needed")
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
        frame_count=len(judged),
        notes=tuple(notes),
    )


def calibrated(raw: Array, temperature: float, shift: float) -> Array:
    """Return probabilities whose log-odds are divided by a temperature and shifted."""
    odds = logit(np.clip(np.asarray(raw, float), SURE, 1 - SURE))
    # Past these no double is told from 0 or 1, and nobody is that sure.
    return np.asarray(expit(np.clip(odds / temperature + shift, *SUREST)))


def fit(probability: Array, is_true: NDArray[np.bool_]) -> tuple[float, float]:
    """Return temperature and shift of the log-odds that make the facts likeliest.

    A temperature alone cannot say "less than half of these are atoms" of atoms that were all
    found with more than .5: the shift can. Facts count as slightly uncertain, so that frames
    without a single false atom do not make the ensemble certain.

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
    """Return the least threshold that keeps the mean share of false atoms in a frame; else None.

    The promise: of calibrations on frames drawn alike, a share of at least `confidence` yields a
    threshold whose expected share of false atoms, in further frames of the same condition, is at
    most `false_atoms`. It says nothing of other conditions, and frames, not atoms, are drawn.
    Thresholds are tested from the strictest down, and the first that fails ends it: so the tests
    need no correction for their number. The share need not fall as the threshold rises, which
    conformal risk control would ask for: few atoms lie above a strict threshold, and one false
    one among them is a large share.

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
    """Return the share of false atoms among those kept of each frame; 0 where none is kept."""
    kept = [values >= threshold for values in probability]
    counts = [(keep.sum(), (keep & ~true).sum()) for keep, true in zip(kept, is_true, strict=True)]
    return np.array([false / max(int(all_of), 1) for all_of, false in counts])


def _is_below(share_n: Array, limit: float, error: float) -> bool:
    """Return whether the mean share is below the limit, wrong with at most that chance.

    A gambler bets on each frame being better than the limit, the stake set by the frames before
    it. If the mean were at the limit or above, the purse would hardly ever grow 1 / error fold.
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
        return f"no bound: {len(probability)} frames are too few, were they without a fault"
    share = false_share(probability, is_true, THRESHOLDS[-1]).mean()
    return f"no bound: {share:.3f} false atoms even at probability {THRESHOLDS[-1]:.3f}"


def _check(
    judged: Sequence[Judged], found: Sequence[Array], false_atoms: float, confidence: float
) -> None:
    if len(judged) != len(found) or not judged:
        raise InvalidInput(
            f"{len(judged)} frames judged, {len(found)} frames found",
            "calibration needs both of each frame, and at least one frame",
        )
    for name, share in (("false_atoms", false_atoms), ("confidence", confidence)):
        if not 0 < share < 1:
            raise InvalidInput(f"{name} {share!r} is no share", "between 0 and 1, both excluded")
