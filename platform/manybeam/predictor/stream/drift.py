"""Drift watch: the frame since which a stream has left the known conditions.

Each frame becomes a vector: the distance of its summaries from the in-control frames. For each
number of last frames, the sum of the vectors is compared with that of in-control streams; the
largest excess gives the frame at which the change began. The threshold comes from the in-control
frames only, and a single odd frame cannot exceed it.
Axis letters: n in-control frame or crop, t frame of a stream, s number of a summary, g known
condition, w length of a window, y row, x column.

Source: window-limited generalised likelihood ratio, Willsky and Jones, IEEE Trans. Autom. Control
21, 108 (1976), and Lai, IEEE Trans. Inf. Theory 44, 2917 (1998). We added the limit of distances
at a quantile, and the units of each window's own in-control scatter.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from manybeam.errors import Corrupt, InvalidFrame, InvalidInput
from manybeam.learn.analysis.frame_features import feature_names
from manybeam.learn.analysis.summaries import summaries
from manybeam.predictor.stream.in_control import (
    WINDOW,
    ControlLimits,
    InControl,
    calibrate,
    check_known,
    fit,
)

FORMAT = "manybeam-drift-1"
LEAST_SIDE_PX = 48
CROP_PX = 128  # largest side of a crop; features must not depend on the size of the frame
MOST_CROPS = 4
LOG_SIZE = feature_names().index("log pixel size")
# The visible property behind the numbers of a summary, in their order, with their count.
LOOKS: tuple[tuple[str, int], ...] = (
    ("smooth brightness", 7),
    ("sharpness", 17),
    ("rows", 3),
    ("grey values", 7),
    ("sharpness", 2),
    ("pixel size", 1),
    ("sharpness", 8),
    ("noise", 8),
    ("grey values", 3),
    ("sharpness", 3),
    ("smooth brightness", 10),
    ("rows", 9),
    ("sharpness", 32),
)
# The usual causes of a change of each property.
CAUSES = {
    "smooth brightness": "contamination, support",
    "sharpness": "defocus, source, aberrations",
    "rows": "scan jitter, drift, afterglow",
    "grey values": "background, gamma, saturation",
    "noise": "dose, readout",
    "pixel size": "as in the file",
}


@dataclass(frozen=True)
class Change:
    """The change of one visible property of the frames.

    Attributes:
        look: the property, a key of `CAUSES`.
        scatters: root mean square, over the numbers of this property, of their mean shift since
            the change, in standard deviations of a single in-control frame.
    """

    look: str
    scatters: float

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.look} ({CAUSES[self.look]}) by {self.scatters:.1f} scatters"


@dataclass(frozen=True)
class Alarm:
    """A stream has left the known conditions.

    Attributes:
        frame: number of the frame that raised it, from 0.
        since: number of the frame at which the change is estimated to begin.
        score: excess divided by the threshold; above 1.
        changes: the change of each visible property, the largest first.
    """

    frame: int
    since: int
    score: float
    changes: tuple[Change, ...]

    @property
    def words(self) -> str:
        """The changes in words, if at least half as large as the largest; at most three."""
        kept = [one for one in self.changes[:3] if 2 * one.scatters >= self.changes[0].scatters]
        return "; ".join(map(str, kept))


@dataclass(frozen=True)
class StreamMemory:
    """What a watch remembers of its stream, without what it knows.

    Attributes:
        recent_ts: features of the last frames, at most ten.
        seen: frames so far.
        score: the last score.
        is_drifted: whether the stream has left the known conditions.
    """

    recent_ts: np.ndarray
    seen: int = 0
    score: float = 0.0
    is_drifted: bool = False


def frame_crops(frame_yx: np.ndarray) -> np.ndarray:
    """Return the crops of a frame on which its features rest, (n, y, x), at most four.

    Args:
        frame_yx: the frame, finite, at least 48 px a side.

    Raises:
        InvalidFrame: no frame, too small, not finite, or constant.
    """
    frame_yx = np.asarray(frame_yx)
    fault = _fault(frame_yx)
    if fault:
        raise InvalidFrame(
            f"{fault} has no drift features",
            f"(rows, columns), at least {LEAST_SIDE_PX} px a side, finite and not constant",
            "leave such frames out of the stream",
        )
    return _crops(frame_yx)


def crop_features(crops_nyx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    """Return the features of one frame, (s,): the mean summaries of its crops.

    Args:
        crops_nyx: as `frame_crops` returns them.
        pixel_size_pm: edge of a pixel; None if unknown. Frames with and without a pixel size
            cannot be compared.
    """
    sizes = None if pixel_size_pm is None else float(pixel_size_pm)
    crops_ns = summaries(crops_nyx, sizes)
    seen_n = np.isfinite(crops_ns).sum(axis=0)
    total_s = np.where(np.isfinite(crops_ns), crops_ns, 0.0).sum(axis=0)
    mean_s = np.where(seen_n > 0, total_s / np.maximum(seen_n, 1), np.nan)
    if pixel_size_pm is None:
        mean_s[LOG_SIZE] = np.nan
    return np.asarray(mean_s)


def frame_features(frame_yx: np.ndarray, pixel_size_pm: float | None) -> np.ndarray:
    """Return the features of one frame, (s,); see `frame_crops` and `crop_features`."""
    return crop_features(frame_crops(frame_yx), pixel_size_pm)


class DriftWatch:
    """Takes frames one at a time and raises an alarm when they have left the known conditions.

    Each change raises one alarm; the next one is possible after the score has fallen below half
    the threshold. An alarm blocks nothing, because members may be good on drifted frames.

    Args:
        known_ns: features (`frame_features`) of in-control frames, in the order they were taken.
            The order of a session matters, because it contains slow, harmless changes.
        condition_n: condition of each of them, if there are several; a frame is compared with the
            nearest condition.
        caution: the threshold is raised by this factor.

    Raises:
        InvalidInput: a condition has fewer than 40 in-control frames, or a frame has no number.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> watch = DriftWatch(rng.normal(size=(200, 20)))
        >>> any(watch.see(one) for one in rng.normal(size=(100, 20)))
        False
        >>> alarms = [watch.see(one) for one in rng.normal(3, 1, size=(10, 20))]
        >>> [abs(one.since - 100) <= 3 for one in alarms if one]
        [True]
    """

    def __init__(
        self,
        known_ns: np.ndarray,
        condition_n: Sequence[int] | None = None,
        *,
        caution: float = 1.0,
    ) -> None:
        known_ns = np.asarray(known_ns, np.float64)
        group_n = np.zeros(len(known_ns), int) if condition_n is None else np.array(condition_n)
        check_known(known_ns, group_n)
        order_n = np.argsort(group_n, kind="stable")
        known_ns, group_n = known_ns[order_n], group_n[order_n]
        self._known = fit(known_ns, group_n)
        limits = calibrate(known_ns, group_n)
        self._limits = replace(limits, threshold=caution * limits.threshold)
        self._recent: deque[np.ndarray] = deque(maxlen=WINDOW)
        self.seen = 0
        self.score = 0.0
        self.is_drifted = False

    def see(self, features_s: np.ndarray) -> Alarm | None:
        """Take the features of the next frame; return an alarm if it shows a new change.

        Raises:
            InvalidInput: these are not features of a frame, or only the frame or only the known
                frames have a pixel size.
        """
        features_s = np.asarray(features_s, np.float64)
        self._check(features_s)
        self._recent.append(features_s)
        self.seen += 1
        shift_ts, far_ts = self._known.residuals(np.stack(self._recent))
        limits = self._limits
        out_w = self._known.windows(far_ts, limits.most)[-1]
        excess_w = (out_w - limits.middle_w) / limits.scatter_w
        length = int(np.nanargmax(excess_w)) + 1
        self.score = float(excess_w[length - 1] / limits.threshold)
        was_drifted = self.is_drifted
        self.is_drifted = self.score > (0.5 if was_drifted else 1.0)
        if was_drifted or not self.is_drifted:
            return None
        changes = _changes(shift_ts[-length:].mean(axis=0))
        return Alarm(self.seen - 1, self.seen - length, self.score, changes)

    @property
    def memory(self) -> StreamMemory:
        """What it remembers of its stream; `again` makes a watch that goes on with it."""
        recent_ts = np.stack(self._recent) if self._recent else np.empty((0, self.feature_count))
        return StreamMemory(recent_ts, self.seen, self.score, self.is_drifted)

    @property
    def feature_count(self) -> int:
        """Features of a frame."""
        return int(self._known.middle_gs.shape[1])

    @property
    def has_pixel_size(self) -> bool:
        """Whether the known frames have a pixel size."""
        if self.feature_count <= LOG_SIZE:
            return False
        return bool(np.isfinite(self._known.middle_gs[:, LOG_SIZE]).any())

    def again(self, memory: StreamMemory | None = None) -> Self:
        """Return a watch of another stream by the same known frames, which both share.

        Args:
            memory: what it remembers of its stream; nothing if left out.
        """
        watch = type(self).__new__(type(self))
        watch._known, watch._limits = self._known, self._limits
        memory = memory or StreamMemory(np.empty((0, self.feature_count)))
        watch._recent = deque(memory.recent_ts, maxlen=WINDOW)
        watch.seen, watch.score = memory.seen, memory.score
        watch.is_drifted = memory.is_drifted
        return watch

    def state(self) -> str:
        """Return the state as JSON, for `restore`."""
        return json.dumps(
            {
                "format": FORMAT,
                "known": {name: _listed(value) for name, value in vars(self._known).items()},
                "limits": {name: _listed(value) for name, value in vars(self._limits).items()},
                "recent": [_listed(one) for one in self._recent],
                "seen": self.seen,
                "score": self.score,
                "is_drifted": self.is_drifted,
            }
        )

    @classmethod
    def restore(cls, state: str) -> Self:
        """Return a watch with this state; it continues exactly as the original would.

        Raises:
            Corrupt: the text is not such a state.
        """
        watch = cls.__new__(cls)
        try:
            kept = json.loads(state)
            if kept["format"] != FORMAT:
                raise ValueError(f"format {kept['format']!r}")
            watch._known = InControl(
                **{name: _array(value) for name, value in kept["known"].items()}
            )
            limits = {name: _array(value) for name, value in kept["limits"].items()}
            watch._limits = ControlLimits(
                limits["middle_w"],
                limits["scatter_w"],
                float(limits["most"]),
                float(limits["threshold"]),
            )
            watch._recent = deque((_array(one) for one in kept["recent"]), maxlen=WINDOW)
            watch.seen, watch.score = int(kept["seen"]), float(kept["score"])
            watch.is_drifted = bool(kept["is_drifted"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Corrupt(
                "this is no state of a drift watch",
                f"`manybeam watch --state FILE` writes one, of format {FORMAT}",
                "give the right file, or the name of a new one to start again",
            ) from error
        return watch

    def _check(self, features_s: np.ndarray) -> None:
        wanted = self.feature_count
        if features_s.shape != (wanted,) or not np.isfinite(features_s).any():
            raise InvalidInput(
                f"features of shape {features_s.shape} are not those of a frame",
                f"{wanted} numbers, not all of them missing",
                "take them from predictor.stream.drift.frame_features",
            )
        if wanted <= LOG_SIZE:
            return
        has_size = self.has_pixel_size
        if has_size != bool(np.isfinite(features_s[LOG_SIZE])):
            raise InvalidInput(
                f"the known frames were taken {'with' if has_size else 'without'} a pixel size, "
                f"this frame {'without' if has_size else 'with'}",
                "either all frames have one or none",
                "give the pixel size of every frame, or of none",
            )


def _fault(frame_yx: np.ndarray) -> str:
    """Return what is wrong with a frame, or nothing."""
    if frame_yx.ndim != 2 or min(frame_yx.shape) < LEAST_SIDE_PX:
        return f"a frame of shape {frame_yx.shape}"
    if frame_yx.dtype.kind not in "biuf" or not np.isfinite(frame_yx).all():
        return "a frame with values that are not finite"
    return "a constant frame" if frame_yx.min() == frame_yx.max() else ""


def _crops(frame_yx: np.ndarray) -> np.ndarray:
    """Return at most four crops, evenly chosen."""
    rows, columns = (min(side, CROP_PX) for side in frame_yx.shape)
    places = [
        (top, left)
        for top in range(0, frame_yx.shape[0] - rows + 1, rows)
        for left in range(0, frame_yx.shape[1] - columns + 1, columns)
    ]
    chosen = np.linspace(0, len(places) - 1, min(len(places), MOST_CROPS)).round().astype(int)
    return np.stack(
        [frame_yx[top : top + rows, left : left + columns]
         for top, left in (places[index] for index in chosen)]
    )  # fmt: skip


def _changes(shift_s: np.ndarray) -> tuple[Change, ...]:
    """Return the change of each visible property, the largest first."""
    looks = np.repeat([name for name, _ in LOOKS], [count for _, count in LOOKS])[: len(shift_s)]
    found = [
        Change(name, float(np.sqrt(np.mean(shift_s[looks == name] ** 2))))
        for name in CAUSES
        if (looks == name).any()
    ]
    return tuple(sorted(found, key=lambda one: -one.scatters))


def _listed(value: Any) -> Any:
    """Return an array as lists, its NaN as null: JSON has no NaN."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim > 1:
        return [_listed(one) for one in value]
    return [number if math.isfinite(number) else None for number in value.tolist()]


def _array(value: Any) -> Any:
    return np.array(value, np.float64)
