"""Positions of atoms in the sample: graphene, and the support of heavy atoms.

Crystals of columns are in `columns`, heavy atoms in `heavy`.

A structure is larger than the frame by a margin, because atoms outside of the frame still add
intensity at its edge. Positions are (y, x) in picometres from the centre of pixel (0, 0).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

# Of one carbon atom, 70 to 200 mrad at 60 kV, by multislice (decision 0008): 0.85e-3 in graphene,
# 1.03e-3 alone. `optics.collected` scales it.
CARBON_A2 = 1.0e-3
# The unit of background and contamination, per scattering power of a carbon atom: about the height
# of its peak, which is .65 with the typical probe of graphene. It is fixed, so that a background
# does not depend on the probe.
PEAK_PER_A2 = 0.55
EXPONENT = 1.64  # of the atomic number in an atom's scattering power
LATTICE_PM = 246.0  # graphene
MARGIN_PM = 400.0
RIPPLE_PM = 4.0  # static displacement of each atom, standard deviation
ROUGHNESS = 3.0  # a support's power spectrum falls as frequency to the minus this
OVERLAP_PROBABILITY = 0.35  # of a second grain over the first, about four in eleven frames
LEAST_ATOMS = 30  # if a hole would leave fewer, it is not cut

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Structure:
    """Atoms of one frame.

    Attributes:
        position_n2: (y, x), in pm.
        number_n: atomic number.
        signal_n: signal, relative to one atom of this number: less for an atom deep in the sample,
            more for a column.
        is_in_truth_n: whether it is part of the truth.
    """

    position_n2: Array
    number_n: Array
    signal_n: Array | float = 1.0
    is_in_truth_n: NDArray[np.bool_] | bool = True


def graphene(draw: Mapping[str, float], side_pm: tuple[float, float], rng: Generator) -> Structure:
    """Return a patch of graphene at a random angle, with its defects.

    Args:
        draw: `strain`, `vacancy_fraction`, `silicon_fraction`, `nitrogen_fraction` and
            `hole_probability` of this frame.
        side_pm: height and width of the frame, in pm.
        rng: of this frame.
    """
    position_n2 = _lattice(draw["strain"], side_pm, rng)
    if rng.random() < draw["hole_probability"]:
        position_n2 = position_n2[cut(position_n2, side_pm, rng)]
    keep = rng.random(len(position_n2)) >= draw["vacancy_fraction"]
    position_n2 = position_n2[keep]
    number_n = np.full(len(position_n2), 6.0)
    luck = rng.random(len(position_n2))
    silicon, nitrogen = draw["silicon_fraction"], draw["nitrogen_fraction"]
    number_n[luck < silicon] = 14
    number_n[(luck >= silicon) & (luck < silicon + nitrogen)] = 7
    return Structure(position_n2 + rng.normal(0, RIPPLE_PM, position_n2.shape), number_n)


def cut(position_n2: Array, side_pm: tuple[float, float], rng: Generator) -> NDArray[np.bool_]:
    """Return which atoms of a sheet remain beside a ragged round hole or straight edge.

    Args:
        position_n2: (y, x) of the atoms, in pm.
        side_pm: height and width of the frame, in pm.
        rng: of this frame.
    """
    side, widest = np.array(side_pm), max(250.0, min(700.0, min(side_pm) * 0.35 + 1))
    if rng.random() < 0.5:
        centre, radius = rng.uniform(0, side), rng.uniform(250, widest)
        from_centre = np.hypot(*(position_n2 - centre).T)
        remains = from_centre > radius + rng.normal(0, 30, len(position_n2))
    else:
        angle = rng.uniform(0, 2 * math.pi)
        outward = (position_n2 - side / 2) @ np.array([math.cos(angle), math.sin(angle)])
        limit = rng.uniform(0, min(side_pm) * 0.45)
        remains = outward < limit + rng.normal(0, 20, len(position_n2))
    return np.asarray(remains if remains.sum() > LEAST_ATOMS else np.ones_like(remains))


def support_thickness(
    draw: Mapping[str, float], shape: tuple[int, int], pixel_size_pm: float, rng: Generator
) -> Array:
    """Return the relative thickness of an amorphous support: 0 in vacuum, 1 on average inside.

    The relief is rough on every scale below `support_grain_nm`. Some frames have a wavy edge to
    vacuum, from which the support becomes thicker; in others a second grain covers a part.
    """
    grain_px = max(draw["support_grain_nm"], 0.05) * 1000 / pixel_size_pm
    thickness_yx = np.exp(draw["support_relief"] * rough_noise(shape, grain_px, rng))
    if rng.random() < draw["hole_probability"]:
        thickness_yx *= _rise_from_edge(shape, pixel_size_pm, rng)
    if rng.random() < OVERLAP_PROBABILITY:
        thickness_yx *= 1 + rng.uniform(0.2, 0.8) * _rise_from_edge(shape, pixel_size_pm, rng)
    inside = thickness_yx[thickness_yx > 0.15]
    return np.asarray(thickness_yx / (inside.mean() if inside.size else 1.0))


def smooth_noise(shape: tuple[int, int], sigma_px: float, rng: Generator) -> Array:
    """Return Gaussian noise of unit variance, smooth over `sigma_px`; it wraps around."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    shape_of_spectrum = np.exp(-2 * (math.pi * sigma_px) ** 2 * (fy**2 + fx**2))
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(0, 1, shape)) * shape_of_spectrum, s=shape)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9))


def rough_noise(shape: tuple[int, int], grain_px: float, rng: Generator) -> Array:
    """Return Gaussian noise of unit variance, rough like a porous support; it wraps around.

    Its power falls as frequency to the -3 beyond 1 / `grain_px`: measured on eleven frames of Pt
    on N-doped carbon, where it is so from 0.3 to 3 nm.
    """
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    amplitude = (fy**2 + fx**2 + grain_px**-2) ** (-ROUGHNESS / 4)
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(0, 1, shape)) * amplitude, s=shape)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9))


def _lattice(strain: float, side_pm: tuple[float, float], rng: Generator) -> Array:
    """Return the sites of a strained, rotated, shifted honeycomb that covers frame and margin."""
    constant = LATTICE_PM * (1 + rng.normal(0, strain))
    reach = (max(side_pm) + 2 * MARGIN_PM) * 0.75
    count = int(reach / constant * 1.3) + 2
    i, j = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1), indexing="ij")
    one = np.array([constant, 0.0])
    two = np.array([constant / 2, constant * math.sqrt(3) / 2])
    cells = (i[..., None] * one + j[..., None] * two).reshape(-1, 2)
    sites = np.concatenate([cells, cells + (one + two) / 3])
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    sites = sites @ turn + rng.uniform(-constant, constant, 2)
    sites = sites * (1 + rng.normal(0, strain, 2)) + np.array(side_pm) / 2
    inside = ((sites > -MARGIN_PM) & (sites < np.array(side_pm) + MARGIN_PM)).all(axis=1)
    return np.asarray(sites[inside])


def _rise_from_edge(shape: tuple[int, int], pixel_size_pm: float, rng: Generator) -> Array:
    """Return 0 outside a wavy edge, rising inward over some nanometres."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 1.0)
    waves = 0.18 * smooth_noise(shape, max(shape) * 0.09, rng)
    waves = waves + 0.02 * smooth_noise(shape, max(shape) * 0.02, rng)
    half_nm = max(shape) * pixel_size_pm / 2000
    depth_nm = (y * math.sin(angle) + x * math.cos(angle) + offset + waves) * half_nm
    depth_nm = np.clip(depth_nm, 0, None)
    length_nm, slope_per_nm = rng.uniform(0.5, 5.0), rng.uniform(0, 0.12)
    floor, rim_nm = rng.uniform(0.1, 0.5), rng.uniform(0.4, 1.6)
    inward = floor + (1 - floor) * (1 - np.exp(-depth_nm / length_nm)) + slope_per_nm * depth_nm
    rise = np.clip(depth_nm / rim_nm, 0, 1) * inward
    return np.asarray(rise)
