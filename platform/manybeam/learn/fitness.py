"""Fitness: how well a member's atoms fit a frame, told without any truth.

Four scores, each 0 to 1: `forward` (do the atoms, rendered again, look like the frame?),
`lattice` (do they stand as this crystal's atoms do?), `agreement` (do the other members see them
too?) and `confidence`. One function weighs them; every part is returned by name.
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

# Band of the frame that atoms live in: blurred by 35 pm against shot noise, freed of everything
# wider than 170 pm (contamination, thickness of the support).
FINE_PM = 35.0
COARSE_PM = 170.0
# Widths of the Gaussian an atom is rendered as: standard deviations in picometres.
WIDTHS_PM = np.geomspace(20.0, 160.0, 19)
# Where no pixel size is known, the members' own neighbour distance stands for a bond of carbon.
BOND_PM = 142.0
# Weight of each score in the sum; a score that does not apply gives its weight to the others.
WEIGHTS: Mapping[str, float] = {
    "lattice": 0.45,
    "forward": 0.35,
    "agreement": 0.15,
    "confidence": 0.05,
}


@dataclass(frozen=True)
class Lattice:
    """The crystal the atoms should stand in: bond length and bonds per atom, seen along the beam.

    Attributes:
        bond_pm: distance of nearest neighbours in projection.
        bond_count: neighbours at that distance around an atom of the perfect crystal.
    """

    bond_pm: float
    bond_count: int


# Structures of `spec.Sample` that have a lattice; the others have none to be judged by.
LATTICES: Mapping[str, Lattice] = {"graphene": Lattice(bond_pm=142.0, bond_count=3)}


@dataclass(frozen=True)
class Fitness:
    """What one member's atoms are worth on one frame.

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
    """Return the fitness of each member on one frame, from the atoms each found.

    Args:
        frame_yx: the frame.
        member_atoms: per member (K, >= 2) y, x, class, probability, in pixels of the frame.
        pixel_size_pm: edge of a pixel; None measures lengths by the members' own neighbours.
        lattice: the crystal, or None where there is none (single atoms on a support).
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


def combine(parts: Mapping[str, float]) -> float:
    """Return the weighted geometric mean of the parts; one part at zero makes the whole zero.

    The geometric mean is asked for because the parts are independent doubts: atoms that stand
    in a perfect lattice where the frame shows none are not half right.
    """
    weight = sum(WEIGHTS[name] for name in parts)
    logs = sum(WEIGHTS[name] * math.log(max(value, 1e-6)) for name, value in parts.items())
    return math.exp(logs / weight) if weight else 0.0


class ForwardModel:
    """One frame, ready to be compared with atoms rendered again.

    Every atom becomes a Gaussian of one common width and brightness. For atoms that do not
    overlap, the correlation of that picture with a noise-free frame is sqrt(precision * recall):
    a false atom adds to the picture what the frame lacks, a missed one leaves it out. The common
    brightness is the penalty on complexity: no atom can be switched on to explain noise at a
    price of its own. Only the width is fitted, on the sums over rings of spatial frequency.

    Args:
        frame_yx: the frame.
        pixel_size_pm: edge of a pixel, in picometres; > 0.

    Source:
        Matched filtering of band-passed frames as usual in HAADF column finding; the closed form
        on ring sums, and the noise floor taken from beyond the probe's resolution, are ours.
    """

    def __init__(self, frame_yx: np.ndarray, pixel_size_pm: float) -> None:
        self.shape = frame_yx.shape
        self._pixel_pm = pixel_size_pm
        self._taper_y, self._taper_x = _taper(self.shape[0]), _taper(self.shape[1])
        self._fine_px = max(FINE_PM / pixel_size_pm, 0.6)
        self._coarse_px = max(COARSE_PM / pixel_size_pm, 2.5)
        self._spectrum_yx = self._spectrum(np.nan_to_num(frame_yx.astype(np.float64)))

    @cached_property
    def _ring_yx(self) -> np.ndarray:
        """Index of the ring of each frequency; rings are one pixel of the longer side wide."""
        return np.asarray(np.rint(self._q_yx * max(self.shape)).astype(np.intp))

    @cached_property
    def _q_yx(self) -> np.ndarray:
        """Length of each frequency, in cycles per pixel."""
        qy, qx = fft.fftfreq(self.shape[0])[:, None], fft.rfftfreq(self.shape[1])[None, :]
        return np.asarray(np.hypot(qy, qx))

    @cached_property
    def _multiplicity_yx(self) -> np.ndarray:
        """How often each frequency of a real transform stands in the full one."""
        count_x = np.full(self._spectrum_yx.shape[1], 2.0)
        count_x[0] = 1.0
        if self.shape[1] % 2 == 0:
            count_x[-1] = 1.0
        return np.asarray(np.broadcast_to(count_x, self._spectrum_yx.shape))

    @cached_property
    def _q_r(self) -> np.ndarray:
        """Frequency of each ring, in cycles per pixel."""
        return np.arange(int(self._ring_yx.max()) + 1) / max(self.shape)

    @cached_property
    def _band_r(self) -> np.ndarray:
        """Square of the blur against shot noise on each ring."""
        return np.asarray(_blur(self._q_r, self._fine_px) ** 2)

    @cached_property
    def _frame_power(self) -> float:
        """Power of the frame in the band without the share that white noise has in it."""
        power_yx = np.abs(self._spectrum_yx) ** 2
        total_r, count_r = self._ring_sum(power_yx), self._ring_sum(np.ones_like(power_yx))
        # The highest fifth of frequencies up to Nyquist: past what the probe can resolve, unless
        # pixels are so coarse that nothing is; then the floor is too high and is held back.
        nyquist = max(self.shape) // 2
        past = slice(int(0.8 * nyquist), nyquist)
        floor = float(np.median(total_r[past] / np.maximum(count_r[past], 1)))
        total, noise = float(total_r @ self._band_r), floor * float(count_r @ self._band_r)
        return max(total - noise, 0.05 * total, 1e-12)

    def score(self, atoms: np.ndarray) -> float:
        """Return the correlation of the rendered atoms with the frame, 0 (none) to 1 (all of it).

        The noise that the frame's own floor predicts is taken out, so that 1 can be reached on
        noisy frames too.
        """
        if not len(atoms):
            return 0.0
        picture_yx = self._spectrum(self._splat(atoms))
        product = (
            self._spectrum_yx.real * picture_yx.real + self._spectrum_yx.imag * picture_yx.imag
        )
        cross_r = self._ring_sum(product) * self._band_r
        self_r = self._ring_sum(np.abs(picture_yx) ** 2) * self._band_r
        blur_wr = _blur(self._q_r[None, :], (WIDTHS_PM / self._pixel_pm)[:, None])
        power_w = (blur_wr**2) @ self_r
        best = np.max((blur_wr @ cross_r) / np.sqrt(np.maximum(power_w, 1e-30)))
        return float(np.clip(best / math.sqrt(self._frame_power), 0.0, 1.0))

    def _spectrum(self, picture_yx: np.ndarray) -> np.ndarray:
        """Return the transform of what is finer than the band's coarse end.

        That is freed of its local mean before the taper, or the taper would make structure of a
        slope, of the support and even of the mean density of atoms. Three boxes make a near
        Gaussian at a price that does not grow with its width.
        """
        width = max(3, 2 * round(math.sqrt(self._coarse_px**2 + 0.25)) + 1)
        mean_yx = picture_yx
        for _ in range(3):
            mean_yx = uniform_filter(mean_yx, width, mode="reflect")
        taper_yx = self._taper_y[:, None] * self._taper_x[None, :]
        return np.asarray(fft.rfft2((picture_yx - mean_yx) * taper_yx))

    def _ring_sum(self, values_yx: np.ndarray) -> np.ndarray:
        weighted_yx = values_yx * self._multiplicity_yx
        return np.bincount(self._ring_yx.ravel(), weighted_yx.ravel())

    def _splat(self, atoms: np.ndarray) -> np.ndarray:
        """Return a frame with each atom's unit shared over the four pixels around it."""
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
    """Return how lattice-like the atoms stand, 0 to 1; atoms near the border do not count.

    Each atom is asked for its bonds: neighbours at the bond's length (within about 15 %), and
    nobody nearer than that or in between the first and the second shell. One bond may be missing
    without loss, so that the rim of a vacancy or of an edge costs nothing and a filled vacancy
    earns nothing: people look for exactly those.

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
    # Log ratio: a scale that is off by a few per cent (strain, a wrong pixel size) is forgiven.
    quality = np.exp(-0.5 * (np.log(np.maximum(bonds, 1e-3)) / 0.15) ** 2)
    asked = max(lattice.bond_count - 1, 1)
    held = np.sort(quality, axis=1)[:, ::-1][:, :asked].mean(axis=1)
    crowded = np.clip((beyond - 1.1) / 0.35, 0.0, 1.0)
    return float(np.mean(held * crowded))


def agreement_scores(member_atoms: Sequence[np.ndarray], radius_px: float) -> list[float]:
    """Return each member's F1 against the atoms that at least half of the OTHER members share.

    A member that finds nothing scores 0, as does one alone. Twins would vouch for one another, so
    this has a small weight.
    """
    member_count = len(member_atoms)
    if member_count < 2:
        return [0.0] * member_count
    points = [np.asarray(atoms[:, :2], dtype=np.float64) for atoms in member_atoms]
    near = [[_has_near(one, other, radius_px) for other in points] for one in points]
    scores = []
    for index in range(member_count):
        others = [other for other in range(member_count) if other != index]
        hits, found = _support(near, index, others)
        # What the others share and this member lacks; a shared atom is seen by every sharer, so
        # each counts as one part of it.
        missed = sum(_missed_by(near, other, index, others) for other in others)
        scores.append(2 * hits / max(found + hits + missed, 1e-9) if found else 0.0)
    return scores


def _support(near: list[list[np.ndarray]], index: int, others: list[int]) -> tuple[float, float]:
    """Return how many of one member's atoms half of the others share, and how many it has."""
    votes = np.sum([near[index][other] for other in others], axis=0)
    return float(np.sum(votes >= len(others) / 2)), float(len(votes))


def _missed_by(near: list[list[np.ndarray]], other: int, index: int, others: list[int]) -> float:
    """Return the atoms of `other`, shared by half of the others but not seen by `index`."""
    votes = np.sum([near[other][peer] for peer in others], axis=0)
    shared = (votes >= len(others) / 2) & ~near[other][index]
    return float(np.sum(1.0 / np.maximum(votes[shared], 1)))


def _has_near(one: np.ndarray, other: np.ndarray, radius_px: float) -> np.ndarray:
    if not len(one) or not len(other):
        return np.zeros(len(one), dtype=bool)
    return np.asarray(cKDTree(other).query(one, distance_upper_bound=radius_px)[0] <= radius_px)


def _confidence(atoms: np.ndarray) -> float:
    """Return the mean probability of the atoms; 0 without atoms, 1 where none is given."""
    if not len(atoms):
        return 0.0
    return float(np.clip(np.mean(atoms[:, 3]), 0, 1)) if atoms.shape[1] > 3 else 1.0


def _assumed_pixel_pm(member_atoms: Sequence[np.ndarray]) -> float:
    """Return the pixel size at which the members' median neighbour distance is one bond."""
    gaps = [
        cKDTree(atoms[:, :2]).query(atoms[:, :2], k=2)[0][:, 1]
        for atoms in member_atoms
        if len(atoms) > 1
    ]
    return BOND_PM / max(float(np.median(np.concatenate(gaps))), 1.0) if gaps else 16.0


def _taper(side: int) -> np.ndarray:
    """Return a window that is flat but for an eighth of the side at both ends."""
    edge = max(side // 8, 1)
    window = np.ones(side)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    window[:edge], window[side - edge :] = ramp, ramp[::-1]
    return window


def _blur(q: np.ndarray, width_px: float | np.ndarray) -> np.ndarray:
    """Return the transfer of a Gaussian blur of standard deviation `width_px` at frequency q."""
    return np.asarray(np.exp(-2.0 * (np.pi * width_px * q) ** 2))
