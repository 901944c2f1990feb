"""The names that callers give to frames: each is answered once at a time, and repeats are known."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from manybeam.db.serving.sessions import AnsweredFrame
from manybeam.errors import Conflict, ManybeamError
from manybeam.serve.sessions.patience import result_within

logger = logging.getLogger(__name__)

PATIENCE_S = 0.25  # of a request that asks whether its frames are repeats
LOOK_S = 0.05  # between two looks whether who waits for the same frame still has time
RECENT = 4_096  # answered frames whose repeats are known without a query

Ask = Callable[[int, Sequence[str]], Mapping[str, AnsweredFrame]]


class FrameNames:
    """The names of the frames of all sessions; safe to use from several threads.

    Args:
        ask: returns the recorded frames of a session that have these names; may raise an error.
        may_ask: returns whether it makes sense to ask now.
    """

    def __init__(self, ask: Ask, may_ask: Callable[[], bool]) -> None:
        self._ask, self._may_ask = ask, may_ask
        # Frames that are being answered, with their digests.
        self._under_way: dict[tuple[int, str], str] = {}
        # What is recorded stays for a while, to know repeats without a query.
        self._answered: OrderedDict[tuple[int, str], AnsweredFrame] = OrderedDict()
        self._lock = threading.Lock()
        self._answered_one = threading.Condition(self._lock)
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="repeats")

    def close(self) -> None:
        """Ask no longer."""
        self._asking.shutdown(wait=False, cancel_futures=True)

    def note(self, frame: AnsweredFrame) -> None:
        """Know an answered frame."""
        with self._lock:
            self._answered[frame.session_id, frame.frame_id] = frame
            while len(self._answered) > RECENT:
                self._answered.popitem(last=False)

    def answered(self, session_id: int, names: Sequence[str]) -> dict[str, AnsweredFrame]:
        """Return the frames that were answered before, by their names, as far as that is known.

        What is not in memory is asked for at once, so a request waits `PATIENCE_S` at most.
        """
        with self._lock:
            known = {
                name: found
                for name in names
                if (found := self._answered.get((session_id, name))) is not None
            }
        others = [name for name in names if name not in known]
        if not others or not self._may_ask():
            return known
        try:
            asked = result_within(PATIENCE_S, self._asking, lambda: self._ask(session_id, others))
        except ManybeamError as error:
            logger.info("it is not known whether frames are repeats: %s", error)
            return known
        return {**known, **asked}

    @contextmanager
    def lock(
        self,
        session_id: int,
        name: str,
        digest: str,
        check: Callable[[], None],
        answered: Mapping[str, AnsweredFrame],
    ) -> Iterator[AnsweredFrame | None]:
        """Keep the name of a frame for the block; give the frame if it was answered before.

        Another request with the same frame waits until this one was answered, so that it is
        answered by the same members and counts once.

        Args:
            session_id: of the session.
            name: of the frame.
            digest: of the frame.
            check: called again and again while this waits; what it raises ends the wait.
            answered: what `answered` returned.

        Raises:
            Conflict: the name is that of another frame.
        """
        key = session_id, name
        with self._answered_one:
            while (now := self._under_way.get(key)) is not None:
                if now != digest:
                    raise _taken(name, "is being answered")
                check()
                self._answered_one.wait(LOOK_S)
            self._under_way[key] = digest
            before = self._answered.get(key) or answered.get(name)
        try:
            if before is not None and before.digest != digest:
                raise _taken(name, f"was answered at {before.at:%H:%M:%S} UTC")
            yield before
        finally:
            with self._answered_one:
                self._under_way.pop(key)
                self._answered_one.notify_all()


def _taken(name: str, what: str) -> Conflict:
    """Return the error of a name that is that of another frame."""
    return Conflict(
        f"frame_id {name!r} names another frame of this session",
        f"that one {what}",
        "give each frame a name of its own",
    )
