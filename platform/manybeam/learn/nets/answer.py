"""The answer of one member for a frame, and statistics of several answers.

Axis letters: m member, n atom, y row, x column, 2 the pair (y, x).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from manybeam.learn.nets.atoms import LEAST_SHARE, sample

Map = NDArray[np.float32]

TINY = float(np.finfo(np.float32).tiny)  # 0 ln 0 is 0


@dataclass(frozen=True, eq=False)
class MemberAnswer:
    """The answer of one member: atoms in pixels of the frame, and a map in pixels of the member.

    Position p of the frame is at (p + start + 0.5) * scale - 0.5 of the map.

    Attributes:
        atoms: float32 (atoms, 4): y, x, class, probability.
        prob_yx: probability of an atom.
        scale: pixels of the map for each pixel of the frame.
        radius_px: radius of the member's training masks, in pixels of the frame.
        start: first row and column of the window, if the answer is for a window; less, if the
            map itself is only a part.
    """

    atoms: NDArray[np.float32]
    prob_yx: NDArray[np.floating]
    scale: float
    radius_px: float
    start: tuple[float, float] = (0, 0)

    def on_frame(self, shape: tuple[int, ...]) -> Map:
        """Return the map in the frame's pixels."""
        if self.scale == 1 and self.prob_yx.shape == shape and self.start == (0, 0):
            return np.asarray(self.prob_yx, np.float32)
        own_yx = np.asarray(self.prob_yx, np.float32)
        rows, columns = (
            _weights(side, own, self.scale, start)
            for side, own, start in zip(shape, own_yx.shape, self.start, strict=True)
        )
        return np.asarray((columns @ (rows @ own_yx).T).T, np.float32)

    def at(self, position_n2: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the probability at positions of the frame."""
        return sample(self.prob_yx, (position_n2 + self.start + 0.5) * self.scale - 0.5)

    def inside(self, window: tuple[slice, slice]) -> "MemberAnswer":
        """Return the answer for a window, in pixels of the window; the map stays whole."""
        return replace(
            self,
            atoms=atoms_inside(self.atoms, window),
            start=(self.start[0] + window[0].start, self.start[1] + window[1].start),
        )

    def belief(self, position_n2: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the probability of the nearest atom within a radius; else that of the map."""
        belief_n = self.at(position_n2)
        if not len(self.atoms):
            return belief_n
        gap_n, nearest_n = cKDTree(self.atoms[:, :2]).query(position_n2)
        return np.where(gap_n <= self.radius_px, self.atoms[nearest_n, 3], belief_n)

    def stored(self) -> "MemberAnswer":
        """Return the answer with its map in half precision, to save memory."""
        return replace(self, prob_yx=self.prob_yx.astype(np.float16))


def atoms_inside(atoms: NDArray[np.float32], window: tuple[slice, slice]) -> NDArray[np.float32]:
    """Return the atoms (n, >= 2) in a window of the frame, in pixels of the window.

    Example:
        >>> atoms_inside(np.array([[1.0, 1.0], [9.0, 9.0]]), (slice(8, 12), slice(8, 12)))
        array([[1., 1.]])
    """
    start_2 = np.array([part.start for part in window])
    stop_2 = np.array([part.stop for part in window])
    place_n2 = atoms[:, :2]
    is_in_n = ((place_n2 >= start_2 - 0.5) & (place_n2 < stop_2 - 0.5)).all(axis=1)
    kept = atoms[is_in_n].copy()
    kept[:, :2] -= start_2
    return kept


class Moments:
    """Mean and standard deviation of probability maps, added one by one.

    The sums are float64, so the order of the members has no effect on the float32 result.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = self.square_total = 0.0
        self.sum_yx, self.square_yx = np.zeros(shape), np.zeros(shape)

    @classmethod
    def of(
        cls, answers: Sequence[MemberAnswer], weights: Sequence[float], shape: tuple[int, ...]
    ) -> "Moments":
        """Return the moments of these answers."""
        moments = cls(shape)
        for answer, weight in zip(answers, weights, strict=True):
            moments.add(answer.on_frame(shape), weight)
        return moments

    def add(self, prob_yx: Map, weight: float = 1.0) -> None:
        """Add the map of one member; equal weights give the same result as no weights."""
        self.total += weight
        self.square_total += weight**2
        self.sum_yx += weight * prob_yx.astype(np.float64)
        self.square_yx += weight * np.square(prob_yx, dtype=np.float64)

    def result(self) -> tuple[Map, Map]:
        """Return mean and standard deviation (n - 1 divisor)."""
        mean_yx = self.sum_yx / self.total
        mean_32 = mean_yx.astype(np.float32)
        # n - 1 for equal weights; for others, the divisor of an unbiased variance.
        freedom = self.total - self.square_total / self.total
        if freedom <= LEAST_SHARE * self.total:
            return mean_32, np.zeros(mean_yx.shape, np.float32)
        rest_yx = np.maximum(self.square_yx - self.sum_yx * mean_yx, 0)
        return mean_32, np.sqrt(rest_yx / freedom).astype(np.float32)


class Disagreement:
    """Mutual information of members and "an atom or none", from maps added one by one.

    If all members say one half, it is 0.

    Source:
        Depeweg et al., ICML 2018, "Decomposition of uncertainty in Bayesian deep learning": entropy
        of the mean minus the mean entropy.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total, self.count, self.sum_yx = 0.0, 0, np.zeros(shape)

    @classmethod
    def of(
        cls, answers: Sequence[MemberAnswer], weights: Sequence[float], shape: tuple[int, ...]
    ) -> "Disagreement":
        """Return that of these answers."""
        disagreement = cls(shape)
        for answer, weight in zip(answers, weights, strict=True):
            disagreement.add(answer.on_frame(shape), weight)
        return disagreement

    def add(self, prob_yx: Map, weight: float = 1.0) -> None:
        """Add the map of one member; equal weights give the same result as no weights."""
        self.total += weight
        self.count += 1
        self.sum_yx += weight * entropy(prob_yx).astype(np.float64)

    def result(self, mean_yx: Map) -> Map:
        """Return it in nats, 0 to ln 2, from the mean of the maps."""
        if self.count == 1:
            return np.zeros(mean_yx.shape, np.float32)
        mutual_yx = np.maximum(entropy(mean_yx) - self.sum_yx / self.total, 0)
        return np.asarray(mutual_yx, np.float32)


class MapTotals:
    """Mean, standard deviation and mutual information of maps that are not kept."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._moments, self._disagreement = Moments(shape), Disagreement(shape)

    def add(self, prob_yx: Map) -> None:
        """Add the map of one member."""
        self._moments.add(prob_yx)
        self._disagreement.add(prob_yx)

    def result(self) -> tuple[Map, Map, Map]:
        """Return the three maps."""
        mean_yx, std_yx = self._moments.result()
        return mean_yx, std_yx, self._disagreement.result(mean_yx)


def entropy(prob_yx: Map) -> Map:
    """Return the entropy of "an atom or none" in each pixel, in nats, 0 to ln 2.

    Example:
        >>> entropy(np.array([0.0, 0.5, 1.0], np.float32)).round(3).tolist()
        [0.0, 0.6930000185966492, 0.0]
    """
    rest_yx = 1 - prob_yx
    gain_yx = prob_yx * np.log(np.maximum(prob_yx, TINY))
    gain_yx += rest_yx * np.log(np.maximum(rest_yx, TINY))
    return np.asarray(0 - gain_yx, np.float32)  # 0 - x: no minus zero


@lru_cache(maxsize=16)
def _weights(side: int, own_side: int, scale: float, start: float) -> csr_array:
    """Return the (side, own_side) matrix that samples a map at the pixels of the frame.

    If the map is coarser than the frame, the interpolation is linear. If it is finer, the weights
    are a triangle as wide as a pixel of the frame, so that every pixel of the map counts.
    """
    centre = (np.arange(side) + start + 0.5) * scale - 0.5
    width = max(scale, 1.0)
    reach = int(np.ceil(width))
    column = np.floor(centre).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    weight = np.clip(1 - np.abs(column - centre[:, None]) / width, 0, 1)
    weight /= weight.sum(axis=1, keepdims=True)
    column = np.clip(column, 0, own_side - 1)
    row = np.broadcast_to(np.arange(side)[:, None], column.shape)
    entries = (weight.ravel().astype(np.float32), (row.ravel(), column.ravel()))
    return csr_array(entries, shape=(side, own_side))
