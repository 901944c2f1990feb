"""What a live page shows of one session: the newest frame with its atoms, and the last minutes.

Axis letters: y row, x column, k atom.
"""

import base64
import io
import math
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.serve.monitor.report import ATOM, FrameReport, WatchState

TREND = 600  # frames
SHOWN_PX = 768  # longest side of the picture of a frame
QUALITY = 85  # of JPEG
CONTRAST = (0.5, 99.5)  # percentiles that become black and white
HELD_BYTES = 64 * 2**20  # of frames of a session that can still be kept by name
SEEN_S = 15.0  # after a page asked last, nobody looks


@dataclass(frozen=True, eq=False)
class _Shown:
    """The newest frame, as the page gets it."""

    number: int
    report: FrameReport
    state: WatchState
    at_s: float  # when it came here, monotonic


@dataclass(eq=False)
class LiveView:
    """The newest frames of one session; its methods are called under the monitor's lock.

    Attributes:
        asked_s: when a page asked last, in monotonic seconds.
        held_bytes: of the frames in memory.
    """

    asked_s: float = -math.inf
    held_bytes: int = 0
    _newest: _Shown | None = None
    _trend: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=TREND))
    _held: deque[FrameReport] = field(default_factory=deque)
    _picture: tuple[int, str] = (0, "")
    _drawing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at it."""
        return time.monotonic() - self.asked_s < SEEN_S

    @property
    def number(self) -> int:
        """Of the newest frame; grows with each frame."""
        return self._newest.number if self._newest else 0

    def add(self, report: FrameReport, state: WatchState) -> None:
        """Take a frame; the numbers of those before another process took over are lower."""
        number = max(self.number + 1, int(report.at.timestamp() * 1000))
        self._newest = _Shown(number, report, state, time.monotonic())
        self._trend.append({"number": number, **_point(report, state)})
        if report.pixels_yx is None:
            return
        self._held.append(report)
        self.held_bytes += _bytes(report)
        while len(self._held) > 1 and self.held_bytes > HELD_BYTES:
            self.forget_oldest()

    def forget_oldest(self) -> None:
        """Hold the oldest frame no more; if it was the newest one too, its picture is missing."""
        self.held_bytes -= _bytes(self._held.popleft())
        if not self._held:
            self._forget_newest()

    def held(self, frame_id: str) -> FrameReport | None:
        """Return a frame of the last ones by its name; None if it is not held any more."""
        return next((one for one in reversed(self._held) if one.frame_id == frame_id), None)

    def forget_unseen(self) -> None:
        """Hold no frames if nobody looks."""
        if self.is_watched:
            return
        self._held.clear()
        self.held_bytes, self._picture = 0, (0, "")
        self._forget_newest()

    def facts(self, after: int) -> dict[str, Any]:
        """Return the facts of the newest frame, and the trend since a number."""
        if self._newest is None:
            return {"number": 0, "frame": None, "trend": []}
        shown = self._newest
        return {
            "number": shown.number,
            "frame": _frame(shown),
            "age_s": round(time.monotonic() - shown.at_s, 2),
            "watch": shown.state.content,
            "latency_ms": _latency(self._trend),
            "trend": [one for one in self._trend if one["number"] > after],
        }

    def newest(self) -> _Shown | None:
        """Return the newest frame, for `picture`."""
        return self._newest

    def picture(self, shown: _Shown) -> str:
        """Return a frame as base64 of a JPEG, made once; "" if its pixels did not come along.

        It needs no lock of the monitor.
        """
        pixels_yx = shown.report.pixels_yx
        if pixels_yx is None:
            return ""
        with self._drawing:
            if self._picture[0] != shown.number:
                self._picture = shown.number, base64.b64encode(_jpeg(pixels_yx)).decode()
            return self._picture[1]

    def _forget_newest(self) -> None:
        shown = self._newest
        if shown is not None and shown.report.pixels_yx is not None:
            bare = replace(shown.report, pixels_yx=None, atoms_k4=None)
            self._newest = replace(shown, report=bare)


def _bytes(report: FrameReport) -> int:
    return 0 if report.pixels_yx is None else report.pixels_yx.nbytes


def _point(report: FrameReport, state: WatchState) -> dict[str, Any]:
    """Return what the trend keeps of a frame."""
    facts = report.facts
    return {
        "frame_id": report.frame_id,
        "at": report.at.isoformat(),
        "drift": state.score,
        "spread_px": facts.get("spread_px"),
        "ms": round(sum(facts.get("timings_ms", {}).values()), 1),
        "atoms": facts.get("atoms"),
        "dropped": len(facts.get("dropped", ())),
        "late": "late" in facts.get("counted", ()),
    }


def _frame(shown: _Shown) -> dict[str, Any]:
    report, facts = shown.report, shown.report.facts
    names = ("why", "verdict", "drift_score", "predicted_f1", "atoms", "dropped", "degraded")
    return {
        "frame_id": report.frame_id,
        "at": report.at.isoformat(),
        "session": report.session_id,
        "ref": report.ref,
        "members": list(report.members),
        "shape": list(report.shape),
        "pixel_size_pm": report.pixel_size_pm,
        "spread_px": facts.get("spread_px"),
        "timings_ms": facts.get("timings_ms", {}),
        "late": "late" in facts.get("counted", ()),
        **{name: facts.get(name) for name in names},
        "atom": list(ATOM),
        "positions": _base64(report.atoms_k4),
    }


def _latency(trend: deque[dict[str, Any]]) -> dict[str, float | None]:
    """Return median and 95th percentile of the time for an answer, over the trend."""
    known = [one["ms"] for one in trend if one["ms"] is not None]
    if len(known) < 2:
        return {"p50": known[0] if known else None, "p95": known[0] if known else None}
    cuts = statistics.quantiles(known, n=20, method="inclusive")
    return {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}


def _base64(array: NDArray[Any] | None) -> str:
    return "" if array is None else base64.b64encode(array.astype("<f4").tobytes()).decode()


def _jpeg(pixels_yx: NDArray[Any]) -> bytes:
    """Return a frame as a JPEG; large ones are made smaller by means."""
    from PIL import Image

    step = -(-max(pixels_yx.shape) // SHOWN_PX)
    rows, columns = (side // step * step for side in pixels_yx.shape)
    if step > 1 and min(rows, columns):
        blocks = pixels_yx[:rows, :columns].reshape(rows // step, step, columns // step, step)
        pixels_yx = blocks.mean(axis=(1, 3))
    low, high = np.percentile(pixels_yx[::2, ::2], CONTRAST)
    grey_yx = (pixels_yx - low) * (255 / max(high - low, 1e-12))
    made = io.BytesIO()
    Image.fromarray(np.clip(grey_yx, 0, 255).astype(np.uint8)).save(made, "jpeg", quality=QUALITY)
    return made.getvalue()
