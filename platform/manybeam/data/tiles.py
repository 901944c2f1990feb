"""Frames prepared for a network: one pixel size, one scale of brightness, tiles of one edge.

`rescale` and `normalise` are the same in training and in prediction. `stage_tiles` writes the tiles
of whole FrameSets once to local memory maps, because cropping out of Zarr inside the training loop
is ten to fifty times slower.

Axis letters: n frame or tile, y row, x column, k atom, w pixel of the window around an atom.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.sparse import csr_array

from manybeam.errors import (
    InvalidFrame,
    InvalidInput,
    ManybeamError,
    MissingPixelSize,
    TooLarge,
    WriteFailed,
)
from manybeam.settings import settings
from manybeam.spec.recipe import TileSpec

if TYPE_CHECKING:
    from manybeam.data.frames import FrameSet

LAYOUT = 1  # raised if the same frames and spec give other tiles than before
CLIP = (-4.0, 6.0)  # in standard deviations; the upper limit is higher because atoms are bright
READ_PX = 8_000_000  # pixels that are read at a time
USUAL_SIDE = 4096  # of frames whose matrices are kept: at most a few MB each
MOST_ENLARGED = 8  # times, of a frame to the pixel size of a network
FLAT = 0.1  # least local deviation, per root mean square, so that empty areas stay dark

T = TypeVar("T", np.float32, np.uint8)
Frame = NDArray[np.float32]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Tiles:
    """Tiles to train on, in read-only memory maps.

    Attributes:
        input_nyx: float32, rescaled to the spec's pixel size and normalised.
        target_nyx: uint8 mask; 0 no atom, 1 atom, or 1 + index of its element if some were named.
        source: digests of the frame sets the tiles were cut from, in order.
        digest: 32 hex digits of content, spec and seed.
    """

    input_nyx: Frame
    target_nyx: Mask
    source: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.input_nyx)


def stage_tiles(
    framesets: "Sequence[FrameSet]",
    spec: TileSpec,
    cache: Path,
    *,
    seed: int,
) -> Tiles:
    """Return the tiles of these FrameSets, cut once and stored under `cache`.

    Every frame is rescaled and normalised as a whole, then covered with as few tiles as possible.
    The seed decides where they overlap. So every pixel is used, and a frame counts in training by
    its area. A frame smaller than a tile is reflected at its far edges, with its mask.

    Args:
        framesets: labelled frames; each needs its pixel size.
        spec: edge and pixel size of a tile, radius of the mask of an atom, elements that are
            distinguished in it, how to normalise.
        cache: local folder; tiles of the same digest are reused.
        seed: decides where tiles overlap.

    Raises:
        InvalidInput: there is no frame, or a FrameSet has no truth.
        MissingPixelSize: the pixel size of a frame is unknown.
        WriteFailed: the disk of the cache refused; no part of the tiles stays.
    """
    _check_framesets(framesets)
    digest = _digest(framesets, spec, seed)
    folder = Path(cache) / digest
    if not folder.is_dir():
        plans = [_plan(frameset, spec, seed, rank) for rank, frameset in enumerate(framesets)]
        with _atomic_folder(folder) as partial:
            _write(partial, framesets, plans, spec)
    return Tiles(
        np.load(folder / "input.npy", mmap_mode="r"),
        np.load(folder / "target.npy", mmap_mode="r"),
        tuple(frameset.digest for frameset in framesets),
        digest,
    )


def rescale(frame: Frame, pixel_size_pm: float, target_pm: float) -> tuple[Frame, float]:
    """Return the frame at another pixel size, and the scale of the change.

    Interpolation is bicubic, with a wider kernel for shrinking to avoid aliasing. Positions map
    exactly, also if the shape is rounded: y_out = (y_in + 0.5) * scale - 0.5.

    Args:
        frame: (y, x), or (n, y, x) with one pixel size.
        pixel_size_pm: edge of a pixel before, in pm.
        target_pm: edge of a pixel after, in pm.

    Returns:
        float32 frame of floor(side * scale) pixels a side, and scale = pixels out per pixel in.

    Raises:
        InvalidFrame: less than one pixel would remain.
        TooLarge: the frame would grow past `max_frame_px`.
        InvalidInput: it would be enlarged more than `MOST_ENLARGED` times.
    """
    scale = pixel_size_pm / target_pm
    _check_sides(frame.shape[-2:], scale, pixel_size_pm, target_pm)
    if abs(scale - 1) < 1e-6:
        return np.asarray(frame, np.float32), 1.0
    frames_nyx = np.asarray(frame, np.float32).reshape(-1, *frame.shape[-2:])
    rows, columns = (_matrix(side, scale) for side in frame.shape[-2:])
    out_nyx = np.stack([rows @ (columns @ one_yx.T).T for one_yx in frames_nyx])
    return out_nyx.reshape(*frame.shape[:-2], *out_nyx.shape[-2:]), scale


def _matrix(side: int, scale: float) -> csr_array:
    """Return the matrix of `_bicubic`; those of usual sides are kept."""
    return _kept_bicubic(side, scale) if side <= USUAL_SIDE else _bicubic(side, scale)


def _bicubic(side: int, scale: float) -> csr_array:
    """Return the matrix (side out, side in) of bicubic interpolation along one axis.

    The kernel of Keys (a = -0.5) is as wide as four pixels of the coarser side. Beyond the edges
    there is nothing: weights are divided by their sum.
    """
    step = 1 / scale
    wide = max(step, 1.0)
    centre = (np.arange(int(side * scale)) + 0.5) * step
    first = np.maximum((centre - 2 * wide + 0.5).astype(np.int64), 0)
    column = first[:, None] + np.arange(int(np.ceil(4 * wide)) + 1)
    far = np.abs(column + 0.5 - centre[:, None]) / wide
    near = (1.5 * far - 2.5) * far**2 + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    last = np.minimum((centre + 2 * wide + 0.5).astype(np.int64), side)
    weight = np.where(far < 1, near, np.where(far < 2, outer, 0)) * (column < last[:, None])
    weight /= weight.sum(axis=1, keepdims=True)
    row = np.broadcast_to(np.arange(len(centre))[:, None], column.shape)
    used = weight != 0
    entries = (weight[used].astype(np.float32), (row[used], column[used]))
    return csr_array(entries, shape=(len(centre), side))


_kept_bicubic = lru_cache(maxsize=16)(_bicubic)


def rescale_truth(truth: Frame, scale: float) -> Frame:
    """Return (k, >= 2) positions, moved as `rescale` moves the frame."""
    moved = np.array(truth, np.float32)
    moved[:, :2] = (moved[:, :2] + 0.5) * scale - 0.5
    return moved


def normalise(frames: Frame, how: str, local_px: float) -> Frame:
    """Return frames of comparable brightness, in [-4, 6] except for "range".

    Args:
        frames: (y, x), or (n, y, x); each frame is normalised separately.
        how: "frame" uses mean and standard deviation of the frame. "local" uses those in a
            Gaussian window (three box filters, which cost the same at any width); the deviation is
            at least a tenth of its mean, so that noise in a hole does not look like atoms. "range"
            goes from 0, the darkest pixel, to 1, the brightest, as for networks of AtomAI.
        local_px: standard deviation of that window, in pixels.
    """
    if how not in ("frame", "local", "range"):
        raise InvalidInput(f"normalise: {how!r} is unknown", "frame, local or range")
    frames = np.asarray(frames, np.float32)
    if how == "range":
        return _of_range(frames)
    mean = frames.mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
    deviation = frames.std(axis=(-2, -1), keepdims=True, dtype=np.float64)
    unit: Frame = ((frames - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    if how == "local":
        unit -= _window_mean(unit, local_px)
        variance = _window_mean(unit * unit, local_px)
        least = FLAT**2 * variance.mean(axis=(-2, -1), keepdims=True)
        unit /= np.sqrt(np.where(variance > least, variance, np.where(least > 0, least, 1)))
    np.clip(unit, *CLIP, out=unit)
    return unit


def draw_mask(
    truth: Frame, shape: tuple[int, int], radius_px: float, elements: Sequence[int] = ()
) -> Mask:
    """Return the mask of the atoms: discs; where two overlap, the nearest atom counts.

    An atom always marks the pixel that it lies in, also with a small radius. An atom outside the
    frame marks the part of its disc that lies inside.

    Args:
        truth: (k, 3) y, x, atomic number.
        shape: rows and columns of the mask.
        radius_px: radius of a disc, in pixels.
        elements: atomic numbers to distinguish; atoms of other elements mark nothing. If empty,
            all atoms are 1.
    """
    mask = np.zeros(shape, np.uint8)
    values = _mask_values(truth, elements)
    truth, values = truth[values > 0], values[values > 0]
    reach = int(np.ceil(radius_px))
    step = max(1, 2_000_000 // (2 * reach + 1) ** 2)
    nearest = np.full(shape, np.inf, np.float32)
    for start in range(0, len(truth), step):
        _draw(mask, nearest, truth[start : start + step], values[start : start + step], radius_px)
    return mask


def _mask_values(truth: Frame, elements: Sequence[int]) -> Mask:
    """Return the value of each atom in the mask; 0 for other elements."""
    if not elements:
        return np.ones(len(truth), np.uint8)
    value_of = np.zeros(256, np.uint8)
    value_of[list(elements)] = np.arange(1, len(elements) + 1)
    return value_of[truth[:, 2].astype(np.uint8)]


def _draw(mask: Mask, nearest: Frame, truth: Frame, values: Mask, radius_px: float) -> None:
    """Draw some discs at once: each pixel of each window, the farthest written first."""
    reach = int(np.ceil(radius_px))
    window_w2 = np.stack(
        np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1
    ).reshape(-1, 2)
    centre_k2 = np.rint(truth[:, :2]).astype(np.int64)
    pixel_kw2 = centre_k2[:, None] + window_w2
    distance_kw = np.square(pixel_kw2 - truth[:, None, :2]).sum(axis=2)
    inside = (pixel_kw2 >= 0).all(axis=2) & (pixel_kw2 < mask.shape).all(axis=2)
    drawn = inside & ((distance_kw <= radius_px**2) | (window_w2 == 0).all(axis=1))
    y, x = pixel_kw2[drawn].T
    distance = distance_kw[drawn]
    value = np.broadcast_to(values[:, None], drawn.shape)[drawn]
    order = np.argsort(-distance, kind="stable")
    order = order[distance[order] < nearest[y[order], x[order]]]
    mask[y[order], x[order]] = value[order]
    nearest[y[order], x[order]] = distance[order]


def _of_range(frames: Frame) -> Frame:
    low = frames.min(axis=(-2, -1), keepdims=True)
    span = np.ptp(frames, axis=(-2, -1), keepdims=True)
    return np.asarray((frames - low) / np.where(span > 0, span, 1), np.float32)


def _window_mean(frames: Frame, local_px: float) -> Frame:
    """Return the mean in a near-Gaussian window: three boxes of variance local_px**2 / 3 each."""
    width = max(1, 2 * round((np.sqrt(4 * local_px**2 + 1) - 1) / 2) + 1)
    for _ in range(3):
        frames = uniform_filter(frames, size=width, mode="reflect", axes=(-2, -1))
    return frames


def _check_framesets(framesets: "Sequence[FrameSet]") -> None:
    if not any(len(frameset) for frameset in framesets):
        raise InvalidInput(
            "there are no frames to cut tiles from",
            "training needs at least one labelled frame",
            "simulate frames with `manybeam data simulate`, or choose a FrameSet that has frames",
        )
    for frameset in framesets:
        if not frameset.has_truth:
            raise InvalidInput(
                f"{frameset.url} has no truth",
                "a member is trained on frames whose atoms are known",
                "import the frames with --truth, or train on simulate:",
            )


def _check_sides(shape: tuple[int, ...], scale: float, pixel_size_pm: float, to_pm: float) -> None:
    rows, columns = (side * scale for side in shape)
    change = f"{shape[0]} x {shape[1]} px of {pixel_size_pm:g} pm rescaled to {to_pm:g} pm"
    if not (np.isfinite(scale) and min(rows, columns) >= 1):
        raise InvalidFrame(
            f"{change}: less than one pixel would remain",
            "a frame must be wider than one pixel of the network",
            "correct --pixel-size-pm, or use a member that was trained at a finer pixel size",
        )
    if rows * columns > settings().max_frame_px:
        raise TooLarge(
            f"{change}: {rows * columns:.3g} px",
            f"at most {settings().max_frame_px} px (max_frame_px)",
            "correct --pixel-size-pm, or crop the frame",
        )
    if scale > MOST_ENLARGED:
        raise InvalidInput(
            f"{change}: enlarged {scale:.3g} times",
            f"at most {MOST_ENLARGED} times, because a coarser frame shows no atoms",
            "correct --pixel-size-pm, or use a member that was trained at a coarser pixel size",
        )


def _digest(framesets: "Sequence[FrameSet]", spec: TileSpec, seed: int) -> str:
    """Return the name of these tiles; the number of frames to simulate has no effect."""
    content = {
        "layout": LAYOUT,
        "frames": [frameset.digest for frameset in framesets],
        "spec": spec.model_dump(mode="json", exclude={"frames_per_policy"}),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Cut:
    """One frame to cut: its index, its pixel size, and the starts of its tiles."""

    index: int
    pixel_size_pm: float
    starts_n2: NDArray[np.int64]


def _plan(frameset: "FrameSet", spec: TileSpec, seed: int, rank: int) -> list[_Cut]:
    """Return the tiles to cut, before any frame is read, so that the size of files is known."""
    generator = np.random.default_rng((seed, rank))
    cuts = []
    for index in range(len(frameset)):
        pixel_size_pm = frameset.pixel_size_pm(index)
        if pixel_size_pm is None:
            raise MissingPixelSize(
                f"the pixel size of frame {index} of {frameset.url} is unknown",
                "tiles are cut at one pixel size, so that of each frame is needed",
                "import the frames again with --pixel-size-pm",
            )
        scale = pixel_size_pm / spec.pixel_size_pm
        _check_sides(frameset.shape, scale, pixel_size_pm, spec.pixel_size_pm)
        rows, columns = (
            _starts(int(side * scale), spec.tile_px, generator) for side in frameset.shape
        )
        starts_n2 = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        cuts.append(_Cut(index, float(pixel_size_pm), starts_n2))
    return cuts


def _starts(side: int, tile: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return starts of the fewest tiles that cover the side; their overlaps are random."""
    count = max(1, -(-side // tile))
    if count == 1:
        return np.zeros(1, np.int64)
    overlaps = generator.multinomial(count * tile - side, np.full(count - 1, 1 / (count - 1)))
    return np.concatenate([[0], np.cumsum(tile - overlaps)]).astype(np.int64)


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill; it appears under its name only when it is whole."""
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if not folder.is_dir():
            partial.rename(folder)
    except ManybeamError:
        raise  # of the store that the tiles are cut from; some of ours are OSErrors too
    except OSError as error:
        if not folder.is_dir():  # else another process staged the same tiles first
            raise WriteFailed(
                f"tiles could not be written to {folder}: {error.strerror or error}",
                "the cache needs space for every tile",
                "free space, or move MANYBEAM_HOME",
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    folder: Path,
    framesets: "Sequence[FrameSet]",
    plans: list[list[_Cut]],
    spec: TileSpec,
) -> None:
    """Write the tiles to two .npy files; plain writes, because a full disk kills a memory map."""
    shape = (sum(len(cut.starts_n2) for cuts in plans for cut in cuts), spec.tile_px, spec.tile_px)
    with (folder / "input.npy").open("wb") as inputs, (folder / "target.npy").open("wb") as targets:
        for file, descr in ((inputs, "<f4"), (targets, "|u1")):
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        for frameset, cuts in zip(framesets, plans, strict=True):
            for cut, frame in zip(cuts, _frames(frameset), strict=True):
                input_nyx, target_nyx = _cut_frame(frameset, cut, frame, spec)
                inputs.write(input_nyx.tobytes())
                targets.write(target_nyx.tobytes())


def _frames(frameset: "FrameSet") -> Iterator[Frame]:
    """Yield the frames; several are read at a time, because each read takes time to begin."""
    step = max(1, READ_PX // (frameset.shape[0] * frameset.shape[1]))
    for start in range(0, len(frameset), step):
        yield from frameset.frames(slice(start, start + step))


def _cut_frame(frameset: "FrameSet", cut: _Cut, frame: Frame, spec: TileSpec) -> tuple[Frame, Mask]:
    """Return the tiles of one frame and their masks."""
    if not np.isfinite(frame).all():
        raise InvalidFrame(
            f"frame {cut.index} of {frameset.url} has NaN or infinite values",
            "one such pixel would make the loss NaN",
            "import the frame again; the import fills single bad pixels",
        )
    frame, scale = rescale(frame, cut.pixel_size_pm, spec.pixel_size_pm)
    frame = normalise(frame, spec.normalise, spec.local_nm * 1000 / spec.pixel_size_pm)
    truth = rescale_truth(frameset.truth(cut.index), scale)
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    mask = draw_mask(truth, frame.shape, radius_px, spec.elements)
    return _crop(frame, cut.starts_n2, spec.tile_px), _crop(mask, cut.starts_n2, spec.tile_px)


def _crop(array: NDArray[T], starts_n2: NDArray[np.int64], tile: int) -> NDArray[T]:
    """Return tiles at the starts; an array that is too small is reflected at its far edges."""
    missing = [(0, max(0, tile - side)) for side in array.shape]
    if any(after for _, after in missing):
        array = np.pad(array, missing, mode="reflect")
    return np.stack([array[y : y + tile, x : x + tile] for y, x in starts_n2])
