"""Versions of a service: no request waits for the zoo, or for networks to load."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from manybeam.errors import ManybeamError, NoCapacity, UnknownRef
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.predictor.versions.of_zoo import ZooVersions

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.zoo.records import Record

logger = logging.getLogger(__name__)

EVERY_S = 4.0  # with the seconds of a load, a promotion answers within 10 s


class LiveVersions:
    """Versions that are brought up to date beside the requests, and change between two of them.

    A thread asks the zoo again every few seconds. What a reference means now is loaded whole, and
    then takes the place of what answered before. If that fails, the earlier one goes on, and its
    answers say so. Only the first request for a reference that was never asked for waits.

    Args:
        source: the versions of the zoo; its values must not be older than `every_s`.
        every_s: time between two rounds; 0 for none but those that `refresh` is called for.
    """

    def __init__(self, source: ZooVersions, *, every_s: float = EVERY_S) -> None:
        self.source, self._every_s = source, every_s
        self._ready: OrderedDict[str, LoadedVersion] = OrderedDict()
        self._serving: tuple[str, ...] = ()
        self._held: dict[str, tuple[str, ...]] = {}  # by who needs them
        self._faults: dict[str, str] = {}  # why references could not be brought up to date
        self._errors: dict[str, ManybeamError] = {}  # the same, as the round got them
        self._fault: ManybeamError | None = None  # why it is unknown what serves
        self._warned: dict[str, str] = {}  # what the log was told of a reference last
        self._lock, self._wake, self._is_ended = threading.Lock(), threading.Event(), False
        self.refresh()
        if every_s:
            threading.Thread(target=self._run, name="live-versions", daemon=True).start()

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among.

        Raises:
            NoCapacity: there are none.
            Unreachable: the zoo never said.
        """
        if not self._serving and self._fault is not None:
            raise self._fault.with_traceback(None)  # it would keep the frames of every request
        return self._serving

    def get(self, ref: str) -> LoadedVersion:
        """Return what answers for a reference; raises as `ZooVersions.get` does.

        A version that is in memory for another reference, as an alias, is not asked for again: the
        zoo may be away. What the last round could not load is not tried by each request.
        """
        with self._lock:
            ready = self._ready.get(ref)
            if ready is not None:
                self._ready.move_to_end(ref)
                return ready
            ready = next((one for one in self._ready.values() if one.ref == ref), None)
            error = self._errors.get(ref)
        if ready is None and error is not None:
            raise error.with_traceback(None)  # it would keep the frames of every request
        ready = ready or self.source.get(ref)
        self._put(ref, ready)
        return ready

    def loaded(self, ref: str) -> LoadedVersion | None:
        """Return what answers for a reference if it is in memory; nothing is loaded."""
        with self._lock:
            return self._ready.get(ref)

    def fault(self, ref: str) -> str:
        """Return why the last round could not load a reference; "" if it could."""
        return self._faults.get(ref, "")

    def hold(self, who: str, refs: Sequence[str]) -> None:
        """Load these references too, beside the requests, and keep them.

        Args:
            who: needs them, as `rollouts`; what it needed before is let go.
            refs: the references.
        """
        with self._lock:
            self._held = {**self._held, who: tuple(refs)}
            self.source.make_room(len(self._all_held))
        self.renew_soon()

    @property
    def _all_held(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(ref for refs in self._held.values() for ref in refs))

    def renew_soon(self) -> None:
        """Let the next round begin now."""
        self._wake.set()

    def refresh(self) -> None:
        """Bring every reference up to date; what fails is logged and told in answers."""
        serving, held = self._asked_what_serves(), self._all_held
        first = dict.fromkeys((*held, *serving))  # there is room of its own for what is held
        with self._lock:
            others = [ref for ref in reversed(self._ready) if ref not in first]
        # What was asked for last follows, as far as there is room. What serves is loaded first.
        wanted = sorted(
            [*first, *others][: self.source.capacity], key=lambda ref: ref not in serving
        )
        self._faults = {ref: why for ref in wanted if (why := self._renew(ref))}
        self._errors = {ref: one for ref, one in self._errors.items() if ref in self._faults}
        self._warned = {ref: text for ref, text in self._warned.items() if ref in ("", *wanted)}
        for ref, why in self._faults.items():
            if ref in serving or ref not in held:
                self._note(ref, why)
        self._serving = self._answering(serving)

    def _asked_what_serves(self) -> tuple[str, ...]:
        try:
            serving = tuple(self.source.serving())
        except NoCapacity as error:
            self._fault = error
            return ()
        except ManybeamError as error:
            if self._is_news("", error):
                logger.warning("what serves is not known anew: %s", error)
            self._fault = error
            return self._serving
        self._fault = None
        self._warned.pop("", None)
        return serving

    def _answering(self, serving: Sequence[str]) -> tuple[str, ...]:
        """Return what answers for the versions that serve: for one that fails, the one before."""
        earlier = {ref.partition("@")[0]: ref for ref in self._serving if ref in self._ready}
        found = []
        for place, ref in enumerate(serving):
            is_awaited = place < self.source.capacity and ref not in self._ready
            found.append(earlier.get(ref.partition("@")[0], ref) if is_awaited else ref)
        return tuple(dict.fromkeys(found))

    @property
    def refs(self) -> tuple[str, ...]:
        """The references that were to be loaded at the start."""
        return self.source.refs

    def held(self) -> "list[tuple[Record, Ensemble]]":
        """Return the ensembles in memory, the most recently used one last."""
        return self.source.held()

    def degraded(self) -> list[str]:
        """Return what is out of date, in words; nothing while all is as the zoo has it."""
        with self._lock:
            notes = [note for one in self._ready.values() for note in one.notes]
        if self._fault is not None:
            notes.append(f"what serves is not known anew: {self._fault.what}")
        return list(dict.fromkeys(notes))

    def close(self) -> None:
        """End the thread after its round."""
        self._is_ended = True
        self._wake.set()

    def _renew(self, ref: str) -> str:
        """Load what a reference means now; return why that fails, or nothing."""
        try:
            self._put(ref, self.source.get(ref))
        except UnknownRef as error:  # removed, or its alias was: the next request is told so
            if self._is_news(ref, error):
                logger.warning("%s serves no longer: %s", ref, error)
            with self._lock:
                self._ready.pop(ref, None)
            return error.what if ref in self._all_held else ""
        except Exception as error:  # one that fails must not keep the others from being renewed
            if isinstance(error, ManybeamError):
                self._errors[ref] = error
            if self._is_news(ref, error):
                logger.warning("%s is not renewed: %s", ref, error, exc_info=not _is_ours(error))
            return str(getattr(error, "what", type(error).__name__))
        self._warned.pop(ref, None)
        self._errors.pop(ref, None)
        return ""

    def _is_news(self, ref: str, error: Exception) -> bool:
        """Return whether the log was not told of it yet; rounds follow each other soon."""
        before, self._warned[ref] = self._warned.get(ref), str(error)
        return before != str(error)

    def _note(self, ref: str, why: str) -> None:
        """Let answers say that a version goes on in place of one that fails."""
        name = ref.partition("@")[0]
        with self._lock:
            for one in (ref, *(one for one in self._serving if one.partition("@")[0] == name)):
                earlier = self._ready.get(one)
                if earlier is not None:
                    note = f"{earlier.ref} goes on, because what follows it fails: {why}"
                    kept = tuple(one for one in earlier.notes if "goes on, because" not in one)
                    self._ready[one] = replace(earlier, notes=(*kept, note))

    def _put(self, ref: str, loaded: LoadedVersion) -> None:
        if loaded.performance is not None:
            loaded.performance.prepare()  # else the first frame would wait for it
        with self._lock:
            before = self._ready.get(ref)
            if before is not None and before.ref != loaded.ref:
                logger.info("%s: %s answers in place of %s", ref, loaded.ref, before.ref)
            self._ready[ref] = loaded
            # What serves stays; of the rest, what was not asked for the longest time goes first.
            kept = (*self._serving, *self._all_held, ref)
            spare = [one for one in self._ready if one not in kept]
            while spare and len(self._ready) > self.source.capacity:
                del self._ready[spare.pop(0)]

    def _run(self) -> None:
        while True:
            self._wake.wait(self._every_s)
            self._wake.clear()
            if self._is_ended:
                return
            try:
                self.refresh()
            except Exception:  # a round that failed must not end the rounds to come
                logger.exception("versions are not renewed")


def _is_ours(error: Exception) -> bool:
    """Return whether an error says all that the log needs."""
    return isinstance(error, ManybeamError)
