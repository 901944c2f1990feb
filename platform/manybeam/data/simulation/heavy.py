"""Single heavy atoms on an amorphous support, and which of them are visible.

The beam moves the atoms, and they gather at defects. Around them there are fainter specks, lighter
atoms and small clusters; these are in the frame but not in the truth.
Axis letters: k atom, p part of an atom, y row, x column of the canvas, 2 the pair (y, x).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from manybeam.data.simulation.optics import FWHM_PER_SIGMA, collected, wavelength_pm
from manybeam.data.simulation.structures import CARBON_A2, EXPONENT, PEAK_PER_A2, Structure

BESIDE_PM = (250.0, 700.0)  # distance of an atom from the one that it has gathered at
PARTS = 4  # positions of an atom while the beam passes over it
SPECK_SIGNAL = (0.1, 0.5)  # of that of a heavy atom
INNER_PM, OUTER_PM = 60.0, 150.0  # of the difference of Gaussians for visibility
AROUND_PM = 450.0  # distance around an atom within which the texture of the support counts
BACKGROUND_A2 = PEAK_PER_A2 * CARBON_A2  # of a background of one carbon peak, per A^2 of the frame

Array = NDArray[np.floating]
Draw = Mapping[str, float]


def heavy_atoms(draw: Draw, support_yx: Array, pixel_size_pm: float, rng: Generator) -> Structure:
    """Return heavy atoms and specks at random places of a support; none in vacuum.

    The truth has the atoms whose visibility is at least `least_visibility`. An atom that is hidden
    in the texture of a thick support is in the frame, but a person would not label it.

    Args:
        draw: quantities of this frame, by name and in their units.
        support_yx: scattering power of the support in each pixel of the canvas, in A^2.
        pixel_size_pm: edge of a pixel of the canvas.
        rng: of this frame.
    """
    covered_yx = support_yx > 0.15 * support_yx[support_yx > 0].mean() if support_yx.any() else None
    if covered_yx is None:
        return _none()
    atoms = _scattered(draw, draw["atoms_per_nm2"], covered_yx, pixel_size_pm, rng)
    signal_k = np.exp(draw["signal_spread"] * rng.normal(0, 1, len(atoms.number_n)))
    atoms = replace(atoms, signal_n=signal_k)
    seen_k = visibility(atoms, draw, support_yx, pixel_size_pm) >= draw["least_visibility"]
    specks = _scattered(draw, draw["specks_per_nm2"], covered_yx, pixel_size_pm, rng)
    faint_k = rng.uniform(*SPECK_SIGNAL, len(specks.number_n))
    drawn = _joined(atoms, replace(specks, signal_n=faint_k))
    if draw["atom_motion_pm"] > 0:
        drawn = _moving(drawn, draw["atom_motion_pm"], rng)
    # The truth has the mean position of each atom; the drawn parts are not in the truth.
    return _joined(
        replace(drawn, is_in_truth_n=np.zeros(len(drawn.number_n), bool)),
        replace(atoms, signal_n=np.zeros(len(seen_k)), is_in_truth_n=seen_k),
    )


def visibility(atoms: Structure, draw: Draw, support_yx: Array, pixel_size_pm: float) -> Array:
    """Return the visibility of each atom: its signal over the scatter around it, both band-passed.

    The band is a difference of Gaussians as wide as an atom. The scatter is that of the counted
    electrons and of the texture of the support: on a thick, rough support the same atom is less
    visible.

    Args:
        atoms: their positions on the canvas, in pm.
        draw: quantities of this frame.
        support_yx: scattering power of the support in each pixel, in A^2.
        pixel_size_pm: edge of a pixel.

    Returns:
        A ratio for each atom; a person marks atoms with about 3 or more.
    """
    electrons = draw["dose_e_per_a2"] * float(collected(_tensors(draw)))
    inner, outer = INNER_PM / pixel_size_pm, OUTER_PM / pixel_size_pm
    probe, atom = (width / pixel_size_pm for width in _widths_pm(draw))
    power_k = CARBON_A2 * (atoms.number_n / 6) ** EXPONENT * atoms.signal_n
    peak = _height(math.hypot(probe, atom), inner) - _height(math.hypot(probe, atom), outer)
    counted_yx = support_yx * electrons
    band_yx = gaussian_filter(counted_yx, math.hypot(probe, inner)) - gaussian_filter(
        counted_yx, math.hypot(probe, outer)
    )
    texture_yx = gaussian_filter(band_yx * band_yx, AROUND_PM / pixel_size_pm)
    uniform = BACKGROUND_A2 * draw["background"] * electrons * (pixel_size_pm / 100) ** 2
    mean_yx = gaussian_filter(counted_yx, outer) + uniform + draw["readout_e"] ** 2
    noise_yx = _passed(inner, outer) * mean_yx
    y, x = _pixels(atoms.position_n2 / pixel_size_pm, support_yx.shape)
    scatter_k = np.sqrt(texture_yx[y, x] + noise_yx[y, x])
    return np.asarray(power_k * electrons * peak / np.maximum(scatter_k, 1e-12))


def _scattered(
    draw: Draw, per_nm2: float, covered_yx: NDArray[np.bool_], size_pm: float, rng: Generator
) -> Structure:
    """Return atoms on the covered part of the canvas, some of them gathered beside others."""
    places = np.argwhere(covered_yx)
    count = int(rng.poisson(per_nm2 * len(places) * (size_pm / 1000) ** 2))
    if not count:
        return _none()
    pixel_k2 = places[rng.integers(0, len(places), count)] + rng.uniform(-0.5, 0.5, (count, 2))
    moves_k = rng.random(count) < draw["gathered_share"]
    angle, distance_pm = rng.uniform(0, 2 * math.pi, count), rng.uniform(*BESIDE_PM, count)
    step_k2 = np.stack([np.sin(angle), np.cos(angle)], axis=1) * distance_pm[:, None] / size_pm
    beside_k = rng.integers(0, np.maximum(np.arange(count), 1))
    moving = np.flatnonzero(moves_k[1:]) + 1
    place_k2 = _gathered(pixel_k2, moving, beside_k, step_k2, covered_yx)
    return Structure(place_k2 * size_pm, np.full(count, draw["atomic_number"]))


def _gathered(
    pixel_k2: Array,
    moving: NDArray[np.int64],
    beside_k: NDArray[np.int64],
    step_k2: Array,
    covered_yx: NDArray[np.bool_],
) -> Array:
    """Return positions; some are beside an earlier one, so that clumps form.

    It is a loop, because each position needs the one before it.
    """
    place, step, beside = pixel_k2.tolist(), step_k2.tolist(), beside_k.tolist()
    rows, columns = covered_yx.shape
    for k in moving.tolist():
        y, x = (a + b for a, b in zip(place[beside[k]], step[k], strict=True))
        if 0 <= y < rows and 0 <= x < columns and covered_yx[int(y), int(x)]:
            place[k] = [y, x]
    return np.array(place)


def _moving(atoms: Structure, motion_pm: float, rng: Generator) -> Structure:
    """Return atoms with several positions around their mean; some move more than others."""
    count = len(atoms.number_n)
    reach_k = motion_pm * np.exp(rng.normal(0, 0.5, count))
    step_kp2 = rng.normal(0, 1, (count, PARTS, 2)) * reach_k[:, None, None]
    step_kp2 -= step_kp2.mean(axis=1, keepdims=True)
    return Structure(
        (atoms.position_n2[:, None] + step_kp2).reshape(-1, 2),
        np.repeat(atoms.number_n, PARTS),
        np.repeat(np.broadcast_to(atoms.signal_n, count) / PARTS, PARTS),
    )


def _joined(one: Structure, other: Structure) -> Structure:
    counts = len(one.number_n), len(other.number_n)
    pairs = zip((one, other), counts, strict=True)
    signal, in_truth = zip(
        *((np.broadcast_to(s.signal_n, n), np.broadcast_to(s.is_in_truth_n, n)) for s, n in pairs),
        strict=True,
    )
    return Structure(
        np.concatenate([one.position_n2, other.position_n2]),
        np.concatenate([one.number_n, other.number_n]),
        np.concatenate(signal),
        np.concatenate(in_truth),
    )


def _none() -> Structure:
    return Structure(np.zeros((0, 2)), np.zeros(0))


def _widths_pm(draw: Draw) -> tuple[float, float]:
    """Return Gaussian widths of probe with source, and of an atom beyond them."""
    wavelength = float(wavelength_pm(torch.tensor(draw["beam_kv"])))
    disc_pm = 0.61 * wavelength / draw["convergence_mrad"] * 1e3
    probe = math.hypot(draw["source_fwhm_pm"], disc_pm)
    motion = FWHM_PER_SIGMA * draw["atom_motion_pm"]
    return probe / FWHM_PER_SIGMA, math.hypot(draw["atom_width_pm"], motion) / FWHM_PER_SIGMA


def _height(width: float, filtered: float) -> float:
    """Return the peak of a Gaussian of unit sum and that width, filtered by another."""
    return 1 / (2 * math.pi * (width**2 + filtered**2))


def _passed(inner: float, outer: float) -> float:
    """Return the share of the variance of white noise that a difference of Gaussians passes."""
    both = 1 / (math.pi * (inner**2 + outer**2))
    return 1 / (4 * math.pi * inner**2) + 1 / (4 * math.pi * outer**2) - both


def _pixels(place_k2: Array, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    y, x = np.clip(np.rint(place_k2).astype(np.int64), 0, np.array(shape) - 1).T
    return y, x


def _tensors(draw: Draw) -> dict[str, torch.Tensor]:
    names = ("beam_kv", "detector_inner_mrad", "detector_outer_mrad")
    return {name: torch.tensor([draw[name]]) for name in names}
