"""Answers under a deadline and quick ones: which networks run, what is said, what is refused."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.errors import (
    Corrupt,
    DeadlineExceeded,
    InvalidInput,
    StoreUnreachable,
    UnknownRef,
)
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.predictor.answer import Question
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.pace import NETWORKS
from manybeam.predictor.predictor import Predictor, _work
from manybeam.predictor.versions.loaded import LoadedVersion
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.zoo.matrix import Matrix, Score

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
QUICK = Question("graphene", is_quick=True)


@pytest.fixture
def predictor(
    rehearsed_zoo: Any, tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> Predictor:
    """It answers with the rehearsed `graphene@2`; nothing is known of its pace."""
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    return Predictor(ZooVersions(rehearsed_zoo))


@pytest.fixture(scope="module")
def frame(rehearsed: Any) -> Frame:
    return Frame(rehearsed.drawn(0).frames_nyx[0], pixel_size_pm=16.0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The members of each prediction; the real networks run."""
    seen: list[tuple[int, ...]] = []
    real = Ensemble.predict

    def predict(self: Ensemble, *given: Any, members: Any = None, **more: Any) -> Any:
        seen.append(tuple(self.indices if members is None else members))
        return real(self, *given, members=members, **more)

    monkeypatch.setattr(Ensemble, "predict", predict)
    return seen


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


def teach(
    predictor: Predictor, frame: Frame, network_s: float, ref: str = "graphene", **more: Any
) -> None:
    """Let the predictor know how long a network takes; all else takes no time."""
    now = iter((0.0, network_s, network_s))  # begun, ended, learned
    real, predictor.pace._clock = predictor.pace._clock, lambda: next(now)
    seconds: dict[str, float] = {}
    with predictor.pace.timing(_work(predictor.versions.get(ref), frame, **more), 1, seconds):
        seconds[NETWORKS] = network_s
    predictor.pace._clock = real
    (times,) = [one for one in predictor.pace._times.values() if one.learned_s == network_s]
    times.learned_s = time.monotonic()


# -- quick answers --------------------------------------------------------------------------------
def test_only_the_networks_that_answer_run_and_once(
    predictor: Predictor, frame: Frame, ran: list[tuple[int, ...]]
) -> None:
    answer = predictor.answer(frame, Question("graphene", (2, 0), is_quick=True))
    assert ran == [(2, 0)]
    assert (answer.members, answer.is_quick, answer.dropped) == ((2, 0), True, ())


def test_a_quick_answer_has_the_atoms_of_its_members(
    predictor: Predictor, frame: Frame, rehearsed: Any
) -> None:
    answer = predictor.answer(frame, QUICK)
    own = rehearsed.ensemble.predict(frame.pixels_yx, 16.0)
    np.testing.assert_allclose(answer.atoms[:, :3], own.atoms[:, :3], atol=1e-3)
    assert answer.calibration is not None
    assert not np.allclose(answer.atoms[:, 3], own.atoms[:, 3])  # calibrated


def test_a_quick_answer_says_what_its_look_says(predictor: Predictor, frame: Frame) -> None:
    answer = predictor.answer(frame, QUICK)
    full = predictor.answer(frame, Question("graphene"))
    assert answer.predicted_f1 is not None
    assert answer.predicted_f1.low <= answer.predicted_f1.f1 <= answer.predicted_f1.high
    assert (answer.verdict, answer.drift_score) == (full.verdict, full.drift_score)
    assert "by its summary" in answer.why
    assert set(answer.seconds) == {"load", "summarise", NETWORKS, "calibrate"}


def test_shares_weigh_the_members(predictor: Predictor, frame: Frame) -> None:
    whole = predictor.answer(frame, Question("graphene", (0, 1), shares=(0.9, 0.1), is_quick=True))
    own = predictor.answer(frame, Question("graphene", (0, 1), is_quick=True))
    assert whole.selection is not None
    assert dict(whole.selection.weights) == pytest.approx({0: 0.9, 1: 0.1})
    assert not np.array_equal(whole.mean_yx, own.mean_yx)


def test_a_frame_that_looks_strange_is_out_of_distribution(predictor: Predictor) -> None:
    noise = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32)
    answer = predictor.answer(Frame(noise, pixel_size_pm=16.0), QUICK)
    assert (answer.verdict, answer.is_drifted) == ("out-of-distribution", True)
    assert answer.verdict_reasons


def test_auto_takes_the_members_that_suit_the_look(
    predictor: Predictor, frame: Frame, ran: list[tuple[int, ...]]
) -> None:
    answer = predictor.answer(frame, Question(is_quick=True))
    assert answer.ref == "graphene@2"
    assert ran == [answer.members]
    selecting = predictor.answer(frame, Question("graphene", is_selecting=True, is_quick=True))
    assert selecting.members == answer.members


def test_without_a_calibration_set_nothing_is_said_of_the_frame(
    predictor: Predictor, frame: Frame
) -> None:
    answer = predictor.answer(frame, Question("graphene@1", is_quick=True))
    assert (answer.verdict, answer.predicted_f1, answer.is_drifted) == ("", None, None)
    assert any("was not analysed" in note for note in answer.notes)
    with pytest.raises(InvalidInput, match="false atoms"):
        predictor.answer(frame, Question("graphene@1", false_atoms=0.1, is_quick=True))


def test_a_small_frame_is_answered_without_a_look(predictor: Predictor, frame: Frame) -> None:
    small = Frame(frame.pixels_yx[:40, :40], pixel_size_pm=16.0)
    assert predictor.answer(small, QUICK).verdict == ""


def test_a_member_that_is_not_there_is_refused(predictor: Predictor, frame: Frame) -> None:
    with pytest.raises(UnknownRef, match="no member 07"):
        predictor.answer(frame, Question("graphene", (7,), is_quick=True))


def test_a_bound_on_false_atoms_is_kept_by_summary(predictor: Predictor, frame: Frame) -> None:
    strict = predictor.answer(frame, Question("graphene", false_atoms=0.3, is_quick=True))
    assert strict.calibration is not None
    assert strict.calibration.false_atoms == 0.3


# -- deadlines ------------------------------------------------------------------------------------
def test_without_a_deadline_the_frame_is_analysed(predictor: Predictor, frame: Frame) -> None:
    teach(predictor, frame, 100.0, is_full=True)
    assert not predictor.answer(frame, Question("graphene")).is_quick


def test_with_time_enough_the_frame_is_analysed(predictor: Predictor, frame: Frame) -> None:
    teach(predictor, frame, 0.01, is_full=True)
    answer = predictor.answer(frame, Question("graphene"), within(60))
    assert not answer.is_quick
    assert answer.dropped == ()


def test_analysis_goes_before_any_member(predictor: Predictor, frame: Frame) -> None:
    teach(predictor, frame, 100.0, is_full=True)
    teach(predictor, frame, 0.01)
    answer = predictor.answer(frame, Question("graphene"), within(30))
    assert (answer.is_quick, answer.dropped, len(answer.members)) == (True, (), 3)


def test_members_that_cost_least_are_dropped_and_the_answer_says_so(
    predictor: Predictor, frame: Frame, ran: list[tuple[int, ...]]
) -> None:
    teach(predictor, frame, 100.0, is_full=True)
    teach(predictor, frame, 10.0)
    answer = predictor.answer(frame, Question("graphene"), within(25))
    assert (len(answer.members), len(answer.dropped)) == (2, 1)
    assert ran == [answer.members]
    known, selection = predictor.versions.get("graphene").performance, answer.selection
    assert known is not None
    assert selection is not None
    left = known.by_summary.fewer(np.array(selection.summary), dict.fromkeys((0, 1, 2), 1 / 3), 2)
    assert set(left) == set(answer.members)
    (note,) = [one for one in answer.notes if one.startswith("without members")]
    assert f"{answer.dropped[0]:02d}" in note
    assert "would take about 30000 ms" in note
    assert "predicted F1" in note
    # The calibration is that of the two.
    alone = predictor.answer(frame, Question("graphene", answer.members, is_quick=True))
    assert answer.calibration == alone.calibration
    np.testing.assert_array_equal(answer.atoms, alone.atoms)


def test_the_aim_of_a_session_drops_members_and_refuses_nothing(
    predictor: Predictor, frame: Frame
) -> None:
    teach(predictor, frame, 10.0)
    deadline = Deadline(time.monotonic() + 600, aim_s=time.monotonic() + 0.001)
    assert len(predictor.answer(frame, QUICK, deadline).members) == 1


def test_a_deadline_that_nobody_can_keep_is_told_at_once(
    predictor: Predictor, frame: Frame, ran: list[tuple[int, ...]]
) -> None:
    teach(predictor, frame, 10.0)
    with pytest.raises(DeadlineExceeded, match="takes about 10000 ms"):
        predictor.answer(frame, QUICK, within(5))
    assert ran == []


def test_the_frames_of_a_stack_share_the_time(
    predictor: Predictor, frame: Frame, ran: list[tuple[int, ...]]
) -> None:
    teach(predictor, frame, 10.0)
    with pytest.raises(DeadlineExceeded, match="for each of 3 frames"):
        next(predictor.answers([frame] * 3, QUICK, within(25)))
    assert ran == []
    first = next(predictor.answers([frame] * 3, QUICK, within(45)))
    assert (len(first.members), len(first.dropped)) == (1, 2)
    aimed = Deadline(aim_s=time.monotonic() + 75)
    assert len(next(predictor.answers([frame] * 3, QUICK, aimed)).members) == 2


def test_without_a_look_the_members_with_the_best_scores_stay(
    predictor: Predictor, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [Score(member, "nominal", "d", {"f1": f1}) for member, f1 in ((0, 0.5), (1, 0.9))]
    version = replace(predictor.versions.get("graphene@1"), matrix=Matrix(scores))
    monkeypatch.setattr(predictor.versions, "get", lambda _: version)
    teach(predictor, frame, 10.0, "graphene@1")
    answer = predictor.answer(frame, Question("graphene@1", is_quick=True), within(15))
    assert (answer.members, answer.dropped) == ((1,), (0,))


def test_the_pace_is_learned_from_answers(predictor: Predictor, frame: Frame) -> None:
    predictor.answer(frame, QUICK)
    work = _work(predictor.versions.get("graphene"), frame)
    assert 0 < (predictor.pace.seconds(work, 1) or 0) < (predictor.pace.seconds(work, 3) or 0) < 60


class BesideBad:
    """The versions of a zoo, and one that serves and cannot be loaded."""

    def __init__(self, versions: ZooVersions, fault: Exception) -> None:
        self.versions, self.fault = versions, fault

    def serving(self) -> list[str]:
        return ["bad@1", *self.versions.serving()]

    def get(self, ref: str) -> LoadedVersion:
        if ref == "bad@1":
            raise self.fault
        return self.versions.get(ref)


@pytest.mark.parametrize(
    "fault", [Corrupt("damaged"), StoreUnreachable("away"), UnknownRef("gone")]
)
@pytest.mark.parametrize("due_s", [None, 60.0], ids=["quick", "deadline"])
def test_a_version_that_cannot_be_loaded_is_left_out_of_auto_and_named(
    predictor: Predictor, frame: Frame, fault: Any, due_s: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    beside = Predictor(BesideBad(predictor.versions, fault))  # type: ignore[arg-type]
    for _ in range(2):
        deadline = Deadline() if due_s is None else within(due_s)
        found = beside.answer(frame, Question("auto", is_quick=due_s is None), deadline)
        assert found.ref == "graphene@2"
        assert f"bad@1 is left out: {fault.what}" in found.notes
    assert caplog.text.count("bad@1 is left out") == 1
    with pytest.raises(type(fault)):
        beside.answer(frame, Question("bad@1", is_quick=True))


def test_if_no_version_can_be_loaded_auto_says_why(predictor: Predictor, frame: Frame) -> None:
    alone = BesideBad(predictor.versions, Corrupt("damaged"))  # type: ignore[arg-type]
    alone.serving = lambda: ["bad@1"]  # type: ignore[method-assign]
    with pytest.raises(Corrupt):
        Predictor(alone).answer(frame, Question("auto", is_quick=True))
