"""Fitness: how well the atoms of a member fit a frame, computed without any truth.

There are five scores, each 0 to 1: `forward` (the atoms, rendered again, look like the frame),
`lattice` (they lie as in this crystal), `agreement` (the other members find them too),
`consistency` (they are found again on the turned frame) and `confidence`. `predictor.performance`
learns how to weigh them; `combine` has fixed weights for ensembles without calibration.
Axis letters: y row, x column, k atom, r ring of spatial frequency.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from manybeam.learn.scoring.matching import match

# Band of the frame that atoms live in: an atom is drawn as wide as 50 pm (standard deviation), and
# everything wider than 170 pm (contamination, thickness of the support) is removed. Both were
# chosen on simulated frames by the regret of selection by this score alone.
FINE_PM = 50.0
COARSE_PM = 170.0
CLIP_QUANTILE = 0.98  # of the band-passed frame; brighter pixels are set to it
# If the pixel size is unknown, the neighbour distance of the members' atoms is taken as this bond.
BOND_PM = 142.0
SCORES = ("forward", "lattice", "agreement", "consistency", "confidence")
# Weight of each score in the geometric mean; a score that does not apply leaves its weight to the
# others. Confidence has no weight: a network is confident of its errors too.
WEIGHTS: Mapping[str, float] = {"lattice": 0.5, "forward": 0.4, "agreement": 0.1}


@dataclass(frozen=True)
class Lattice:
    """The lattice of a crystal seen along the beam: bond length and bonds per atom.

    Attributes:
        bond_pm: distance of nearest neighbours in projection.
        bond_count: neighbours at that distance around an atom of the perfect crystal.
    """

    bond_pm: float
    bond_count: int


# Structures of `spec.Sample` that have a lattice to score atoms with.
LATTICES: Mapping[str, Lattice] = {
    "graphene": Lattice(bond_pm=142.0, bond_count=3),
    "mos2": Lattice(bond_pm=182.4, bond_count=3),
}


@dataclass(frozen=True)
class Fitness:
    """How well the atoms of one member fit one frame.

    Attributes:
        score: weighted mean of the parts that apply, 0 to 1.
        parts: `forward`, `lattice` (absent without a lattice), `agreement` (absent for a single
            member), `confidence`.
        explained: share of the frame's structure that the rendered atoms explain, 0 to 1.
        atom_count: atoms the member found.
    """

    score: float
    parts: Mapping[str, float]
    explained: float
    atom_count: int


def fitness(
    frame_yx: np.ndarray,
    member_atoms: Sequence[np.ndarray],
    pixel_size_pm: float | None,
    lattice: Lattice | None = None,
) -> list[Fitness]:
    """Return the fitness of each member on one frame, from the atoms it found.

    Args:
        frame_yx: the frame.
        member_atoms: per member (K, >= 2) y, x, class, probability, in pixels of the frame.
        pixel_size_pm: edge of a pixel; if None, lengths come from the neighbour distance of the
            members' atoms.
        lattice: the crystal, or None if there is none (single atoms on a support).
    """
    scale_pm = pixel_size_pm or _assumed_pixel_pm(member_atoms)
    model = ForwardModel(frame_yx, scale_pm)
    agreements = agreement_scores(member_atoms, radius_px=0.35 * BOND_PM / scale_pm)
    found = []
    for atoms, agreement in zip(member_atoms, agreements, strict=True):
        correlation = model.score(atoms)
        parts = {"forward": correlation, "confidence": _confidence(atoms)}
        if lattice is not None:
            parts["lattice"] = lattice_score(atoms, scale_pm, lattice, frame_yx.shape)
        if len(member_atoms) > 1:
            parts["agreement"] = agreement
        found.append(Fitness(combine(parts), parts, correlation**2, len(atoms)))
    return found


def scores(
    frame_yx: np.ndarray,
    member_atoms: Sequence[np.ndarray],
    pixel_size_pm: float | None,
    lattice: Lattice | None,
    steady: Sequence[float],
) -> tuple["ForwardModel", np.ndarray]:
    """Return the forward model of the frame, and all scores of each member.

    Args:
        frame_yx: the frame.
        member_atoms: per member (K, 4) y, x, class, probability, in pixels of the frame.
        pixel_size_pm: edge of a pixel; if None, lengths come from the neighbour distance of the
            members' atoms.
        lattice: the crystal, or None.
        steady: the `consistency` of each member.

    Returns:
        The model, and (members, scores) in the order of `SCORES`; NaN if a score does not apply.
    """
    scale_pm = pixel_size_pm or _assumed_pixel_pm(member_atoms)
    model = ForwardModel(frame_yx, scale_pm)
    agreements = agreement_scores(member_atoms, radius_px=0.35 * BOND_PM / scale_pm)
    rows = [
        (
            model.score(atoms),
            lattice_score(atoms, scale_pm, lattice, frame_yx.shape) if lattice else math.nan,
            agreement if len(member_atoms) > 1 else math.nan,
            same,
            _confidence(atoms),
        )
        for atoms, agreement, same in zip(member_atoms, agreements, steady, strict=True)
    ]
    return model, np.array(rows)


def consistency(
    member_atoms: Sequence[np.ndarray],
    turned_atoms: Sequence[np.ndarray],
    shape: tuple[int, ...],
    radius_px: float,
) -> list[float]:
    """Return the F1 between each member's atoms on the frame and on the frame turned by 90 deg.

    A network finds real atoms in every orientation of the frame. What it finds in noise changes
    with the orientation. A member that finds nothing scores 0.

    Args:
        member_atoms: per member (K, >= 2) y, x.
        turned_atoms: the same on `numpy.rot90(frame)`, in that frame's pixels.
        shape: rows and columns of the frame before it was turned.
        radius_px: largest distance of two positions of one atom.
    """
    found = []
    for atoms, turned in zip(member_atoms, turned_atoms, strict=True):
        back = np.column_stack([turned[:, 1], shape[1] - 1 - turned[:, 0]])
        same = len(match(atoms[:, :2], back, radius_px)) if len(atoms) and len(back) else 0
        found.append(2 * same / max(len(atoms) + len(back), 1))
    return found


def combine(parts: Mapping[str, float]) -> float:
    """Return the weighted geometric mean of the parts; one part at zero makes the whole zero.

    The mean is geometric because each part can refute the atoms alone: atoms in a perfect lattice
    where the frame shows none are not half right.
    """
    weight = sum(WEIGHTS.get(name, 0.0) for name in parts)
    logs = sum(WEIGHTS.get(key, 0.0) * math.log(max(value, 1e-6)) for key, value in parts.items())
    return math.exp(logs / weight) if weight else 0.0


class ForwardModel:
    """One frame, prepared for comparison with rendered atoms.

    Every atom is drawn with the same brightness and the same point spread. The picture is
    correlated with the band-passed frame in each ring of spatial frequency (Fourier ring
    correlation). The correlation of a ring does not depend on how strongly the probe transfers that
    frequency, so the point spread need not be known. Rings are weighted by the power of the drawn
    atoms, because contamination fills other rings. The common brightness penalises false atoms:
    each adds power to every ring that the frame does not have.

    Args:
        frame_yx: the frame.
        pixel_size_pm: edge of a pixel, in picometres; > 0.

    Source:
        Saxton & Baumeister, J. Microsc. 127, 127 (1982), for the correlation. Weighting it by the
        drawn atoms and scoring detections with it is ours.
    """

    def __init__(self, frame_yx: np.ndarray, pixel_size_pm: float) -> None:
        self.shape = frame_yx.shape
        self._taper_y, self._taper_x = _taper(self.shape[0]), _taper(self.shape[1])
        self._fine_px = max(FINE_PM / pixel_size_pm, 0.6)
        self._coarse_px = max(COARSE_PM / pixel_size_pm, 2.5)
        flat_yx = self._without_mean(np.nan_to_num(frame_yx.astype(np.float64)))
        # One silicon atom is as bright as four carbon atoms; without a limit it outweighs them.
        low, high = np.quantile(flat_yx, [1 - CLIP_QUANTILE, CLIP_QUANTILE])
        self._spectrum_yx = self._spectrum(np.clip(flat_yx, low, high))
        self._power_r = self._ring_sum(np.abs(self._spectrum_yx) ** 2)

    def score(self, atoms: np.ndarray) -> float:
        """Return the weighted ring correlation of the drawn atoms with the frame, 0 to 1.

        Its square is the share of the frame that the atoms explain, noise included. So even the
        best member has a lower value on a noisy frame.
        """
        if not len(atoms):
            return 0.0
        frame_yx = self._spectrum_yx
        drawn_yx = self._spectrum(self._without_mean(self._splat(atoms)))
        cross_r = self._ring_sum(frame_yx.real * drawn_yx.real + frame_yx.imag * drawn_yx.imag)
        drawn_r = self._ring_sum(np.abs(drawn_yx) ** 2)
        correlation_r = cross_r / np.sqrt(np.maximum(self._power_r * drawn_r, 1e-30))
        weight_r = drawn_r * self._band_r
        total = max(float(weight_r.sum()), 1e-30)
        return float(np.clip((weight_r @ correlation_r) / total, 0.0, 1.0))

    @cached_property
    def _ring_yx(self) -> np.ndarray:
        """Index of the ring of each frequency; rings are one pixel of the longer side wide."""
        qy, qx = fft.fftfreq(self.shape[0])[:, None], fft.rfftfreq(self.shape[1])[None, :]
        return np.asarray(np.rint(np.hypot(qy, qx) * max(self.shape)).astype(np.intp))

    @cached_property
    def _multiplicity_yx(self) -> np.ndarray:
        """How often each frequency of a real transform occurs in the full one."""
        count_x = np.full(self.shape[1] // 2 + 1, 2.0)
        count_x[0] = 1.0
        if self.shape[1] % 2 == 0:
            count_x[-1] = 1.0
        return np.asarray(np.broadcast_to(count_x, self._ring_yx.shape))

    @cached_property
    def _band_r(self) -> np.ndarray:
        """Square of the blur of a drawn atom on each ring: high frequencies hold only noise."""
        q_r = np.arange(int(self._ring_yx.max()) + 1) / max(self.shape)
        return np.asarray(np.exp(-4.0 * (np.pi * self._fine_px * q_r) ** 2))

    def _ring_sum(self, values_yx: np.ndarray) -> np.ndarray:
        weighted_yx = values_yx * self._multiplicity_yx
        return np.bincount(self._ring_yx.ravel(), weighted_yx.ravel())

    def _without_mean(self, picture_yx: np.ndarray) -> np.ndarray:
        """Return what is finer than the coarse end of the band.

        Three box filters are nearly a Gaussian, and their cost does not grow with its width.
        """
        width = max(3, 2 * round(math.sqrt(self._coarse_px**2 + 0.25)) + 1)
        mean_yx = picture_yx
        for _ in range(3):
            mean_yx = uniform_filter(mean_yx, width, mode="reflect")
        return np.asarray(picture_yx - mean_yx)

    def _spectrum(self, flat_yx: np.ndarray) -> np.ndarray:
        """Return the transform of a picture whose local means are already removed."""
        return np.asarray(fft.rfft2(flat_yx * self._taper_y[:, None] * self._taper_x[None, :]))

    def _splat(self, atoms: np.ndarray) -> np.ndarray:
        """Return a frame where each atom adds 1, shared over the four pixels around it."""
        rows, columns = self.shape
        y, x = np.clip(atoms[:, 0], 0, rows - 1), np.clip(atoms[:, 1], 0, columns - 1)
        top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
        flat = np.zeros(rows * columns)
        for row, part_y in ((top, 1 - (y - top)), (np.minimum(top + 1, rows - 1), y - top)):
            for col, part_x in (
                (left, 1 - (x - left)),
                (np.minimum(left + 1, columns - 1), x - left),
            ):
                flat += np.bincount(row * columns + col, part_y * part_x, minlength=rows * columns)
        return flat.reshape(rows, columns)


def lattice_score(
    atoms: np.ndarray, pixel_size_pm: float, lattice: Lattice, shape: tuple[int, ...]
) -> float:
    """Return how well the atoms lie on a lattice, 0 to 1; atoms near the border do not count.

    Each atom should have its neighbours at the bond length (within about 15 %), and none nearer or
    between the first and the second shell. One missing bond costs nothing. So atoms at a vacancy or
    at an edge lose nothing, and filling a vacancy gains nothing.

    Args:
        atoms: (K, >= 2) y, x in pixels.
        pixel_size_pm: edge of a pixel.
        lattice: the crystal.
        shape: rows and columns of the frame.
    """
    bond_px = lattice.bond_pm / pixel_size_pm
    if len(atoms) < lattice.bond_count + 2:
        return 0.0
    points = atoms[:, :2].astype(np.float64)
    inner = np.all((points > bond_px) & (points < np.array(shape[:2]) - 1 - bond_px), axis=1)
    if not inner.any():
        return 0.0
    near = cKDTree(points).query(points[inner], k=lattice.bond_count + 2)[0][:, 1:]
    bonds, beyond = near[:, : lattice.bond_count] / bond_px, near[:, -1] / bond_px
    # Log ratio: an error of a few per cent in scale (strain, pixel size) costs little.
    quality = np.exp(-0.5 * (np.log(np.maximum(bonds, 1e-3)) / 0.15) ** 2)
    needed = max(lattice.bond_count - 1, 1)
    bonded = np.sort(quality, axis=1)[:, ::-1][:, :needed].mean(axis=1)
    crowded = np.clip((beyond - 1.1) / 0.35, 0.0, 1.0)
    return float(np.mean(bonded * crowded))


def agreement_scores(member_atoms: Sequence[np.ndarray], radius_px: float) -> list[float]:
    """Return the F1 of each member against the atoms that at least half of the OTHER members share.

    A member that finds nothing scores 0, as does a single member. Similar members confirm each
    other's errors, so this score has a small weight.
    """
    member_count = len(member_atoms)
    if member_count < 2:
        return [0.0] * member_count
    points = [np.asarray(atoms[:, :2], dtype=np.float64) for atoms in member_atoms]
    near = _near(points, radius_px)
    scores = []
    for index in range(member_count):
        others = [other for other in range(member_count) if other != index]
        hits, found = _support(near, index, others)
        # Atoms that the others share and this member lacks. Each sharer counts as one part of such
        # an atom.
        missed = sum(_missed_by(near, other, index, others) for other in others)
        scores.append(2 * hits / max(found + hits + missed, 1e-9) if found else 0.0)
    return scores


def _support(near: list[list[np.ndarray]], index: int, others: list[int]) -> tuple[float, float]:
    """Return how many atoms of a member half of the others share, and how many it has."""
    votes = np.sum([near[index][other] for other in others], axis=0)
    return float(np.sum(votes >= len(others) / 2)), float(len(votes))


def _missed_by(near: list[list[np.ndarray]], other: int, index: int, others: list[int]) -> float:
    """Return the atoms of `other`, shared by half of the others but not seen by `index`."""
    votes = np.sum([near[other][peer] for peer in others], axis=0)
    shared = (votes >= len(others) / 2) & ~near[other][index]
    return float(np.sum(1.0 / np.maximum(votes[shared], 1)))


def _near(points: Sequence[np.ndarray], radius_px: float) -> list[list[np.ndarray]]:
    """Return which points of each member have one of each other member near them."""
    every_n2, ends = np.concatenate(points), np.cumsum([len(one) for one in points])[:-1]
    found = []  # by the other member, for the points of all
    for other in points:
        near_n = np.zeros(len(every_n2), dtype=bool)
        if len(other) and len(every_n2):
            tree = cKDTree(other)
            near_n = tree.query(every_n2, distance_upper_bound=radius_px)[0] <= radius_px
        found.append(np.split(near_n, ends))
    return [list(of_one) for of_one in zip(*found, strict=True)]


def _confidence(atoms: np.ndarray) -> float:
    """Return the mean probability of the atoms; 0 without atoms, 1 without probabilities."""
    if not len(atoms):
        return 0.0
    return float(np.clip(np.mean(atoms[:, 3]), 0, 1)) if atoms.shape[1] > 3 else 1.0


def _assumed_pixel_pm(member_atoms: Sequence[np.ndarray]) -> float:
    """Return the pixel size at which the median neighbour distance of the atoms is one bond."""
    gaps = [
        cKDTree(atoms[:, :2]).query(atoms[:, :2], k=2)[0][:, 1]
        for atoms in member_atoms
        if len(atoms) > 1
    ]
    return BOND_PM / max(float(np.median(np.concatenate(gaps))), 1.0) if gaps else 16.0


def _taper(side: int) -> np.ndarray:
    """Return a window that falls to 0 over an eighth of the side at both ends."""
    edge = max(side // 8, 1)
    window = np.ones(side)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    window[:edge], window[side - edge :] = ramp, ramp[::-1]
    return window
