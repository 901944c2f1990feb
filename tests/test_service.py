"""The answers of the service without web or cluster: who answers, what is said and refused."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.errors import (
    Corrupt,
    DeadlineExceeded,
    InvalidFrame,
    InvalidInput,
    NoCapacity,
    UnknownRef,
    ZooUnreachable,
)
from manybeam.learn.scoring.calibration import calibrated
from manybeam.predictor.deadline import Deadline
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.predict import Service
from manybeam.serve.query import RequestQuery
from manybeam.serve.wire import Frames

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
ONE = Frames((FRAME,))
ALL = RequestQuery(pixel_size_pm=16.0, want=("atoms", "mean", "std", "mi", "members", "votes"))


def serve(zoo: Any, *refs: str, **more: Any) -> Service:
    return Service(ZooVersions(zoo, refs, **more))


@pytest.fixture(scope="module")
def service(tiny_zoo: Any) -> Service:
    return serve(tiny_zoo, "graphene")


def test_the_answer_is_the_ensembles_own(service: Service, tiny_zoo: Any) -> None:
    own = tiny_zoo.ensemble("graphene").predict(FRAME, 16.0)
    arrays = service.predict("graphene", ONE, ALL).arrays
    assert np.array_equal(arrays["atoms"], own.atoms, equal_nan=True)
    assert np.array_equal(arrays["votes"], own.atoms[:, 6])
    assert np.array_equal(arrays["mean"], own.mean_yx.astype(np.float16))
    assert np.array_equal(arrays["std"], own.std_yx.astype(np.float16))
    assert np.array_equal(arrays["mi"], own.mi_yx.astype(np.float16))
    for member, atoms in zip(own.members, own.member_atoms, strict=True):
        rows = arrays["members"][arrays["members"][:, 0] == member]
        assert np.array_equal(rows[:, 1:], atoms)


def test_only_what_is_wanted_is_sent(service: Service) -> None:
    assert set(service.predict("graphene", ONE, RequestQuery()).arrays) == {"atoms"}
    mean = service.predict("graphene", ONE, RequestQuery(want=("mean",))).arrays["mean"]
    assert (mean.dtype, mean.shape) == (np.float16, FRAME.shape)


def test_each_frame_of_a_stack_is_answered_as_if_it_came_alone(service: Service) -> None:
    stack = Frames((FRAME, FRAME.T.copy().reshape(FRAME.shape)), is_stack=True)
    arrays = service.predict("graphene", stack, ALL).arrays
    for number, frame in enumerate(stack.frames):
        alone = service.predict("graphene", Frames((frame,)), ALL).arrays
        rows = arrays["atoms"][arrays["atoms_frame"] == number]
        assert np.array_equal(rows, alone["atoms"], equal_nan=True)
        assert np.array_equal(arrays["mean"][number], alone["mean"])


@pytest.mark.parametrize(
    ("ref", "version", "members"),
    [
        pytest.param("graphene", 2, [0, 1, 2], id="serving"),
        pytest.param("graphene@serving", 2, [0, 1, 2], id="alias"),
        pytest.param("graphene@1", 1, [0, 1], id="version"),
        pytest.param("graphene@2/01", 2, [1], id="member"),
    ],
)
def test_a_reference_says_who_answers(
    service: Service, ref: str, version: int, members: list[int]
) -> None:
    meta = service.predict(ref, ONE, RequestQuery()).meta
    assert (meta["ensemble"], meta["version"], meta["members"]) == ("graphene", version, members)


def test_auto_answers_with_the_members_that_selection_chose(service: Service) -> None:
    ranked, is_drifted = service.select(ONE, ALL)
    answer = service.predict("auto", ONE, ALL)
    assert set(answer.meta["members"]) == set(ranked["chosen"])
    assert answer.meta["why"] == ranked["why"] == "; ".join(ranked["reasons"])
    assert answer.meta["drift"]["flag"] is is_drifted is answer.is_drifted


@pytest.mark.slow
def test_selection_ranks_every_member_and_says_why(service: Service) -> None:
    ranked, _ = service.select(ONE, ALL)
    assert {row["ref"] for row in ranked["candidates"]} == {
        "graphene@2/00", "graphene@2/01", "graphene@2/02",
    }  # fmt: skip
    predicted = [row["predicted_f1"] for row in ranked["candidates"]]
    assert predicted == sorted(predicted, reverse=True)
    for row in ranked["candidates"]:
        assert row["low"] <= row["predicted_f1"] <= row["high"]
        assert row["why"]
        assert row["components"]
    assert [row["member"] for row in ranked["candidates"] if row["chosen"]] == ranked["chosen"]


# -- an ensemble that was rehearsed ----------------------------------------------------------------
BOUND = RequestQuery(pixel_size_pm=16.0, false_atoms=0.3)


@pytest.fixture
def taught(
    rehearsed_zoo: Any, tmp_path: Path, use_settings: Callable[[dict[str, str]], None]
) -> Service:
    """A service of the rehearsed zoo, without preferences."""
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    return serve(rehearsed_zoo)


@pytest.fixture(scope="module")
def good(rehearsed: Any) -> Frames:
    return Frames((rehearsed.drawn(0).frames_nyx[0],))


def test_auto_answers_with_calibrated_probabilities_of_those_chosen(
    taught: Service, good: Frames, rehearsed: Any
) -> None:
    ranked, _ = taught.select(good, ALL)
    answer = taught.predict("auto", good, ALL)
    assert ranked["calibrated"] is True
    assert {"best", "all"} <= {one["name"] for one in ranked["answerers"]}
    assert set(answer.meta["members"]) == set(ranked["chosen"])
    shares = {int(m): share for m, share in ranked["answerers"][0]["members"].items()}
    whole = rehearsed.ensemble.predict(good.frames[0], 16.0)
    part = whole.subset(list(shares), list(shares.values()))
    told = answer.meta["calibration"]
    expected = calibrated(part.atoms[:, 3], told["temperature"], told["shift"])
    assert np.allclose(answer.arrays["atoms"][:, 3], expected, atol=2e-3)
    assert np.allclose(answer.arrays["atoms"][:, :2], part.atoms[:, :2], atol=1e-2)
    assert answer.meta["drift"] == {"score": pytest.approx(0.7, abs=0.7), "flag": False}


def test_an_ensemble_that_was_named_answers_under_a_bound_with_all_its_members(
    taught: Service, good: Frames
) -> None:
    answer = taught.predict("graphene", good, BOUND)
    told = answer.meta["calibration"]
    assert answer.meta["members"] == [0, 1, 2]
    assert told["false_atoms"] == 0.3
    assert told["atom_count"] >= 100
    assert told["position_pm"] > 0
    assert (told["threshold"] is not None) or any(
        "cannot be kept" in reason for reason in answer.meta["degraded"]
    )


def test_a_bound_that_cannot_be_kept_leaves_every_atom_and_says_so(
    taught: Service, good: Frames
) -> None:
    strict = taught.predict("graphene", good, replace(BOUND, false_atoms=1e-4))
    free = taught.predict("graphene", good, replace(BOUND, false_atoms=0.0))
    assert strict.meta["calibration"]["threshold"] is None
    assert "0.0001 false atoms cannot be kept" in strict.meta["degraded"][-1]
    assert len(strict.arrays["atoms"]) == len(free.arrays["atoms"])
    assert free.meta["calibration"]["false_atoms"] == 0


@pytest.mark.parametrize("ref", ["graphene", "auto"])
@pytest.mark.parametrize("false_atoms", [0.0, 0.3])
def test_each_frame_of_a_stack_is_calibrated_and_answered_by_itself(
    taught: Service, good: Frames, rehearsed: Any, ref: str, false_atoms: float
) -> None:
    hard = rehearsed.drawn(5).frames_nyx[0]
    both, query = (
        Frames((good.frames[0], hard), is_stack=True),
        replace(BOUND, false_atoms=false_atoms),
    )
    answer = taught.predict(ref, both, query)
    told = answer.meta["per_frame"]
    assert told[0]["calibration"] != told[1]["calibration"]
    for number, frame in enumerate(both.frames):
        alone = taught.predict(ref, Frames((frame,)), query)
        rows = answer.arrays["atoms"][answer.arrays["atoms_frame"] == number]
        assert np.array_equal(rows, alone.arrays["atoms"], equal_nan=True)
        assert told[number] == {name: alone.meta[name] for name in told[number]}


def test_a_bound_that_no_frame_of_a_stack_can_keep_is_reported_once(
    taught: Service, good: Frames, rehearsed: Any
) -> None:
    both = Frames((good.frames[0], rehearsed.drawn(5).frames_nyx[0]), is_stack=True)
    meta = taught.predict("graphene", both, replace(BOUND, false_atoms=1e-4)).meta
    assert [one["calibration"]["threshold"] for one in meta["per_frame"]] == [None, None]
    assert sum("0.0001 false atoms cannot be kept" in one for one in meta["degraded"]) == 1


def test_a_named_ensemble_and_auto_differ_only_in_who_answers(
    taught: Service, good: Frames
) -> None:
    named, auto = (taught.predict(ref, good, ALL).meta for ref in ("graphene", "auto"))
    assert named["members"] == [0, 1, 2]
    assert named["drift"] == auto["drift"]
    for meta in (named, auto):
        assert meta["calibration"]["atom_count"] >= 100
        assert 0 <= meta["predicted_f1"]["low"] <= meta["predicted_f1"]["f1"] <= 1
    assert named["reasons"][0] == "all members answer, as asked"


def test_members_that_are_named_answer_alone(taught: Service, good: Frames) -> None:
    meta = taught.predict("graphene", good, replace(ALL, members=(2, 0))).meta
    assert sorted(meta["members"]) == [0, 2]
    assert meta["predicted_f1"] is not None
    with pytest.raises(UnknownRef, match="no member 07"):
        taught.predict("graphene", good, replace(ALL, members=(7,)))


def test_one_member_of_a_rehearsed_version_is_bounded_by_its_own_record(
    taught: Service, good: Frames
) -> None:
    answer = taught.predict("graphene@2/01", good, BOUND)
    assert answer.meta["members"] == [1]
    assert answer.meta["calibration"]["atom_count"] >= 100


@pytest.mark.parametrize("ref", ["graphene@1", "graphene@1/00"])
def test_a_bound_is_refused_where_nobody_rehearsed(taught: Service, good: Frames, ref: str) -> None:
    with pytest.raises(InvalidInput, match="cannot keep a bound on false atoms"):
        taught.predict(ref, good, BOUND)


def test_without_a_rehearsal_no_calibration_is_claimed(service: Service) -> None:
    assert service.predict("auto", ONE, ALL).meta["calibration"] is None
    assert service.predict("graphene", ONE, ALL).meta["calibration"] is None
    ranked, _ = service.select(ONE, ALL)
    assert (ranked["calibrated"], ranked["answerers"]) == (False, [])


def test_an_answer_says_where_it_is_worth_less(service: Service) -> None:
    degraded = service.predict("graphene", ONE, RequestQuery()).meta["degraded"]
    assert any("pixel_size_pm" in reason for reason in degraded)
    assert any("failed in training" in reason for reason in degraded)
    assert not service.predict("graphene@1", ONE, ALL).meta["degraded"]


def test_a_frame_too_small_to_analyse_is_answered_without_drift_or_calibration(
    service: Service,
) -> None:
    answer = service.predict("graphene", Frames((FRAME[:40, :40],)), ALL)
    assert answer.meta["drift"] == {"score": None, "flag": None}
    assert answer.is_drifted is None
    assert answer.meta["predicted_f1"] is None
    limit = answer.meta["degraded"][0]
    assert "no drift, calibration or predicted F1: a frame of 40 x 40 px" in limit
    assert len(answer.arrays["atoms"])
    with pytest.raises(InvalidFrame, match="too small"):
        service.predict("auto", Frames((FRAME[:40, :40],)), ALL)


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        pytest.param("graphen", "nearest: graphene", id="typo"),
        pytest.param("graphene@9", "graphene@2|nearest|zoo", id="version"),
        pytest.param("graphene@2/17", "00, 01, 02", id="member"),
        pytest.param("../../etc/passwd", "reference", id="path"),
    ],
)
def test_an_unknown_reference_is_told_with_what_there_is(
    service: Service, ref: str, told: str
) -> None:
    with pytest.raises(UnknownRef, match=told):
        service.predict(ref, ONE, RequestQuery())


def test_a_service_does_not_start_without_the_ensembles_it_was_given(tiny_zoo: Any) -> None:
    with pytest.raises(UnknownRef):
        serve(tiny_zoo, "graphene", "grafene")


def test_auto_without_an_ensemble_served_is_no_capacity(tiny_zoo: Any) -> None:
    class Empty:
        resolve, matrix, ensemble = tiny_zoo.resolve, tiny_zoo.matrix, tiny_zoo.ensemble
        attached, address = tiny_zoo.attached, tiny_zoo.address

        def listing(self) -> list[Any]:
            return []

    with pytest.raises(NoCapacity, match="serves no ensemble"):
        serve(Empty()).predict("auto", ONE, ALL)


def test_without_references_auto_selects_among_all_that_serve(tiny_zoo: Any) -> None:
    assert ZooVersions(tiny_zoo).serving() == ("graphene@2",)


def test_a_damaged_ensemble_is_left_out_by_auto_and_named(
    embedded: Any, tiny_members: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    one, other = tiny_members(2)  # equal weights would be the same file to the cache
    bad = embedded.register("bad", [one], job={}, alias="serving")
    embedded.register("good", [other], job={}, alias="serving")
    folder = next(tmp_path.rglob(f"*{bad.members[0].model_id}"))
    weights = next(folder.rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    shutil.rmtree(tmp_path / "cache")
    told = serve(embedded).predict("auto", ONE, RequestQuery(pixel_size_pm=16.0)).meta
    assert told["ensemble"] == "good"
    assert any("bad@1 is left out: weights of member 00" in one for one in told["degraded"])
    with pytest.raises(Corrupt, match="weights of member 00"):
        serve(embedded).predict("bad", ONE, RequestQuery())


def test_nothing_is_computed_after_the_deadline(service: Service) -> None:
    # Looks at the clock: how much is left, then `load` begins and ends, twice, then it is late.
    clock = iter([0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 6.0]).__next__
    with pytest.raises(DeadlineExceeded, match="before predict"):
        service.predict("graphene", ONE, ALL, Deadline(5.0, clock))


def test_ensembles_used_last_are_kept_and_no_more(tiny_zoo: Any) -> None:
    service = serve(tiny_zoo, capacity=2)
    for ref in ("graphene@1", "graphene@2", "graphene@2/00", "graphene@2"):
        service.predict(ref, ONE, RequestQuery())
    assert [row["ref"] for row in service.listing()] == ["graphene@2/00", "graphene@2"]


def test_an_alias_that_moved_is_followed_and_one_unreachable_goes_on(tiny_zoo: Any) -> None:
    class Zoo:
        serving, is_silent = 1, False
        matrix, ensemble, ls = tiny_zoo.matrix, tiny_zoo.ensemble, tiny_zoo.ls
        attached, read_last = tiny_zoo.attached, tiny_zoo.read_last

        def resolve(self, ref: str) -> Any:
            if self.is_silent:
                raise ZooUnreachable("the zoo is down")
            return tiny_zoo.resolve(f"graphene@{self.serving}")

    zoo, now = Zoo(), [0.0]
    service = serve(zoo, "graphene", clock=lambda: now[0])
    zoo.serving = 2
    assert service.predict("graphene", ONE, ALL).meta["version"] == 1
    now[0] = 11.0
    assert service.predict("graphene", ONE, ALL).meta["version"] == 2
    zoo.is_silent, now[0] = True, 60.0
    meta = service.predict("graphene", ONE, ALL).meta
    assert meta["version"] == 2
    assert "49 s ago" in meta["degraded"][0]
    with pytest.raises(ZooUnreachable):
        service.predict("graphene@5", ONE, ALL)


def test_threads_that_ask_at_once_load_an_ensemble_once(tiny_zoo: Any) -> None:
    class Zoo:
        loads = 0
        matrix, resolve, ls = tiny_zoo.matrix, tiny_zoo.resolve, tiny_zoo.ls
        attached = tiny_zoo.attached

        def ensemble(self, ref: str) -> Any:
            self.loads += 1
            return tiny_zoo.ensemble(ref)

    zoo = Zoo()
    versions = ZooVersions(zoo)  # type: ignore[arg-type]
    threads = [threading.Thread(target=versions.load, args=("graphene",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert zoo.loads == 1


def test_a_quick_answer_has_the_same_atoms_without_frame_analysis(
    taught: Service, good: Frames
) -> None:
    full = taught.predict("graphene", good, ALL)
    quick = taught.predict("graphene", good, replace(ALL, quick=True))
    assert "select" in full.seconds
    assert "select" not in quick.seconds
    np.testing.assert_allclose(quick.arrays["atoms"][:, :3], full.arrays["atoms"][:, :3], atol=1e-3)
    assert quick.meta["drift"] == full.meta["drift"]
    assert quick.meta["predicted_f1"] is not None
    assert quick.meta["calibration"] is not None
