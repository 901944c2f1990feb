"""Scores of an answer: matching with the truth, F1 with its interval, calibration.

Axis letters: n frame or atom, 2 the pair (y, x), 3 the counts (true positive, false positive,
false negative).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manybeam.errors import InvalidInput
from manybeam.learn.scoring.matching import (
    Match,
    away_from_edges,
    match,
    match_radius_px,
    neighbour_distance_px,
    positions,
)

# The public names of matching are offered here too.
__all__ = [
    "BORDER_PM",
    "Match",
    "MatchedFrame",
    "Reliability",
    "Scores",
    "aurc",
    "auroc",
    "away_from_edges",
    "beliefs",
    "f1_of",
    "false_fill",
    "match",
    "match_frame",
    "match_radius_px",
    "neighbour_distance_px",
    "reliability",
    "score_frames",
    "spread_auroc",
    "summarise",
]

Array = NDArray[np.floating]
Index = NDArray[np.int64]
Flag = NDArray[np.bool_]

BORDER_PM = 100.0  # atoms nearer to an edge may be matched but do not count
DRAWS = 1000  # bootstrap resamples
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


@dataclass(frozen=True, eq=False)
class MatchedFrame:
    """The atoms of one frame matched with its truth.

    Attributes:
        match: the pairs, also those at the border.
        is_true: for each found atom, whether it was matched.
        found_counts: for each found atom, whether it counts.
        truth_counts: for each true atom, whether it counts.
        counts: true positives, false positives, false negatives.
        square_pm: squared distance of each pair that counts, in pm^2.
        radius_pm: match radius, in pm; NaN if the pixel size is unknown.
    """

    match: Match
    is_true: Flag
    found_counts: Flag
    truth_counts: Flag
    counts: tuple[int, int, int]
    square_pm: Array
    radius_pm: float


@dataclass(frozen=True)
class Scores:
    """Scores of answers on some frames, micro-averaged; NaN if nothing could be measured.

    Attributes:
        f1, precision, recall: shares, 0 to 1.
        f1_low, f1_high: 95 % bootstrap interval of F1 over frames; over atoms if there is only
            one frame.
        rmse_pm: root mean square distance of matched pairs, in pm.
        ece: expected calibration error of the atoms' probability, 10 bins.
        brier: mean squared error of that probability.
        aurc: area under the risk-coverage curve of the found atoms.
        frame_count, found_count, truth_count: numbers of frames and atoms, without borders.
        radius_pm: median match radius, in pm.
    """

    f1: float
    precision: float
    recall: float
    f1_low: float
    f1_high: float
    rmse_pm: float
    ece: float
    brier: float
    aurc: float
    frame_count: int
    found_count: int
    truth_count: int
    radius_pm: float

    def values(self) -> dict[str, float]:
        """Return the measured numbers by name, without those that are NaN."""
        words = {"frame_count": "frames", "found_count": "found", "truth_count": "atoms"}
        numbers = {words.get(name, name): float(value) for name, value in vars(self).items()}
        return {name: value for name, value in numbers.items() if not np.isnan(value)}


@dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities against the share of true atoms, in bins of equal width; NaN if empty."""

    edges: Array
    mean_probability: Array
    share_true: Array
    count: Index
    ece: float
    brier: float

    @property
    def bins(self) -> tuple[tuple[float, float, int], ...]:
        """Mean probability, share of true atoms and count of each bin, to six digits.

        An empty bin is (0, 0, 0), so that bins of several curves can be pooled by count.
        """
        rows = zip(self.mean_probability, self.share_true, self.count, strict=True)
        return tuple(
            (round(float(claimed), 6), round(float(so), 6), int(count)) if count else (0.0, 0.0, 0)
            for claimed, so, count in rows
        )


def match_frame(
    found: Array,
    truth: Array,
    pixel_size_pm: float | None,
    shape: tuple[int, int],
    radius_pm: float | None = None,
) -> MatchedFrame:
    """Return the atoms of one frame, matched with the truth and counted.

    An atom within 1 A of an edge may be matched but does not count: half of it lies outside. A
    pair counts if its true atom counts. An unmatched atom counts if it is not at the edge. Without
    a pixel size the border has no width.

    Args:
        found: (atoms, >= 2) y, x in pixels.
        truth: (atoms, >= 2) y, x in pixels.
        pixel_size_pm: edge of a pixel, in pm; None if unknown.
        shape: rows and columns of the frame.
        radius_pm: match radius, in pm; if left out, 0.35 of the median neighbour distance, or
            50 pm if there are fewer than two atoms.

    Raises:
        MissingPixelSize: the radius is in pm and the pixel size is unknown.
    """
    found_n2, truth_n2 = positions(found), positions(truth)
    radius_px = match_radius_px(truth_n2, pixel_size_pm, radius_pm)
    pairs = match(found_n2, truth_n2, radius_px)
    border_px = BORDER_PM / pixel_size_pm if pixel_size_pm else 0.0
    found_counts = away_from_edges(found_n2, shape, border_px)
    truth_counts = away_from_edges(truth_n2, shape, border_px)
    found_counts[pairs.found_index] = truth_counts[pairs.truth_index]
    is_true = np.zeros(len(found_n2), bool)
    is_true[pairs.found_index] = True
    hits = int((is_true & found_counts).sum())
    counts = (hits, int(found_counts.sum()) - hits, int(truth_counts.sum()) - hits)
    to_pm = pixel_size_pm or np.nan
    square_pm = (pairs.distance_px[truth_counts[pairs.truth_index]] * to_pm) ** 2
    return MatchedFrame(
        pairs, is_true, found_counts, truth_counts, counts, square_pm, radius_px * to_pm
    )


def score_frames(
    found: Sequence[Array],
    truth: Sequence[Array],
    pixel_size_pm: Sequence[float | None],
    radius_pm: float | None = None,
    shapes: Sequence[tuple[int, int]] = (),
    seed: int = 0,
) -> Scores:
    """Return the scores over frames: micro F1 with its interval, position error, calibration.

    Args:
        found: atoms of each frame, (atoms, >= 2) y, x; the fourth column, if any, is the
            probability.
        truth: true atoms of each frame, (atoms, >= 2) y, x.
        pixel_size_pm: of each frame, in pm; None if unknown.
        radius_pm: match radius, in pm; see `match_frame`.
        shapes: rows and columns of each frame.
        seed: of the bootstrap.

    Raises:
        InvalidInput: the lists differ in length or are empty.
        MissingPixelSize: see `match_frame`.
    """
    lengths = {len(found), len(truth), len(pixel_size_pm), len(shapes)}
    if len(lengths) > 1 or not found:
        raise InvalidInput(
            f"{len(found)} frames found, {len(truth)} truths, {len(pixel_size_pm)} pixel sizes "
            f"and {len(shapes)} shapes",
            "scores need one of each per frame, and at least one frame",
        )
    matched = [
        match_frame(*each, radius_pm)
        for each in zip(found, truth, pixel_size_pm, shapes, strict=True)
    ]
    return summarise(matched, found, seed)


def summarise(matched: Sequence[MatchedFrame], found: Sequence[Array], seed: int = 0) -> Scores:
    """Return the scores of matched frames; `found` gives the probabilities of the atoms."""
    counts_n3 = np.array([frame.counts for frame in matched])
    hits, false, missed = counts_n3.sum(axis=0)
    low, high = _interval(counts_n3, seed)
    square_pm = np.concatenate([frame.square_pm for frame in matched])
    probability, is_true = beliefs(matched, found)
    curve = reliability(probability, is_true)
    return Scores(
        f1=float(f1_of(counts_n3.sum(axis=0))),
        precision=_share(hits, false, missed),
        recall=_share(hits, missed, false),
        f1_low=low,
        f1_high=high,
        rmse_pm=float(np.sqrt(square_pm.mean())) if len(square_pm) else float("nan"),
        ece=curve.ece,
        brier=curve.brier,
        aurc=aurc(probability, ~is_true),
        frame_count=len(matched),
        found_count=int(hits + false),
        truth_count=int(hits + missed),
        radius_pm=float(np.median([frame.radius_pm for frame in matched])),
    )


def beliefs(matched: Sequence[MatchedFrame], found: Sequence[Array]) -> tuple[Array, Flag]:
    """Return probability and truth of the found atoms that count, over matched frames.

    Both are empty if the atoms of any frame have no probability (a fourth column).
    """
    if any(np.ndim(atoms) != 2 or np.shape(atoms)[1] < 4 for atoms in found):
        return np.zeros(0), np.zeros(0, bool)
    probability = [np.asarray(a)[j.found_counts, 3] for a, j in zip(found, matched, strict=True)]
    is_true = [frame.is_true[frame.found_counts] for frame in matched]
    return np.concatenate(probability), np.concatenate(is_true)


def f1_of(counts_n3: NDArray[np.int64]) -> Array:
    """Return F1 of true positives, false positives, false negatives along the last axis.

    F1 is 1 if there was nothing to find and nothing was found.
    """
    hits, wrong = counts_n3[..., 0], counts_n3[..., 1] + counts_n3[..., 2]
    return np.asarray(np.where(hits + wrong, 2 * hits / np.maximum(2 * hits + wrong, 1), 1.0))


def reliability(probability: Array, is_true: Flag, bin_count: int = 10) -> Reliability:
    """Return the reliability curve and its error (ECE), for pixels or for atoms.

    ECE is the mean gap between probability and share of true ones, weighted by the count of each
    bin. Without any probability it is NaN, as is the Brier score.

    Source:
        Guo et al., ICML 2017, "On calibration of modern neural networks".

    Example:
        >>> reliability(np.array([0.9, 0.9]), np.array([True, False])).ece
        0.4
    """
    probability, fact = np.ravel(probability).astype(float), np.ravel(is_true).astype(float)
    edges = np.linspace(0, 1, bin_count + 1)
    bin_n = np.clip((probability * bin_count).astype(np.int64), 0, bin_count - 1)
    count = np.bincount(bin_n, minlength=bin_count)
    filled = np.where(count, count, np.nan)
    claimed = np.bincount(bin_n, probability, bin_count) / filled
    so = np.bincount(bin_n, fact, bin_count) / filled
    if not len(probability):
        return Reliability(edges, claimed, so, count, float("nan"), float("nan"))
    ece = float(np.nansum(np.abs(claimed - so) * count) / count.sum())
    brier = float(np.mean((probability - fact) ** 2))
    return Reliability(edges, claimed, so, count, round(ece, 12), brier)


def auroc(score: Array, is_positive: Flag) -> float:
    """Return the chance that a positive one has the larger score: 1 is perfect, 0.5 is random.

    Ties count half. For frames out of distribution, give the distance of each frame and whether
    it was recorded under another condition. NaN ranks above every number. The result is NaN if
    all are positive or none is.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.3]), np.array([False, True, False]))
        1.0
    """
    from scipy.stats import rankdata  # half a second of import

    positive = np.ravel(is_positive).astype(bool)
    rank = rankdata(np.nan_to_num(np.ravel(score).astype(float), nan=np.inf))
    positive_count, other_count = int(positive.sum()), int((~positive).sum())
    if not positive_count or not other_count:
        return float("nan")
    above = rank[positive].sum() - positive_count * (positive_count + 1) / 2
    return float(above / (positive_count * other_count))


def spread_auroc(spread: Array, is_wrong: Flag) -> float:
    """Return how well the spread separates wrong atoms from right ones; see `auroc`.

    A spread of NaN (only one member found the atom) ranks above every number.
    """
    return auroc(spread, is_wrong)


def aurc(confidence: Array, is_wrong: Flag) -> float:
    """Return the area under the risk-coverage curve: the mean error rate over all coverages.

    Atoms of equal confidence share their errors evenly, so the order of rows has no effect. NaN
    without atoms.
    """
    confidence, wrong = np.ravel(confidence), np.ravel(is_wrong).astype(float)
    if not len(wrong):
        return float("nan")
    _, group_n = np.unique(-confidence, return_inverse=True)
    rate = np.bincount(group_n, wrong) / np.bincount(group_n)
    risk = np.cumsum(rate[np.sort(group_n)]) / np.arange(1, len(wrong) + 1)
    return float(risk.mean())


def false_fill(found: Array, vacancies: Array, radius_px: float) -> float:
    """Return the share of vacancies where an atom was found; NaN without vacancies."""
    if not len(vacancies):
        return float("nan")
    return len(match(found, vacancies, radius_px)) / len(vacancies)


def _share(hits: int, wrong: int, other_wrong: int) -> float:
    """Return the share of hits; without any, 1 if there was nothing to find, else 0."""
    if hits + wrong:
        return float(hits / (hits + wrong))
    return 0.0 if other_wrong else 1.0


def _interval(counts_n3: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Return the bootstrap interval of F1 over frames, or over the atoms of a single one."""
    generator = np.random.default_rng(seed)
    frame_count, total = len(counts_n3), int(counts_n3.sum())
    if frame_count > 1:
        shares = np.full(frame_count, 1 / frame_count)
        drawn = generator.multinomial(frame_count, shares, size=DRAWS) @ counts_n3
    else:
        drawn = generator.multinomial(total, counts_n3[0] / max(total, 1), size=DRAWS)
    low, high = np.percentile(f1_of(drawn), INTERVAL)
    return float(low), float(high)
