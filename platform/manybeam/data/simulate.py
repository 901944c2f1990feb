"""Simulated dark-field frames with exact truth: graphene, and heavy atoms on a support.

Incoherent imaging: every atom adds its scattering power times the probe at its place. The object
is summed exactly in Fourier space (one real matrix product a frame), so that an atom may lie
anywhere between pixels; then scan, detector and electronics do to it what they do to a real one.

Axis letters: b frame of a batch, n frame, k atom, y row, x column.

Source: Z-contrast as in Pennycook and Jesson, Ultramicroscopy 37, 14 (1991), with the exponent
1.64 of Hartel et al., Ultramicroscopy 63, 93 (1996) for annular detectors.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from manybeam.data.frames import FrameSet
from manybeam.data.optics import atom_blur, transfer
from manybeam.data.recording import record, true_places
from manybeam.data.structures import MARGIN_PM, Structure, graphene, heavy_atoms, support_thickness
from manybeam.errors import InvalidInput
from manybeam.spec import Condition, Policy, Range

CARBON_A2 = 2.0e-3  # of one carbon atom, 70 to 200 mrad at 60 kV; `optics.collected` scales it
EXPONENT = 1.64
CARBON_PER_NM3 = 100.0  # amorphous carbon, 2.0 g/cm3
DISORDER = 0.15  # variance of atoms in a pixel over that of a gas: atoms keep their distance
SHEET_PER_NM2 = 38.2  # atoms of one graphene layer
BATCH_PIXELS = 300_000  # of one batch's canvas: bounds memory and stays in the caches
DEFAULT_SHAPE = (128, 128)

_GRAPHENE = {
    "sample.vacancy_fraction": 0.01,
    "sample.silicon_fraction": 0.005,
    "sample.nitrogen_fraction": 0.01,
    "sample.hole_probability": 0.25,
    "sample.strain": 0.01,
    "optics.beam_kv": 60.0,
    "scan.pixel_size_pm": 16.0,
    "dose_e_per_a2": 1.2e6,
    "state.background": 0.3,
    "state.contamination": 0.05,
}
_HEAVY = {
    "sample.hole_probability": 0.8,
    "sample.atoms_per_nm2": 0.3,
    "sample.atomic_number": 78.0,
    "sample.atom_width_pm": 90.0,
    "sample.signal_spread": 0.25,
    "sample.support_nm": 75.0,
    "sample.support_relief": 0.105,
    "sample.support_grain_nm": 4.0,
    "optics.beam_kv": 200.0,
    "optics.source_fwhm_pm": 95.0,
    "scan.pixel_size_pm": 29.3,
    "dose_e_per_a2": 4e4,
    "state.background": 12.0,
}
_ALWAYS = {
    "optics.convergence_mrad": 30.0,
    "optics.focal_spread_nm": 4.0,
    "optics.source_fwhm_pm": 60.0,
    "scan.row_jitter_pm": 5.0,
    "detector.detector_inner_mrad": 70.0,
    "detector.detector_outer_mrad": 200.0,
    "detector.readout_e": 0.3,
    "detector.gamma": 1.0,
    "detector.saturation": 1.0,
    "detector.gain": 1.0,
}
TYPICAL: dict[str, dict[str, float]] = {
    "graphene": _ALWAYS | _GRAPHENE,
    "heavy_atoms": _ALWAYS | _HEAVY,
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulated:
    """Simulated frames and all that is known of them.

    Attributes:
        frames_nyx: counts, float32.
        truth: one (atoms, 3) array a frame: y, x in pixels, atomic number.
        pixel_size_pm: of each frame.
    """

    frames_nyx: NDArray[np.float32]
    truth: list[NDArray[np.float32]]
    pixel_size_pm: NDArray[np.float64]


def simulate(
    imaging: Condition | Policy,
    count: int,
    *,
    seed: int,
    shape: tuple[int, int] | None = None,
) -> Simulated:
    """Return frames simulated under a condition, or each under its own draw from a policy.

    Frame i depends on (seed, i) alone: more frames do not change the first ones.

    Args:
        imaging: what to simulate; quantities it does not know are typical of its structure.
        count: frames, at least 1.
        seed: same seed, same frames.
        shape: rows and columns; those of `imaging.scan`, or 128 x 128.

    Raises:
        InvalidInput: no structure to draw, or a count or shape that makes no frame.
    """
    batches = list(_batches(imaging, count, seed, shape))
    return Simulated(
        np.concatenate([batch.frames_nyx for batch in batches]),
        [truth for batch in batches for truth in batch.truth],
        np.concatenate([batch.pixel_size_pm for batch in batches]),
    )


def simulate_into(
    url: str,
    imaging: Condition | Policy,
    count: int,
    *,
    seed: int,
    shape: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> FrameSet:
    """Simulate frames straight into a new FrameSet, replacing one that is there.

    Nobody sees half of the frames: all are one append. A set that is there is removed first.

    Args:
        url: where the FrameSet is written.
        imaging: what to simulate.
        count: frames.
        seed: same seed, same frames.
        shape: rows and columns of a frame.
        progress: called with (frames done, frames) after each batch.
    """
    done: list[Simulated] = []
    for batch in _batches(imaging, count, seed, shape):
        done.append(batch)
        if progress:
            progress(sum(len(one.truth) for one in done), count)
    frames_nyx = np.concatenate([one.frames_nyx for one in done])
    truth = [atoms for one in done for atoms in one.truth]
    sizes = np.concatenate([one.pixel_size_pm for one in done])
    made = FrameSet.create(url, imaging, frames_nyx.shape[1:], overwrite=True)
    made.append(frames_nyx, truth, sizes)
    return made


def typical(imaging: Condition | Policy) -> dict[str, float | Range]:
    """Return every quantity by its dotted path, the unknown ones typical of the structure.

    Raises:
        InvalidInput: the structure is unknown, so there is nothing to draw.
    """
    structure = imaging.sample.structure
    if structure not in TYPICAL:
        raise InvalidInput(
            f"{imaging.id!r} has sample.structure {structure!r}, which cannot be simulated",
            f"structures: {', '.join(TYPICAL)}",
            "give sample.structure, or choose a simulated condition",
        )
    defaults = TYPICAL[structure]
    return {
        path: defaults.get(path, 0.0) if value is None else value
        for path, value in imaging.quantities()
    }


def _batches(
    imaging: Condition | Policy, count: int, seed: int, shape: tuple[int, int] | None
) -> Iterator[Simulated]:
    shape = shape or imaging.scan.shape or DEFAULT_SHAPE
    if count < 1 or min(shape) < 1:
        raise InvalidInput(
            f"{count} frames of {shape[0]} x {shape[1]} px", "at least one frame of one pixel", ""
        )
    quantities = typical(imaging)
    at_once = max(1, min(16, BATCH_PIXELS // (shape[0] * shape[1])))
    for first in range(0, count, at_once):
        streams = [
            np.random.default_rng((seed, i)) for i in range(first, min(first + at_once, count))
        ]
        draws = [_draw(imaging, quantities, rng) for rng in streams]
        yield _simulate_batch(imaging.sample.structure, draws, shape, streams)


def _draw(
    imaging: Condition | Policy, quantities: Mapping[str, float | Range], rng: Generator
) -> dict[str, float]:
    """Return one value of each quantity by its own name, ranges drawn."""
    drawn = {}
    for path, value in quantities.items():
        name = path.rpartition(".")[2]
        if isinstance(value, Range) and name in imaging.LOG_UNIFORM and value.low > 0:
            drawn[name] = math.exp(rng.uniform(math.log(value.low), math.log(value.high)))
        elif isinstance(value, Range):
            drawn[name] = rng.uniform(value.low, value.high)
        else:
            drawn[name] = value
    # The sample drifts any way it likes; a frame without drift draws nothing for it.
    drifts = drawn["drift_pm_per_row"] != 0
    drawn["drift_angle"] = rng.uniform(0, 2 * math.pi) if drifts else 0.0
    return drawn


def _simulate_batch(
    structure: str,
    draws: Sequence[Mapping[str, float]],
    shape: tuple[int, int],
    streams: Sequence[Generator],
) -> Simulated:
    """Return one batch: structures, object, probe, scan, detector, truth."""
    margin_px = math.ceil(MARGIN_PM / min(draw["pixel_size_pm"] for draw in draws))
    rows, columns = (scipy.fft.next_fast_len(side + 2 * margin_px, real=True) for side in shape)
    canvas = (rows, columns)
    q = {name: torch.tensor([draw[name] for draw in draws]) for name in draws[0]}
    angle = np.stack([rng.uniform(0, 2 * math.pi, 3) for rng in streams])
    probe = transfer(q, torch.tensor(angle, dtype=torch.float32), canvas)
    place = _graphene_object if structure == "graphene" else _heavy_object
    structures, objects = place(draws, shape, canvas, margin_px, streams)
    if q["atom_width_pm"].any():
        objects = (objects[0] * atom_blur(q, canvas), objects[1])
    image = torch.fft.irfft2((objects[0] + objects[1]) * probe, s=canvas)
    pixel_a2 = (q["pixel_size_pm"] / 100)[:, None, None] ** 2
    frames = record(image / pixel_a2, q, draws, shape, margin_px, CARBON_A2, streams)
    truth = [true_places(s, d, shape) for s, d in zip(structures, draws, strict=True)]
    sizes = np.array([draw["pixel_size_pm"] for draw in draws])
    return Simulated(frames.numpy(), truth, sizes)


def _graphene_object(
    draws: Sequence[Mapping[str, float]],
    shape: tuple[int, int],
    canvas: tuple[int, int],
    margin_px: int,
    streams: Sequence[Generator],
) -> tuple[list[Structure], tuple[Tensor, Tensor]]:
    """Return sheets, and the spectra of their atoms and of loose atoms lying on them."""
    sheets, loose = [], []
    for draw, rng in zip(draws, streams, strict=True):
        side_pm = (shape[0] * draw["pixel_size_pm"], shape[1] * draw["pixel_size_pm"])
        sheets.append(graphene(draw, side_pm, rng))
        loose.append(_loose_carbon(draw["amorphous"], side_pm, rng))
    atoms = _structure_factor(sheets, draws, canvas, margin_px)
    dirt = _structure_factor(loose, draws, canvas, margin_px) if _any(loose) else torch.zeros(())
    return sheets, (atoms, dirt)


def _heavy_object(
    draws: Sequence[Mapping[str, float]],
    shape: tuple[int, int],
    canvas: tuple[int, int],
    margin_px: int,
    streams: Sequence[Generator],
) -> tuple[list[Structure], tuple[Tensor, Tensor]]:
    """Return heavy atoms, and the spectra of them and of the carbon below them.

    The support's atoms get no position: their number in each pixel scatters around its mean, less
    than a gas would, as the structure factor of an amorphous solid is small at low frequency.
    """
    del shape
    found, supports = [], []
    for draw, rng in zip(draws, streams, strict=True):
        size = draw["pixel_size_pm"]
        thickness_yx = support_thickness(draw, canvas, size, rng)
        per_pixel = CARBON_PER_NM3 * draw["support_nm"] * (size / 1000) ** 2
        mean_yx = np.clip(thickness_yx, 0, None) * per_pixel
        supports.append(mean_yx + math.sqrt(DISORDER) * (rng.poisson(mean_yx) - mean_yx))
        atoms = heavy_atoms(draw, thickness_yx, size, rng)
        found.append(replace(atoms, position_n2=atoms.position_n2 - margin_px * size))
    carbon = torch.tensor(np.stack(supports).clip(0), dtype=torch.float32) * CARBON_A2
    spectrum = _structure_factor(found, draws, canvas, margin_px)
    return found, (spectrum, torch.fft.rfft2(carbon))


def _loose_carbon(density: float, side_pm: tuple[float, float], rng: Generator) -> Structure:
    """Return carbon atoms without order, denser around one place of the frame."""
    side = np.array(side_pm)
    area_nm2 = float(np.prod((side + 2 * MARGIN_PM) / 1000))
    count = int(density * SHEET_PER_NM2 * area_nm2)
    places = rng.uniform(-MARGIN_PM, side + MARGIN_PM, (count, 2))
    centre, width = rng.uniform(0, side), side.min() * 0.35
    near = np.exp(-((places - centre) ** 2).sum(axis=1) / (2 * width**2))
    places = places[rng.random(count) < near]
    return Structure(places, np.full(len(places), 6.0))


def _any(structures: Sequence[Structure]) -> bool:
    return any(len(one.number_n) for one in structures)


def _structure_factor(
    structures: Sequence[Structure],
    draws: Sequence[Mapping[str, float]],
    canvas: tuple[int, int],
    margin_px: int,
) -> Tensor:
    """Return sum_k sigma_k exp(-2 pi i f r_k) of each frame, (b, y, x // 2 + 1), without splatting.

    One complex product of (y, k) and (k, x) phases, written as one real product of twice the size.
    """
    most = max(1, *(len(one.number_n) for one in structures))
    place_bk2 = np.zeros((len(structures), most, 2), np.float32)
    power_bk = np.zeros((len(structures), most), np.float32)
    for b, (one, draw) in enumerate(zip(structures, draws, strict=True)):
        n = len(one.number_n)
        place_bk2[b, :n] = one.position_n2 / draw["pixel_size_pm"] + margin_px
        power_bk[b, :n] = CARBON_A2 * (one.number_n / 6) ** EXPONENT * one.signal_n
    place, power = torch.from_numpy(place_bk2), torch.from_numpy(power_bk)[..., None]
    phase_y = -2 * math.pi * place[..., :1] * torch.fft.fftfreq(canvas[0])
    phase_x = -2 * math.pi * place[..., 1:] * torch.fft.rfftfreq(canvas[1])
    left = torch.cat([torch.cos(phase_y) * power, torch.sin(phase_y) * power], 1).transpose(1, 2)
    cos_x, sin_x = torch.cos(phase_x), torch.sin(phase_x)
    real = torch.bmm(left, torch.cat([cos_x, -sin_x], 1))
    imaginary = torch.bmm(left, torch.cat([sin_x, cos_x], 1))
    return torch.complex(real, imaginary)
