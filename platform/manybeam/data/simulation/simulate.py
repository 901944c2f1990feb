"""Simulated dark-field frames with exact truth, of every structure a sample may have.

Imaging is incoherent: every atom adds its scattering power times the probe at its position. Then
scan, detector and electronics change the image as in a microscope.

Axis letters: n frame, y row, x column.

Source: Z-contrast as in Pennycook and Jesson, Ultramicroscopy 37, 14 (1991), with the exponent
1.64 of Hartel et al., Ultramicroscopy 63, 93 (1996) for annular detectors.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from manybeam.data.io.measured import dose_e_per_a2
from manybeam.data.simulation.recording import reach_pm, record, true_places
from manybeam.data.simulation.rendering import image
from manybeam.data.simulation.scenes import Ground, scene
from manybeam.data.simulation.structures import CARBON_A2, MARGIN_PM
from manybeam.data.simulation.typical import typical
from manybeam.errors import InvalidInput, TooLarge
from manybeam.settings import settings
from manybeam.spec import Condition, Policy, Range
from manybeam.spec.imaging import Sample

if TYPE_CHECKING:
    from manybeam.data.frames import FrameSet
    from manybeam.data.making import Part

LEAST_MARGIN_PM = 150.0  # of sample beyond the farthest position of the beam
BATCH_PIXELS = 300_000  # of the canvas of one batch; limits memory and fits into caches
DEFAULT_SHAPE = (128, 128)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulated:
    """Simulated frames with their truth.

    Attributes:
        frames_nyx: counts, float32.
        truth: one (atoms, 3) array for each frame: y, x in pixels, atomic number.
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
    """Return frames simulated under a condition, or under random conditions of a policy.

    Frame i depends on (seed, i) only: more frames do not change the first ones.

    Args:
        imaging: what to simulate; unknown quantities are typical of its structure.
        count: frames, at least 1.
        seed: same seed, same frames.
        shape: rows and columns; those of `imaging.scan`, or 128 x 128.

    Raises:
        InvalidInput: the structure is unknown, or count or shape give no frame.
        TooLarge: more pixels than `max_frame_px`, or twice that with the margins.
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
    overwrite: bool = False,
) -> "FrameSet":
    """Simulate frames into a new FrameSet, batch by batch.

    Readers see all frames or none, and an old set stays until the new one is whole.

    Args:
        url: place of the FrameSet.
        imaging: what to simulate.
        count: frames.
        seed: same seed, same frames.
        shape: rows and columns of a frame.
        progress: called with (frames done, frames) after each batch.
        overwrite: replace a set that is there.

    Raises:
        Conflict: there is a set, and it must not be overwritten.
        InvalidInput: see `simulate`.
        TooLarge: see `simulate`.
    """

    def parts() -> "Iterator[Part]":
        done = 0
        for batch in _batches(imaging, count, seed, shape):
            yield batch.frames_nyx, batch.truth, batch.pixel_size_pm
            done += len(batch.truth)
            if progress:
                progress(done, count)

    size = shape or imaging.scan.shape or DEFAULT_SHAPE
    from manybeam.data.frames import FrameSet  # with Zarr, which simulation alone does not need

    return FrameSet.write(url, imaging, size, parts(), overwrite=overwrite)


def _batches(
    imaging: Condition | Policy, count: int, seed: int, shape: tuple[int, int] | None
) -> Iterator[Simulated]:
    shape = shape or imaging.scan.shape or DEFAULT_SHAPE
    if count < 1 or min(shape) < 1:
        raise InvalidInput(
            f"{count} frames of {shape[0]} x {shape[1]} px", "at least one frame of one pixel", ""
        )
    quantities = typical(imaging)
    around = _around(quantities, shape)
    _check_size(shape, around[0])
    at_once = max(1, min(16, BATCH_PIXELS // (shape[0] * shape[1])))
    for first in range(0, count, at_once):
        streams = [
            np.random.default_rng((seed, i)) for i in range(first, min(first + at_once, count))
        ]
        draws = [_draw(imaging, quantities, rng) for rng in streams]
        yield _simulate_batch(imaging.sample, draws, shape, around, streams)


def _check_size(shape: tuple[int, int], margin_px: int) -> None:
    rows, columns = (side + 2 * margin_px for side in shape)
    most = settings().max_frame_px
    if shape[0] * shape[1] > most or rows * columns > 2 * most:
        raise TooLarge(
            f"frames of {shape[0]} x {shape[1]} px, {rows} x {columns} px with margins",
            f"at most {most} px in a frame, twice that with its margins (max_frame_px)",
            "use smaller frames, larger pixels or less drift, or raise MANYBEAM_MAX_FRAME_PX",
        )


def _around(quantities: Mapping[str, float | Range], shape: tuple[int, int]) -> tuple[int, float]:
    """Return the margin of a canvas, in pixels, and how far the sample continues beyond a frame.

    It is the same for every frame of a policy, because a frame must not depend on others of its
    batch. Beyond the margin the beam would see mirrored atoms, which are not in the truth.
    """
    ends = {
        path.rpartition(".")[2]: (value.low, value.high) if isinstance(value, Range) else (value,)
        for path, value in quantities.items()
    }
    most = {name: max(map(abs, both)) for name, both in ends.items()}
    least_px = min(ends["pixel_size_pm"])
    reach = reach_pm(most | {"pixel_size_pm": least_px}, shape)
    beyond_pm = max(0.0, reach + LEAST_MARGIN_PM - MARGIN_PM)
    return math.ceil((MARGIN_PM + beyond_pm) / least_px), beyond_pm


def _draw(
    imaging: Condition | Policy, quantities: Mapping[str, float | Range], rng: Generator
) -> dict[str, float]:
    """Return one value of each quantity by its name; ranges are drawn."""
    drawn = {}
    for path, value in quantities.items():
        name = path.rpartition(".")[2]
        if isinstance(value, Range) and name in imaging.LOG_UNIFORM and value.low > 0:
            drawn[name] = math.exp(rng.uniform(math.log(value.low), math.log(value.high)))
        elif isinstance(value, Range):
            drawn[name] = rng.uniform(value.low, value.high)
        else:
            drawn[name] = value
    current, dwell = drawn["beam_current_pa"], drawn["dwell_us"]
    if imaging.dose_e_per_a2 is None and current and dwell:
        drawn["dose_e_per_a2"] = dose_e_per_a2(current, dwell, drawn["pixel_size_pm"])
    drawn["atomic_number"] = float(round(drawn["atomic_number"]))
    # The direction of drift is random; a frame without drift draws no direction.
    drifts = drawn["drift_pm_per_row"] != 0
    drawn["drift_angle"] = rng.uniform(0, 2 * math.pi) if drifts else 0.0
    return drawn


def _simulate_batch(
    sample: Sample,
    draws: Sequence[Mapping[str, float]],
    shape: tuple[int, int],
    around: tuple[int, float],
    streams: Sequence[Generator],
) -> Simulated:
    """Return one batch: samples, their images, the recorded frames and the truth."""
    margin_px, beyond_pm = around
    rows, columns = (scipy.fft.next_fast_len(side + 2 * margin_px, real=True) for side in shape)
    q = {name: torch.tensor([draw[name] for draw in draws]) for name in draws[0]}
    angle = np.stack([rng.uniform(0, 2 * math.pi, 3) for rng in streams])
    sizes = np.array([draw["pixel_size_pm"] for draw in draws])
    grounds = [Ground(shape, (rows, columns), margin_px, size, beyond_pm) for size in sizes]
    scenes = [
        scene(sample, draw, ground, rng)
        for draw, ground, rng in zip(draws, grounds, streams, strict=True)
    ]
    scattered = image(scenes, grounds, q, torch.tensor(angle, dtype=torch.float32))
    pixel_a2 = (q["pixel_size_pm"] / 100)[:, None, None] ** 2
    frames = record(scattered / pixel_a2, q, draws, shape, margin_px, CARBON_A2, streams)
    truth = [true_places(s.atoms, d, shape) for s, d in zip(scenes, draws, strict=True)]
    return Simulated(frames.numpy(), truth, sizes)
