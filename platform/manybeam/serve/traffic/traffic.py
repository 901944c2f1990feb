"""Which version answers a request, and what that adds to the comparison of a rollout.

A caller who asks for `graphene`, `graphene@serving` or `auto` leaves the version to the service. To
such a caller a canary answers a share of the frames. A caller who names a version gets that one.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from manybeam.data.io.frame import Frame
from manybeam.db.serving.comparison import Sums
from manybeam.db.serving.rollouts import LOADING, Rollout, Rollouts, Watched
from manybeam.errors import CallerGone, DeadlineExceeded, ManybeamError
from manybeam.predictor.answer import Answer, Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.live import LiveVersions
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.serve.traffic.comparison import answered, took
from manybeam.serve.traffic.rollout_cache import RolloutCache
from manybeam.serve.traffic.shadow import LiveWork, Shadow, ShadowFrame
from manybeam.serve.traffic.tally import Tally
from manybeam.zoo.records import Ref

logger = logging.getLogger(__name__)

T = TypeVar("T")
SAMPLE_PX = 4096  # of a frame without a name, for its digest


class RolloutMeter(Protocol):
    """Counts the frames of rollouts."""

    def rollout(self, kind: str, what: str, frames: int = 1) -> None:
        """Count frames; `what` is base, new, skipped or failed."""

    def rollouts(self, count: int) -> None:
        """Set the number of rollouts that run."""


@dataclass(frozen=True)
class Turn:
    """What a rollout means for one request.

    Attributes:
        rollout: the rollout.
        base: the version that serves.
        new: the new version; None while it is not loaded.
        is_taken: whether the rollout wants this frame.
        why: in words.
    """

    rollout: Rollout
    base: LoadedVersion
    new: LoadedVersion | None
    is_taken: bool
    why: str

    @property
    def is_canary(self) -> bool:
        """Whether the new version answers the request."""
        return self.rollout.kind == "canary" and self.is_taken and self.new is not None


@dataclass(frozen=True)
class Route:
    """The versions for one request, as a source of a predictor.

    Attributes:
        versions: those of the service.
        instrument: that asks; "" if it named none.
        turns: the rollouts that concern the request, by the reference that was asked for.
        is_sure: whether only one ensemble can answer; `auto` may choose among several.
        is_back: whether the new version failed, so that the base answers.
    """

    versions: LiveVersions
    instrument: str = ""
    turns: Mapping[str, Turn] = field(default_factory=dict)
    is_sure: bool = True
    is_back: bool = False

    def serving(self) -> Sequence[str]:
        """Return the references that `auto` selects among; raises as `LiveVersions.serving`."""
        return self.versions.serving()

    def get(self, ref: str) -> LoadedVersion:
        """Return what answers for a reference: of a canary, the new version."""
        turn = self.turns.get(ref)
        if turn is not None and turn.new is not None and turn.is_canary and not self.is_back:
            return turn.new
        return self.versions.get(ref)

    def turn_of(self, answer: Answer) -> Turn | None:
        """Return the turn of the ensemble that answered."""
        name = answer.record.name if answer.record else ""
        return next((one for one in self.turns.values() if one.rollout.ensemble == name), None)


class Traffic:
    """Routes the requests of one replica, and compares the versions of rollouts.

    Args:
        versions: the versions of the service.
        rollouts: returns those of the database, or raises an error if it is away.
        meter: counts.
    """

    def __init__(
        self, versions: LiveVersions, rollouts: Callable[[], Rollouts], meter: RolloutMeter
    ) -> None:
        self._versions, self._meter = versions, meter
        self.cache = RolloutCache(rollouts, self._follow)
        self.tally = Tally(rollouts)
        self._faults: dict[int, str] = {}  # why new versions cannot be loaded, as it was written
        self.live = LiveWork()
        self.shadow = Shadow(self.live, self._tell)

    def start(self) -> None:
        """Read rollouts, answer shadows and write comparisons in threads until `close`."""
        for one in (self.cache, self.tally, self.shadow):
            one.start()

    def close(self) -> None:
        """End the threads; the comparisons so far are written."""
        for one in (self.cache, self.shadow, self.tally):
            one.close()

    def degraded(self) -> list[str]:
        """Return what limits the rollouts, in words."""
        limits = self.cache.degraded()
        for one in self.cache.all():
            serves = self._serving_of(one.ensemble)
            if why := self._versions.fault(one.ref):
                limits.append(f"{one.words} waits: {why}")
            elif serves == one.ref:
                end = f"manybeam serve promote {one.ensemble} ends it"
                limits.append(f"{one.words} has nothing to do: that version serves; {end}")
            elif serves not in ("", one.base):
                limits.append(f"{one.words} rests: {serves} serves, not {one.base}")
        return limits

    def route(
        self, question: Question, frames: Sequence[Frame], instrument: str, frame_id: str
    ) -> Route:
        """Return the versions for a request.

        A frame without a name is known by its pixels, so that a repeated request gets the same
        version.
        """
        running = self.cache.running
        if not running or question.members:
            return Route(self._versions)
        key = frame_id or _digest(frames[0])
        turns, asked = {}, self._open_refs(question.ref)
        for ref in asked:
            rollout, base = running.get(ref.partition("@")[0]), self._versions.loaded(ref)
            if rollout is not None and base is not None and base.ref == rollout.base:
                turns[ref] = self._turn(rollout, base, instrument, key)
        return Route(self._versions, instrument, turns, is_sure=len(asked) == 1)

    def ask(
        self, route: Route, predictor: Predictor, work: Callable[[Predictor], T]
    ) -> tuple[T, Route]:
        """Return the result of work, and its route; if a new version fails, the base answers.

        Args:
            route: of the request.
            predictor: that of the service.
            work: asks a predictor.
        """
        canaries = [one for one in route.turns.values() if one.is_canary]
        with self.live.one():
            try:
                return work(predictor.among(route)), route
            except CallerGone:
                raise
            except DeadlineExceeded:
                self._note_late(route)
                raise
            except Exception as error:
                if not canaries:
                    raise
                fault = error
            # A new version must not take an answer from anybody. What is wrong with the request
            # itself is raised by the base.
            back = replace(route, is_back=True)
            found = work(predictor.among(back))
        words = " or ".join(one.rollout.words for one in canaries)
        is_strange = not isinstance(fault, ManybeamError)
        logger.warning("%s failed: %s", words, fault, exc_info=is_strange)
        if len(canaries) == 1:  # of several that `auto` selects among, nobody knows which failed
            why = {"failed": 1, "fault": str(fault)[:300]}
            self._tell(canaries[0].rollout, route.instrument, why)
        return found, back

    def note(
        self, route: Route, answers: Sequence[Answer], question: Question, seconds: float
    ) -> None:
        """Add answers to the comparison; those of the base are given to a shadow.

        Args:
            route: of the request.
            answers: for its frames.
            question: the caller's.
            seconds: time of all answers.
        """
        for answer in answers:
            turn = route.turn_of(answer)
            if turn is None or route.is_back:
                continue
            if turn.rollout.kind == "shadow":
                self._give_to_shadow(turn, route.instrument, answer, question)
            elif answer.ref in (turn.rollout.base, turn.rollout.ref):
                side = "new" if answer.ref == turn.rollout.ref else "base"
                sums = {side: answered(answer) | took(seconds / len(answers))}
                self._tell(turn.rollout, route.instrument, sums)

    def meta(self, route: Route, answer: Answer) -> dict[str, Any] | None:
        """Return which rollout an answer belongs to and why, as JSON data; None if to none."""
        turn = route.turn_of(answer)
        if turn is None:
            return None
        rollout = turn.rollout
        is_new = answer.ref == rollout.ref
        why = f"{rollout.ref} gave no answer" if route.is_back and turn.is_canary else turn.why
        return {
            "id": rollout.id,
            "kind": rollout.kind,
            "ref": rollout.ref,
            "base": rollout.base,
            "version": "new" if is_new else "base",
            "why": why,
        }

    def _note_late(self, route: Route) -> None:
        if not route.is_sure:
            return
        for one in route.turns.values():
            if one.rollout.kind == "canary":
                side = "new" if one.is_canary else "base"
                self._tell(one.rollout, route.instrument, {side: {"late": 1}})

    def _serving_of(self, ensemble: str) -> str:
        """Return the version that serves, as `graphene@3`; "" if it is not in memory."""
        refs = [ensemble, *self._versions.refs]
        known = [self._versions.loaded(ref) for ref in refs if ref.partition("@")[0] == ensemble]
        return next((one.ref for one in known if one is not None), "")

    def _open_refs(self, asked: str) -> Sequence[str]:
        """Return the references of a question that leave the version to the service."""
        if asked == "auto":
            named = self._versions.refs
            return [
                ref
                for ref in self._versions.serving()
                if ref not in named or Ref.parse(ref).version is None
            ]
        if not Ref.is_one(asked):
            return []
        ref = Ref.parse(asked)
        return [asked] if ref.alias == "serving" and ref.member is None else []

    def _turn(self, rollout: Rollout, base: LoadedVersion, instrument: str, key: str) -> Turn:
        new = self._versions.loaded(rollout.ref)
        is_taken, why = _draw(rollout, instrument, key)
        if is_taken and new is None:
            fault = self._versions.fault(rollout.ref) or "it is being loaded"
            why = f"{rollout.ref} cannot answer yet: {fault}"
        return Turn(rollout, base, new, is_taken, why)

    def _give_to_shadow(
        self, turn: Turn, instrument: str, answer: Answer, question: Question
    ) -> None:
        if not turn.is_taken:
            return
        is_whole = question.is_quick or set(answer.whole.members) == set(turn.base.ensemble.indices)
        if turn.new is None or answer.ref != turn.rollout.base or not is_whole:
            self._tell(turn.rollout, instrument, {"skipped": 1})
            return
        lean = answer.lean(has_maps=False)
        one = ShadowFrame(turn.rollout, instrument, lean, question, turn.base, turn.new)
        self.shadow.offer(one)

    def _tell(self, rollout: Rollout, instrument: str, sums: Sums) -> None:
        self.tally.add(rollout.id, instrument, sums)
        for what in ("base", "new", "skipped", "failed"):
            if what in sums:
                self._meter.rollout(rollout.kind, what)

    def _follow(self, found: Watched, before: Watched) -> None:
        """Load what the rollouts need, and look at once what serves if something was changed."""
        for one in found.running:
            self._note_fault(one)
        if found == before:
            return
        refs = [ref for one in found.running for ref in (one.base, one.ref)]
        self._versions.hold("rollouts", [*refs, *found.kept])
        self._meter.rollouts(len(found.running))
        ids = {one.id for one in before.running}
        for one in found.running:
            if one.id not in ids:
                logger.info("rollout begun: %s", one.words)
        still = {one.id for one in found.running}
        for one in before.running:
            if one.id not in still:
                logger.info("rollout ended: %s", one.words)

    def _note_fault(self, rollout: Rollout) -> None:
        """Write why the new version cannot be loaded, so that a person sees it; and its end."""
        why = self._versions.fault(rollout.ref)
        if why != self._faults.get(rollout.id, ""):
            self._faults[rollout.id] = why
            self.tally.add(rollout.id, LOADING, {"fault": why and f"it cannot be loaded: {why}"})


def _draw(rollout: Rollout, instrument: str, key: str) -> tuple[bool, str]:
    """Return whether a rollout wants a frame, and why; the same frame is always answered alike.

    A larger share of the same version contains a smaller one, also if it is another rollout.
    """
    if rollout.instruments and instrument not in rollout.instruments:
        return False, f"the {rollout.words} is not for this instrument"
    text = f"{rollout.ref}\0{instrument}\0{key}".encode()
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
    if drawn < rollout.share:
        return True, rollout.words
    return False, f"this frame is not in the share of the {rollout.words}"


def _digest(frame: Frame) -> str:
    """Return a name for a frame that has none, from a sample of its pixels."""
    pixels = frame.pixels_yx
    step = max(1, int((pixels.size / SAMPLE_PX) ** 0.5))
    sample = pixels[::step, ::step].tobytes()
    return hashlib.blake2b(sample, digest_size=16).hexdigest()
