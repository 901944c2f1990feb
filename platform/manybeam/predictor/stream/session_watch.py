"""The drift watch of one session, which goes on after an alarm.

A watch alone says once that frames left what is known, and is blind to what comes next. Real
frames are often unlike all simulated ones, so a session would stay drifted for ever. A session
therefore also learns from the frames after an alarm, and tells of further changes.
Axis letters: t frame of a stream, s number of a summary.
"""

import base64
import json
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from manybeam.errors import Corrupt, InvalidInput
from manybeam.predictor.stream.drift import LOG_SIZE, LOOKS, Alarm, DriftWatch, StreamMemory
from manybeam.predictor.stream.in_control import WINDOW

FEATURE_COUNT = sum(count for _, count in LOOKS)
FORMAT = "manybeam-session-watch-1"
LEARNT = 60  # frames before it watches by what it learnt
# It learns on while nothing changes, because few frames do not show how far a session wanders
# without harm. Until then, the threshold is raised: frames learnt from -> factor. Chosen by hand on
# two drawn conditions (decision 0045).
CAUTION = {LEARNT: 2.0, 120: 1.75, 240: 1.25, 360: 1.0}
MOST_LEARNT = max(CAUTION)
# A session is in control again after so many frames in a row. Frames at the edge of what is known
# would else raise an alarm every few frames.
CALM = 20
# A change of the pixel size while it learns by more than that share begins the learning anew: the
# frames before and after it are of different conditions.
SAME_SIZE = 0.05
UNKNOWN = "those that the version knows"
LEARNT_WORDS = "the first frames of the session"


@dataclass(frozen=True, kw_only=True)
class WatchChange:
    """A session drifted, drifted further, or is in control again.

    Attributes:
        is_drifted: whether it is drifted now.
        frame_id: the frame that showed it.
        since: the frame at which the change is estimated to begin.
        before: the last frame before it; "" if there was none.
        score: score of the watch that raised it: above 1 for an alarm, below 0.5 for the end.
        changes: what changed, in words; "" at the end.
        why: the reason in one sentence.
    """

    is_drifted: bool
    frame_id: str
    since: str
    before: str
    score: float
    changes: str
    why: str


class SessionWatch:
    """Takes the frames of one session, one at a time, and tells when they drifted.

    With known frames it watches from the first frame; without them it learns from the first 60, and
    goes on learning up to 360 while nothing changes. After an alarm it learns from the frames since
    in the same way, and watches by these too: a further change raises a further alarm. It is in
    control again when the score by the frames known at first stays below half for 20 frames; what
    was learnt after the alarm is then dropped.

    Frames with and without a pixel size cannot be compared. A few frames of the other kind are
    left out. After ten in a row, the session begins anew, and learns from them.

    Args:
        known: a watch by known frames, which sessions share; it is not changed.
    """

    def __init__(self, known: DriftWatch | None = None) -> None:
        self._first = _LearningWatch(known)
        self._by_known = known is not None
        self._further: _LearningWatch | None = None
        self._has_size = known.has_pixel_size if known else None
        self._names: deque[str] = deque(maxlen=WINDOW + 1)
        self._others: list[np.ndarray] = []
        self._since = ""
        self._calm = 0  # frames in a row below half of the threshold, after an alarm
        self.is_drifted = False  # whether it has left the conditions known at first
        self.left_out = 0

    @property
    def score(self) -> float:
        """Score of the last frame by the frames known at first; above 1 raises an alarm."""
        return self._first.score

    @property
    def state(self) -> str:
        """The state in words: `learning 12 of 60`, `in control` or `drifted since NAME`."""
        if self._first.drift is None:
            return f"learning {len(self._first.rows)} of {LEARNT}"
        return f"drifted since {self._since}" if self.is_drifted else "in control"

    @property
    def has_pixel_size(self) -> bool | None:
        """Whether its frames have a pixel size; None before the first one."""
        return self._has_size

    def see(self, frame_id: str, features_s: np.ndarray | None) -> WatchChange | None:
        """Take the next frame; return the change that it shows, if any.

        Args:
            frame_id: name of the frame.
            features_s: its features, see `drift.frame_features`; None if it has none.

        Raises:
            InvalidInput: these are not features of a frame.
        """
        row_s = None if features_s is None else _row(features_s)
        if row_s is None:
            self.left_out += 1
            return None
        has_size = bool(np.isfinite(row_s[LOG_SIZE]))
        if self._has_size not in (None, has_size):
            return self._see_other(frame_id, row_s)
        self._has_size, self._others = has_size, []
        self._names.append(frame_id)
        return self._watch(frame_id, row_s)

    def watch_by(self, known: DriftWatch) -> bool:
        """Watch by known frames from the next frame on, in place of those that were learnt.

        They may be ready only after the session began. Returns whether it does: not if it is
        drifted, or watches by known frames already, or if these are of the other kind.
        """
        if self.is_drifted or self._by_known or self._has_size not in (None, known.has_pixel_size):
            return False
        self._first, self._by_known = _LearningWatch(known), True
        self._has_size = known.has_pixel_size
        return True

    def to_json(self) -> str:
        """Return what a new process needs, without the known frames.

        It has 8 kB, and 0.6 kB more for each frame that was learnt from.
        """
        return json.dumps(
            {
                "format": FORMAT,
                "first": self._first.to_json(),
                "by_known": self._by_known,
                "further": self._further and self._further.to_json(),
                "has_size": self._has_size,
                "names": list(self._names),
                "others": _packed(self._others),
                "since": self._since,
                "calm": self._calm,
                "is_drifted": self.is_drifted,
                "left_out": self.left_out,
            }
        )

    @classmethod
    def restore(cls, known: DriftWatch | None, text: str) -> Self:
        """Return a watch that goes on exactly as the one that `to_json` was called on.

        Args:
            known: the watch by known frames that it had, or None if it had none.
            text: of `to_json`.

        Raises:
            Corrupt: the text is none of `to_json`, or it had known frames and `known` is None.
        """
        watch = cls()
        try:
            kept = json.loads(text)
            if kept["format"] != FORMAT:
                raise ValueError(f"format {kept['format']!r}")
            watch._by_known = bool(kept["by_known"])
            if watch._by_known and known is None:
                raise ValueError("its known frames are missing")
            given = known if watch._by_known else None
            watch._first = _LearningWatch.restore(given, kept["first"])
            further = kept["further"]
            watch._further = _LearningWatch.restore(None, further) if further else None
            watch._has_size = None if kept["has_size"] is None else bool(kept["has_size"])
            watch._names.extend(map(str, kept["names"]))
            watch._others = list(_unpacked(kept["others"]))
            watch._since, watch._calm = str(kept["since"]), int(kept["calm"])
            watch.is_drifted, watch.left_out = bool(kept["is_drifted"]), int(kept["left_out"])
        except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
            raise Corrupt(
                "this is no state of a session's drift watch",
                str(error),
                "begin a new watch; it learns from the next frames",
            ) from error
        return watch

    def _watch(self, frame_id: str, row_s: np.ndarray) -> WatchChange | None:
        alarm = self._first.see(row_s)
        if not self.is_drifted:
            return self._drifted(frame_id, alarm) if alarm else None
        self._calm = 0 if self._first.is_drifted else self._calm + 1
        if self._calm == CALM:
            self._further, self._since, self.is_drifted = None, "", False
            return self._ended(frame_id)
        again = self._further.see(row_s) if self._further else None
        if again is None:
            return None
        self._further = _LearningWatch()
        return self._changed(frame_id, again, "changed again")

    def _drifted(self, frame_id: str, alarm: Alarm) -> WatchChange:
        words = f"are unlike {UNKNOWN if self._by_known else LEARNT_WORDS}"
        change = self._changed(frame_id, alarm, words)
        self._further, self._calm = _LearningWatch(), 0
        self.is_drifted, self._since = True, change.since
        return change

    def _changed(self, frame_id: str, alarm: Alarm, words: str) -> WatchChange:
        names = list(self._names)
        begin = max(len(names) - (alarm.frame - alarm.since + 1), 0)
        since, before = names[begin], names[begin - 1] if begin else ""
        why = f"the frames since {since} {words}: {alarm.words}"
        return WatchChange(
            is_drifted=True,
            frame_id=frame_id,
            since=since,
            before=before,
            score=alarm.score,
            changes=alarm.words,
            why=why,
        )

    def _ended(self, frame_id: str) -> WatchChange:
        before = self._names[-2] if len(self._names) > 1 else ""
        why = f"the frames are like {UNKNOWN if self._by_known else LEARNT_WORDS} again"
        return self._calmed(frame_id, before, why)

    def _see_other(self, frame_id: str, row_s: np.ndarray) -> WatchChange | None:
        """Take a frame that cannot be compared; after enough in a row, begin anew with them."""
        self.left_out += 1
        self._others.append(row_s)
        if len(self._others) < WINDOW:
            return None
        others, was_drifted, before = self._others, self.is_drifted, self._names
        self._first, self._by_known, self._further = _LearningWatch(), False, None
        self.is_drifted = False
        self._has_size, self._others, self._since = not self._has_size, [], ""
        self._names = deque(maxlen=WINDOW + 1)
        self.left_out -= len(others)
        for one_s in others:
            self._first.see(one_s)
        if not was_drifted:
            return None
        now = "have" if self._has_size else "have no"
        why = f"the frames {now} pixel size now, so the watch learns from them anew"
        last = before[-1] if before else ""
        return self._calmed(frame_id, last, why)

    def _calmed(self, frame_id: str, before: str, why: str) -> WatchChange:
        return WatchChange(
            is_drifted=False,
            frame_id=frame_id,
            since=frame_id,
            before=before,
            score=self.score,
            changes="",
            why=why,
        )


class _LearningWatch:
    """A watch by known frames, or one that learns from frames first and while nothing changes."""

    def __init__(self, known: DriftWatch | None = None) -> None:
        self._is_known = known is not None
        self.drift = known.again() if known else None
        self.rows: list[np.ndarray] = []
        self._fitted = 0  # of these, which the watch knows

    @property
    def score(self) -> float:
        return self.drift.score if self.drift else 0.0

    @property
    def is_drifted(self) -> bool:
        return self.drift is not None and self.drift.is_drifted

    def see(self, row_s: np.ndarray) -> Alarm | None:
        alarm = self.drift.see(row_s) if self.drift else None
        if self._is_known:
            return alarm
        if alarm is not None:  # the last frames are of what comes next
            self.rows = self.rows[: max(len(self.rows) - alarm.frame + alarm.since, self._fitted)]
        elif not self.is_drifted and len(self.rows) < MOST_LEARNT:
            self._learn(row_s)
        return alarm

    def _learn(self, row_s: np.ndarray) -> None:
        if self.drift is None and self.rows:
            step = abs(row_s[LOG_SIZE] - self.rows[-1][LOG_SIZE])
            self.rows = [] if step > SAME_SIZE else self.rows
        self.rows.append(row_s)
        if len(self.rows) in CAUTION:
            self._fitted = len(self.rows)
            self.drift = self._fit().again(self.drift.memory if self.drift else None)

    def _fit(self) -> DriftWatch:
        known_ns = np.stack(self.rows[: self._fitted])
        return DriftWatch(known_ns, caution=CAUTION[self._fitted])

    def to_json(self) -> dict[str, Any]:
        memory = self.drift.memory if self.drift else None
        return {
            "rows": _packed(self.rows),
            "fitted": self._fitted,
            "memory": memory
            and {
                "recent": _packed(list(memory.recent_ts)),
                "seen": memory.seen,
                "score": memory.score,
                "is_drifted": memory.is_drifted,
            },
        }

    @classmethod
    def restore(cls, known: DriftWatch | None, kept: dict[str, Any]) -> Self:
        watch, memory = cls(known), kept["memory"]
        watch.rows, watch._fitted = list(_unpacked(kept["rows"])), int(kept["fitted"])
        if memory is None:
            return watch
        source = known or watch._fit()
        numbers = int(memory["seen"]), float(memory["score"]), bool(memory["is_drifted"])
        watch.drift = source.again(StreamMemory(_unpacked(memory["recent"]), *numbers))
        return watch


def _row(features_s: np.ndarray) -> np.ndarray | None:
    """Return features as they are kept: of single precision; None if all are missing."""
    row_s = np.asarray(features_s, np.float64)
    if row_s.shape != (FEATURE_COUNT,):
        raise InvalidInput(
            f"features of shape {row_s.shape} are not those of a frame",
            f"{FEATURE_COUNT} numbers",
            "take them from predictor.stream.drift.frame_features",
        )
    is_number = np.isfinite(row_s)
    clipped_s = np.clip(np.where(is_number, row_s, np.nan), -1e30, 1e30)
    return clipped_s.astype(np.float32).astype(np.float64) if is_number.any() else None


def _packed(rows: list[np.ndarray]) -> dict[str, Any]:
    """Return rows of features as JSON; single precision loses nothing, see `_row`."""
    rows_ts = np.stack(rows).astype("<f4") if rows else np.empty((0, 0), "<f4")
    return {"shape": rows_ts.shape, "data": base64.b64encode(rows_ts.tobytes()).decode()}


def _unpacked(kept: dict[str, Any]) -> np.ndarray:
    raw = np.frombuffer(base64.b64decode(kept["data"], validate=True), "<f4")
    return np.asarray(raw.reshape(kept["shape"]).astype(np.float64))
