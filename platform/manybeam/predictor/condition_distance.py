"""The distance of a frame from the conditions that members were measured on.

There are two distances, both in units of the scatter within one condition: between frame features,
which needs only the frame, and between the quantities that both sides know. The features of a
condition come from a few frames simulated under it. They are kept in the cache of the settings, so
that each machine simulates them once.
"""

import hashlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from manybeam.data.disk import write_files
from manybeam.data.simulation import SIMULATOR
from manybeam.data.simulation.typical import TYPICAL
from manybeam.errors import WriteFailed
from manybeam.learn.analysis.frame_features import (
    FEATURES,
    distances,
    feature_names,
    frame_features,
    stack_features,
)
from manybeam.settings import settings
from manybeam.spec import Condition, Imaging, Library
from manybeam.zoo.matrix import Matrix

logger = logging.getLogger(__name__)

REFERENCE_FRAMES = 6
REFERENCE_SHAPE = (128, 128)
REFERENCE_SEED = 7
# Steps that count as one unit of distance: a ratio for quantities that act by their ratio, a
# difference in the quantity's own unit for those that act by their difference.
RATIO_STEPS: Mapping[str, float] = {
    "dose_e_per_a2": 2.0,
    "scan.pixel_size_pm": 1.15,
    "optics.beam_kv": 1.5,
    "optics.convergence_mrad": 1.2,
    "sample.atom_width_pm": 1.3,
}
DIFFERENCE_STEPS: Mapping[str, float] = {
    "optics.defocus_nm": 3.0,
    "optics.astigmatism_nm": 2.0,
    "optics.source_fwhm_pm": 30.0,
    "scan.row_jitter_pm": 8.0,
    "scan.drift_pm_per_row": 1.0,
    "state.background": 0.7,
    "state.contamination": 0.4,
    "state.amorphous": 0.3,
    "detector.afterglow_px": 0.5,
    "detector.gamma": 0.25,
}


@dataclass(frozen=True)
class Near:
    """The measured conditions around a frame.

    Attributes:
        distance: to the nearest one; infinite if none can be compared.
        weights: condition id -> share in the frame's neighbourhood; sums to 1.
        ranked: (id, distance), nearest first.
    """

    distance: float
    weights: Mapping[str, float] = field(default_factory=dict)
    ranked: tuple[tuple[str, float], ...] = ()


def comparable(matrix: Matrix, library: Library) -> list[Condition]:
    """Return the measured conditions that can be simulated, so that frames can be compared.

    A condition that was only recorded may have no structure; it has scores only.
    """
    known = [library.conditions[name] for name in matrix.conditions if name in library.conditions]
    return [one for one in known if one.sample.structure in TYPICAL]


def nearest_conditions(
    frame_yx: np.ndarray,
    pixel_size_pm: float | None,
    condition: Condition | None,
    known: Sequence[Condition],
) -> Near:
    """Return the place of a frame among the known conditions.

    Args:
        frame_yx: the frame.
        pixel_size_pm: edge of a pixel; if None, frame features are compared in pixels.
        condition: the known condition of the frame, or None.
        known: conditions that members were measured on.
    """
    if not known:
        return Near(math.inf)
    # Stated quantities only add distance: a file may be right about the pixel size and have no
    # value for contamination.
    seen = feature_distances(frame_yx, pixel_size_pm, known)
    stated = [quantity_distance(condition, pixel_size_pm, other) for other in known]
    both = [math.hypot(one, 0.7 * (two or 0.0)) for one, two in zip(seen, stated, strict=True)]
    order = np.argsort(both, kind="stable")
    ranked = tuple((known[index].id, float(both[index])) for index in order)
    nearest = ranked[0][1]
    # A condition twice as far away, in units of the scatter, hardly counts.
    raw = {name: math.exp(-2.0 * (far - nearest) / max(nearest, 0.5)) for name, far in ranked[:5]}
    total = sum(raw.values())
    return Near(nearest, {name: share / total for name, share in raw.items()}, ranked)


def feature_distances(
    frame_yx: np.ndarray, pixel_size_pm: float | None, known: Sequence[Condition]
) -> list[float]:
    """Return the distance of frame features to each condition; 1 is the scatter within one."""
    references = [_reference(condition, pixel_size_pm is not None) for condition in known]
    scale_f = scatter(references)
    here_f = frame_features(frame_yx, pixel_size_pm)
    centres_cf = np.stack([np.mean(reference, axis=0) for reference in references])
    return [float(one) for one in distances(here_f, centres_cf, scale_f)]


def scatter(references: Sequence[np.ndarray]) -> np.ndarray:
    """Return each feature's standard deviation within conditions, pooled over them.

    A feature that never varies within a condition would have infinite weight. So a twentieth of
    its spread over all conditions is the lower limit.
    """
    within_f = np.sqrt(_known_mean(np.stack([np.var(one, axis=0, ddof=1) for one in references])))
    every_nf = np.concatenate(references)
    overall_f = np.sqrt(_known_mean((every_nf - _known_mean(every_nf)) ** 2))
    return np.asarray(np.maximum(within_f, 0.05 * overall_f) + 0.02)


def _known_mean(values_nf: np.ndarray) -> np.ndarray:
    """Return each feature's mean over the rows that have it; 0 where none has."""
    known_nf = np.isfinite(values_nf)
    total_f = np.where(known_nf, values_nf, 0.0).sum(axis=0)
    return np.asarray(total_f / np.maximum(known_nf.sum(axis=0), 1))


def quantity_distance(
    condition: Condition | None, pixel_size_pm: float | None, other: Condition
) -> float | None:
    """Return the distance over the quantities both sides know; None if they share none."""
    ours = dict(condition.quantities()) if condition is not None else {}
    if pixel_size_pm is not None:
        ours["scan.pixel_size_pm"] = pixel_size_pm
    theirs = dict(other.quantities())
    squares = [
        step**2
        for path in (*RATIO_STEPS, *DIFFERENCE_STEPS)
        if (step := _step(path, ours.get(path), theirs.get(path))) is not None
    ]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def structure_of(
    condition: Condition | None, others: Sequence[Imaging], calibrated: str = ""
) -> str:
    """Return the sample's structure: stated, else calibrated, else shared by all known ones."""
    if condition is not None and condition.sample.structure != "unknown":
        return condition.sample.structure
    if calibrated:
        return calibrated
    counts = Counter(other.sample.structure for other in others)
    return next(iter(counts)) if len(counts) == 1 else "unknown"


def _step(path: str, ours: object, theirs: object) -> float | None:
    if not isinstance(ours, (int, float)) or not isinstance(theirs, (int, float)):
        return None
    if path in DIFFERENCE_STEPS:
        return abs(ours - theirs) / DIFFERENCE_STEPS[path]
    if min(ours, theirs) <= 0:
        return None
    return abs(math.log(ours / theirs)) / math.log(RATIO_STEPS[path])


@lru_cache(maxsize=512)
def _reference(condition: Condition, has_pixel_size: bool) -> np.ndarray:  # noqa: FBT001 - a key of the cache
    """Return the frame features (n, f) of frames simulated under one condition."""
    file = _reference_file(condition, has_pixel_size)
    if (kept := _kept(file)) is not None:
        return kept
    from manybeam.data.simulation.simulate import simulate

    made = simulate(condition, REFERENCE_FRAMES, seed=REFERENCE_SEED, shape=REFERENCE_SHAPE)
    found = stack_features(made.frames_nyx, made.pixel_size_pm if has_pixel_size else None)
    content = io.BytesIO()
    np.save(content, found)
    try:
        write_files({file: content.getvalue()})
    except WriteFailed as error:
        logger.info("features are not kept, the next process simulates again: %s", error.what)
    return found


def _kept(file: Path) -> np.ndarray | None:
    """Return kept features; None if there are none, or they are damaged."""
    if not file.exists():
        return None
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("kept features cannot be read and are made anew: %s", error)
        return None
    return np.asarray(kept) if kept.shape == (REFERENCE_FRAMES, len(feature_names())) else None


def _reference_file(condition: Condition, has_pixel_size: bool) -> Path:  # noqa: FBT001 - as `_reference`
    asked = [REFERENCE_FRAMES, REFERENCE_SHAPE, REFERENCE_SEED, feature_names(), has_pixel_size]
    versions = [SIMULATOR, FEATURES, condition.digest]
    name = hashlib.sha256(json.dumps([versions, asked]).encode()).hexdigest()[:32]
    return settings().cache / "features" / f"{name}.npy"
