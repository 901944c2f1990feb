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
        self._lock, self._ended = threading.Lock(), threading.Event()
        self.refresh()
        if every_s:
            threading.Thread(target=self._run, name="live-versions", daemon=True).start()

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among; raises NoCapacity if there are none."""
        return self._serving or self.source.serving()

    def get(self, ref: str) -> LoadedVersion:
        """Return what answers for a reference; raises as `ZooVersions.get` does."""
        with self._lock:
            ready = self._ready.get(ref)
            if ready is not None:
                self._ready.move_to_end(ref)
                return ready
        ready = self.source.get(ref)
        self._put(ref, ready)
        return ready

    def refresh(self) -> None:
        """Bring every reference up to date; what fails is logged and told in answers."""
        try:
            self._serving = tuple(self.source.serving())
        except NoCapacity:
            self._serving = ()
        except ManybeamError as error:
            logger.warning("what serves is not asked again: %s", error)
        for ref in dict.fromkeys((*self._serving[: self.source.capacity], *self._ready)):
            self._renew(ref)

    @property
    def refs(self) -> tuple[str, ...]:
        """The references that were to be loaded at the start."""
        return self.source.refs

    def held(self) -> "list[tuple[Record, Ensemble]]":
        """Return the ensembles in memory, the most recently used one last."""
        return self.source.held()

    def close(self) -> None:
        """End the thread after its round."""
        self._ended.set()

    def _renew(self, ref: str) -> None:
        try:
            self._put(ref, self.source.get(ref))
        except UnknownRef as error:  # removed, or its alias was: the next request is told so
            logger.warning("%s serves no longer: %s", ref, error)
            with self._lock:
                self._ready.pop(ref, None)
        except ManybeamError as error:
            logger.warning("%s is not renewed: %s", ref, error)
            with self._lock:
                earlier = self._ready.get(ref)
                if earlier is not None:
                    note = f"{earlier.ref} goes on, because what follows it fails: {error.what}"
                    kept = tuple(one for one in earlier.notes if "goes on, because" not in one)
                    self._ready[ref] = replace(earlier, notes=(*kept, note))

    def _put(self, ref: str, loaded: LoadedVersion) -> None:
        with self._lock:
            before = self._ready.get(ref)
            if before is not None and before.ref != loaded.ref:
                logger.info("%s: %s answers in place of %s", ref, loaded.ref, before.ref)
            self._ready[ref] = loaded
            while len(self._ready) > self.source.capacity:
                self._ready.popitem(last=False)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self.refresh()
            except Exception:  # a round that failed must not end the rounds to come
                logger.exception("versions are not renewed")
