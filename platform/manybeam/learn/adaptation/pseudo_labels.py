"""Labelled tiles made from unlabelled frames.

`twin_tiles` simulates frames like them, with truth. `pseudo_labelled_tiles` takes as truth what the
ensemble agrees on and leaves doubtful places out. `mixed_tiles` takes half of each. All add as many
tiles like those that the member was trained on, so that the member does not forget them.
Axis letters: n tile or frame, k atom, y row, x column.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.data.tiles import Tiles, draw_mask, normalise, rescale, rescale_truth
from manybeam.errors import InvalidInput
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.prediction import Prediction
from manybeam.spec import Policy
from manybeam.spec.recipe import TileSpec

LabelSource = Literal["twin", "pseudo", "both"]
LABEL_SOURCES: tuple[LabelSource, ...] = ("twin", "pseudo", "both")

Parts = tuple[np.ndarray, ...]  # inputs, masks and weights of some tiles

# What counts as agreed: share of members, mean probability, and spread in radii of a mask.
SURE_VOTES = 0.7
SURE_PROBABILITY = 0.6
SURE_SPREAD = 0.5
DOUBT_RADII = 2.0  # neighbourhood of a doubtful atom that is left out, in radii of a mask
STD_WEIGHT = 4.0  # pixels count exp(-4 std)


@dataclass(frozen=True)
class LabelledTiles:
    """The data of a fine-tuning.

    Attributes:
        tiles: inputs and masks; `tiles.source` is the digest of the unlabelled frames.
        weight_nyx: weight of each pixel.
    """

    tiles: Tiles
    weight_nyx: np.ndarray


def twin_tiles(
    frames_digest: str, twin: Policy, known: Policy, spec: TileSpec, *, count: int, seed: int
) -> LabelledTiles:
    """Return labelled tiles, half simulated under the inferred condition and half already known.

    Args:
        frames_digest: digest of the frames that the condition was inferred from.
        twin: the condition inferred from the unlabelled frames.
        known: policy of the member's training.
        spec: edge and pixel size of a tile, radius of a mask, how to normalise.
        count: tiles of each half.
        seed: of both simulations.
    """
    new = _weighted(simulated_tiles(twin, spec, count=count, seed=seed))
    old = _weighted(simulated_tiles(known, spec, count=count, seed=seed + 1))
    return _joined([new, old], frames_digest)


def pseudo_labelled_tiles(
    frames_digest: str,
    seen: Sequence[tuple[np.ndarray, Prediction]],
    known: Policy,
    spec: TileSpec,
    *,
    seed: int,
) -> LabelledTiles:
    """Return tiles of the unlabelled frames themselves, masked where the ensemble agrees.

    Args:
        frames_digest: digest of the unlabelled frames.
        seen: the result of `ask` for them.
        known: policy of the member's training, for the other half.
        spec: edge and pixel size of a tile, radius of a mask.
        seed: of the simulation.

    Raises:
        InvalidInput: the members agree on no atom, so there is no label.

    Source:
        Ghosh et al., npj Comput. Mater. 7, 100 (2021), ensemble learning-iterative training;
        weights, doubtful neighbourhoods and the general half are ours.
    """
    new = _pseudo_tiles(seen, spec)
    if new is None:
        raise InvalidInput(
            "the members agree on no atom of these frames",
            f"pseudo-labels need atoms with votes of at least {SURE_VOTES:g}",
            "choose labels 'twin', which need no agreement",
        )
    old = _weighted(simulated_tiles(known, spec, count=len(new[0]), seed=seed))
    return _joined([new, old], frames_digest)


def mixed_tiles(
    frames_digest: str,
    twin: Policy,
    seen: Sequence[tuple[np.ndarray, Prediction]],
    known: Policy,
    spec: TileSpec,
    *,
    count: int,
    seed: int,
) -> LabelledTiles:
    """Return tiles of twins, tiles of the unlabelled frames, and tiles that are already known.

    A quarter are twins: their atoms are certain, but they may differ from the frames. A quarter are
    the frames themselves: their labels may be wrong. If the members agree on no atom, twins take
    the place of the frames.

    Args:
        frames_digest: digest of the unlabelled frames.
        twin: the condition inferred from them.
        seen: what `ask` returned for them.
        known: policy of the member's training.
        spec: edge and pixel size of a tile, radius of a mask.
        count: tiles of each half, new and known, at least 2.
        seed: of all that is simulated and chosen.
    """
    own = _pseudo_tiles(seen, spec)
    if own is None:
        return twin_tiles(frames_digest, twin, known, spec, count=count, seed=seed)
    order = np.random.default_rng(seed).permutation(len(own[0]))
    chosen = np.resize(order, count // 2)  # again from the first where the frames are few
    twins = _weighted(simulated_tiles(twin, spec, count=count - len(chosen), seed=seed))
    old = _weighted(simulated_tiles(known, spec, count=count, seed=seed + 1))
    return _joined([twins, tuple(part[chosen] for part in own), old], frames_digest)


def ask(
    ensemble: Ensemble, frames_nyx: np.ndarray, pixel_size_pm: float | None, spec: TileSpec
) -> list[tuple[np.ndarray, Prediction]]:
    """Return each frame as the networks see it, with the ensemble's answer in those pixels.

    Prediction is at the networks' pixel size, so that maps, masks and tiles have the same pixels.
    """
    seen = []
    for frame_yx in frames_nyx:
        scaled_yx = frame_yx
        if pixel_size_pm is not None:
            scaled_yx = rescale(frame_yx, pixel_size_pm, spec.pixel_size_pm)[0]
        scaled_yx = normalise(scaled_yx, spec.normalise, spec.local_nm * 1000 / spec.pixel_size_pm)
        answer = ensemble.predict(scaled_yx, spec.pixel_size_pm, threshold=0.3)
        seen.append((scaled_yx, answer.without_maps()))
    return seen


def simulated_tiles(
    imaging: Policy, spec: TileSpec, *, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and masks of tiles simulated under a policy, one a frame."""
    sizes = imaging.scan.pixel_size_pm
    least_pm = sizes if isinstance(sizes, float) else getattr(sizes, "low", spec.pixel_size_pm)
    # A third wider than a tile, as frames are wider than what is cut out of them in training.
    side = int(1.33 * spec.tile_px * spec.pixel_size_pm / float(least_pm)) + 2
    made = simulate(imaging, count, seed=seed, shape=(side, side))
    rng = np.random.default_rng(seed)
    cut = [_cut(made, index, spec, rng) for index in range(count)]
    inputs, targets = zip(*cut, strict=True)
    return np.stack(inputs), np.stack(targets)


def frames_digest(frames_nyx: np.ndarray, pixel_size_pm: float | None) -> str:
    """Return 32 hex digits that name these frames."""
    content = np.ascontiguousarray(frames_nyx, dtype="<f4").tobytes()
    text = f"{frames_nyx.shape} {pixel_size_pm}".encode()
    return hashlib.sha256(text + content).hexdigest()[:32]


def sure_atoms(prediction: Prediction, radius_px: float) -> np.ndarray:
    """Return for each atom whether the members agree on it: votes, probability and position."""
    atoms = prediction.atoms
    spread_px = np.nan_to_num(np.hypot(atoms[:, 4], atoms[:, 5]), nan=np.inf)
    is_close = (spread_px <= SURE_SPREAD * radius_px) | (len(prediction.members) == 1)
    return np.asarray((atoms[:, 6] >= SURE_VOTES) & (atoms[:, 3] >= SURE_PROBABILITY) & is_close)


def _weighted(tiles: tuple[np.ndarray, np.ndarray]) -> Parts:
    """Return inputs, masks and weights of tiles whose every pixel is known."""
    return (*tiles, np.ones(tiles[1].shape, np.float32))


def _joined(parts: Sequence[Parts], source: str) -> LabelledTiles:
    arrays = [np.concatenate(one) for one in zip(*parts, strict=True)]
    content = hashlib.sha256(source.encode())
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    tiles = Tiles(arrays[0], arrays[1], (source,), content.hexdigest()[:32])
    return LabelledTiles(tiles, arrays[2])


def _cut(
    made: Simulated, index: int, spec: TileSpec, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return one tile of one simulated frame, at a random place, and its mask."""
    frame_yx, scale = rescale(
        made.frames_nyx[index], float(made.pixel_size_pm[index]), spec.pixel_size_pm
    )
    frame_yx = normalise(frame_yx, spec.normalise, spec.local_nm * 1000 / spec.pixel_size_pm)
    truth = rescale_truth(made.truth[index], scale)
    shape = (frame_yx.shape[0], frame_yx.shape[1])
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    mask_yx = draw_mask(truth, shape, radius_px, spec.elements)
    top, left = (int(rng.integers(side - spec.tile_px + 1)) for side in shape)
    where = (slice(top, top + spec.tile_px), slice(left, left + spec.tile_px))
    return frame_yx[where], mask_yx[where]


def _pseudo_tiles(seen: Sequence[tuple[np.ndarray, Prediction]], spec: TileSpec) -> Parts | None:
    """Return tiles of the frames with mask and weight; None if the members agree on no atom."""
    labelled = [(frame, *_labels(prediction, spec)) for frame, prediction in seen]
    if not any(target.any() for _, target, _ in labelled):
        return None
    tiles = [_covering(part, spec.tile_px) for part in labelled]
    inputs, targets, weights = zip(*tiles, strict=True)
    return np.concatenate(inputs), np.concatenate(targets), np.concatenate(weights)


def _labels(prediction: Prediction, spec: TileSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of the atoms the members agree on, and the weight of each pixel."""
    radius_px = spec.mask_radius_pm / spec.pixel_size_pm
    shape = prediction.shape
    is_sure = sure_atoms(prediction, radius_px)
    # The third column holds classes here, 1 to as many as there are elements.
    classes = range(1, len(spec.elements) + 1)
    target_yx = draw_mask(prediction.atoms[is_sure], shape, radius_px, classes)
    doubtful = [prediction.atoms[~is_sure][:, :3], *_lonely(prediction, radius_px)]
    doubt_yx = draw_mask(np.concatenate(doubtful), shape, DOUBT_RADII * radius_px)
    weight_yx = np.exp(-STD_WEIGHT * prediction.std_yx)
    weight_yx[(doubt_yx > 0) & (target_yx == 0)] = 0.0
    return target_yx, weight_yx.astype(np.float32)


def _lonely(prediction: Prediction, radius_px: float) -> list[np.ndarray]:
    """Return the atoms of each member that are not among those of the ensemble."""
    lonely = []
    for atoms in prediction.member_atoms:
        gaps = atoms[:, None, :2] - prediction.atoms[None, :, :2]
        near = (np.hypot(gaps[..., 0], gaps[..., 1]) <= radius_px).any(axis=1)
        lonely.append(atoms[~near][:, :3])
    return lonely


def _covering(part: Sequence[np.ndarray], tile_px: int) -> list[np.ndarray]:
    """Return the tiles that cover a frame; a smaller frame is reflected, with weight 0 there."""
    frame_yx = part[0]
    missing = [(0, max(0, tile_px - side)) for side in frame_yx.shape]
    padded = [
        np.pad(part[0], missing, mode="reflect"),
        np.pad(part[1], missing),
        np.pad(part[2], missing),
    ]
    corners = [
        (top, left)
        for top in _starts(padded[0].shape[0], tile_px)
        for left in _starts(padded[0].shape[1], tile_px)
    ]
    return [
        np.stack([one[top : top + tile_px, left : left + tile_px] for top, left in corners])
        for one in padded
    ]


def _starts(side: int, tile_px: int) -> list[int]:
    return sorted({*range(0, side - tile_px + 1, tile_px), side - tile_px})
