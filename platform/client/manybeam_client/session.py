"""A session: what a control program holds while it records."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

from manybeam_client.asking import PATIENCE_S
from manybeam_client.frame import FrameRequest, checked_frame, checked_label, raw_body
from manybeam_client.link import Link
from manybeam_client.network.place import find_place
from manybeam_client.stream.stream import POLICIES, TRANSPORTS, answers_of

if TYPE_CHECKING:
    from types import TracebackType

    from manybeam_client.answer import Answer
    from manybeam_client.stats import Stats
    from manybeam_client.stream.event import Event

MOST_DEADLINE_MS = 600_000
MOST_IN_FLIGHT = 64


class Session:
    """Sends frames to a Manybeam service; safe to use from several threads.

    Only arguments that cannot be used raise. What the network or the service do is in
    `answer.error`, so that a scan goes on.

    Args:
        url: of the service; `MANYBEAM_URL` if left out.
        instrument: id of the instrument. With it, the service's session of this instrument
            answers: it is started if there is none, and one that is pinned stays pinned.
        ensemble: REF that answers, or that members are selected from; `auto` for any.
        deadline_ms: time for one frame, with everything [ms]; 60 s if left out.
        token: `MANYBEAM_TOKEN` if left out.
        ca: file of a private certificate authority; `MANYBEAM_CA` if left out.
        pixel_size_pm: edge of a pixel of all frames [pm].
        want: what an answer holds: `atoms`, `mean`, `std`, `mi`, `members`, `votes`.
        spool: folder for frames that are recorded while the service is away; none if left out.
        spool_limit_mb: largest size of the frames in it [MiB].

    Raises:
        ValueError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        instrument: str = "",
        ensemble: str = "auto",
        deadline_ms: float | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        pixel_size_pm: float | None = None,
        want: Sequence[str] = ("atoms",),
        spool: str | os.PathLike[str] | None = None,
        spool_limit_mb: float = 1024,
    ) -> None:
        self._deadline_ms = _checked_deadline(deadline_ms)
        self._pixel_size_pm = _checked_size(pixel_size_pm)
        self._instrument = checked_label(instrument, "instrument") if instrument else ""
        self._ensemble = checked_label(ensemble, "ensemble")
        self._want = ",".join([want] if isinstance(want, str) else want)
        place = find_place(url, token, ca)
        self._link = Link(place, self._instrument, self._ensemble, self._pixel_size_pm)
        if spool is not None:
            self._link.spool_to(Path(spool), spool_limit_mb)
        self._names, self._run = itertools.count(), os.urandom(6).hex()
        self._opening = threading.Lock()
        self._is_opened = not instrument

    def __enter__(self) -> Session:
        """Have the service's session of the instrument ready before the first frame."""
        if not self._is_opened:
            self._is_opened = True
            self._link.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End connections and threads. The service's session and the spool stay as they are."""
        self._link.close()

    @property
    def instrument(self) -> str:
        """Id of the instrument; empty for none."""
        return self._instrument

    @property
    def stats(self) -> Stats:
        """Counts of what became of the frames."""
        return self._link.stats

    @property
    def spooled(self) -> int:
        """How many frames wait in the spool."""
        return 0 if self._link.spool is None else self._link.spool.waiting

    @property
    def is_offline(self) -> bool:
        """Whether the service is away."""
        return self._link.outage.is_open

    def predict(
        self,
        frame: Any,
        pixel_size_pm: float | None = None,
        frame_id: str | None = None,
        deadline_ms: float | None = None,
    ) -> Answer:
        """Return the answer for one frame, within the deadline.

        Args:
            frame: array (y, x) of real numbers, any byte order.
            pixel_size_pm: edge of a pixel [pm]; that of the session if left out.
            frame_id: name of the frame. The same name for the same frame counts once.
            deadline_ms: time for this frame [ms]; that of the session if left out.

        Raises:
            TypeError: the values are no real numbers.
            ValueError: it is no frame, or an argument cannot be used.
        """
        begun_s = time.monotonic()
        request = self._request(frame, pixel_size_pm, frame_id)
        deadline_ms = _checked_deadline(deadline_ms) or self._deadline_ms
        self._open_beside()
        return self._link.answer(request, begun_s, deadline_ms)

    def stream(
        self,
        frames: Iterable[Any],
        policy: str = "latest",
        in_flight: int = 2,
        on_event: Callable[[Event], None] | None = None,
        transport: str = "auto",
    ) -> Iterator[Answer]:
        """Return the answers for frames as they come, in their order; see `answer.error`.

        The frames are read in a thread of their own, one ahead; an error in them is raised here,
        after the answers before it.

        Args:
            frames: arrays (y, x), or pairs (array, dict) with `frame_id` and `pixel_size_pm`. Each
                is copied, so the source may use its memory again.
            policy: `all` answers every frame once, and lets the source wait. `latest` never lets it
                wait: of the frames that wait only the newest is sent. The others have no answer;
                they are counted in `stats.dropped`.
            in_flight: frames that are sent and not answered yet; 1 to 64.
            on_event: is called with the events of the service, in the thread of the loop.
            transport: `websocket`, `http`, or `auto`: WebSocket if it can be had.

        Raises:
            ValueError: an argument cannot be used.
        """
        for name, value, allowed in (
            ("policy", policy, POLICIES),
            ("transport", transport, TRANSPORTS),
        ):
            if value not in allowed:
                raise ValueError("{}: {!r} is none of {}".format(name, value, ", ".join(allowed)))
        if not 1 <= in_flight <= MOST_IN_FLIGHT:
            raise ValueError(f"in_flight: {in_flight} is not from 1 to {MOST_IN_FLIGHT}")
        if transport == "websocket" and not self._instrument:
            raise ValueError("transport: a WebSocket needs the argument instrument of the Session")
        return answers_of(
            self._link,
            iter(frames),
            self._stream_request,
            is_latest=policy == "latest",
            in_flight=in_flight,
            deadline_ms=self._deadline_ms or PATIENCE_S * 1000,
            on_event=on_event,
            transport=transport,
        )

    def _stream_request(self, item: Any) -> FrameRequest:
        """Return the request of one item of a stream; its frame is copied."""
        self._open_beside()
        frame, facts = item if isinstance(item, tuple) else (item, {})
        unknown = set(facts) - {"frame_id", "pixel_size_pm"}
        if unknown:
            raise ValueError(f"a frame has {sorted(unknown)}; allowed: frame_id, pixel_size_pm")
        frame_yx = checked_frame(frame)
        is_own = frame_yx is not frame and frame_yx.base is None
        return self._request(frame_yx if is_own else frame_yx.copy(), **facts)

    def _request(
        self, frame: Any, pixel_size_pm: float | None = None, frame_id: str | None = None
    ) -> FrameRequest:
        body, dtype, shape = raw_body(checked_frame(frame))
        name = frame_id or f"{self._run}-{next(self._names)}"
        size_pm = _checked_size(pixel_size_pm) or self._pixel_size_pm
        query = {} if self._want == "atoms" else {"want": self._want}
        if size_pm is not None:
            query["pixel_size_pm"] = f"{size_pm:.10g}"
        ref = self._ensemble
        if self._instrument:
            ref, query["instrument"] = "auto", self._instrument
        name = checked_label(name, "frame_id")
        return FrameRequest(ref, name, body, dtype=dtype, shape=shape, query=query)

    def _open_beside(self) -> None:
        """Start the service's session in a thread if nobody entered this one."""
        if self._is_opened:
            return
        with self._opening:
            is_first, self._is_opened = not self._is_opened, True
        if is_first:
            threading.Thread(target=self._link.open, name="manybeam-open", daemon=True).start()


def _checked_deadline(deadline_ms: float | None) -> float | None:
    if deadline_ms is None or 1 <= deadline_ms <= MOST_DEADLINE_MS:
        return deadline_ms
    raise ValueError(f"deadline_ms: {deadline_ms!r} is not from 1 to {MOST_DEADLINE_MS} ms")


def _checked_size(pixel_size_pm: float | None) -> float | None:
    if pixel_size_pm is None or (math.isfinite(pixel_size_pm) and 1 <= pixel_size_pm <= 500):
        return pixel_size_pm
    raise ValueError(
        f"pixel_size_pm: {pixel_size_pm!r} is not from 1 to 500; "
        "give the edge of a pixel in picometres (a 1024 px frame 8 nm wide has 7.8)"
    )
