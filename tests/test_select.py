"""Selection: which members suit a frame, how well they should do, and why, in words."""

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from manybeam.data.simulate import simulate
from manybeam.learn.ensemble import Ensemble, Prediction
from manybeam.learn.member import Member
from manybeam.learn.nets import build
from manybeam.spec import Condition, Library, Recipe
from manybeam.zoo.matrix import Matrix, Score
from manybeam.zoo.records import MemberRecord, Record
from manybeam.zoo.select import select

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
POLICIES = ("graphene-nominal", "graphene-dirty", "graphene-coarse")
NOMINAL, COARSE, DIRTY = (f"graphene-60kv-{name}" for name in ("nominal", "coarse", "dirty"))
RECIPE = Recipe(
    id="tiny", network={"filters": 4, "levels": 2}, members=[{"seed": 1, "policy": POLICIES[0]}]
)


def record() -> Record:
    members = tuple(
        MemberRecord(index, 1, policy, "tiny@1", {}, "", "", 0.1, 1.0, "", "", 0, "")
        for index, policy in enumerate(POLICIES)
    )
    return Record("graphene", 1, members, datetime.now(UTC), {})


def matrix(f1: dict[str, tuple[float, ...]]) -> Matrix:
    return Matrix(
        [
            Score(member, name, "d", {"f1": value, "f1_low": value - 0.02, "f1_high": value + 0.02})
            for name, values in f1.items()
            for member, value in enumerate(values)
        ],
        members=range(3),
    )


MEASURED = matrix({NOMINAL: (0.99, 0.98, 0.97), DIRTY: (0.6, 0.97, 0.7), COARSE: (0.7, 0.72, 0.98)})


def untrained() -> Ensemble:
    torch.manual_seed(0)
    weights = build(RECIPE.network).state_dict()
    return Ensemble(
        [Member(i, 1, name, RECIPE, weights, (), 0.0, "") for i, name in enumerate(POLICIES)]
    )


def frame_of(name: str, side: int = 128) -> tuple[np.ndarray, np.ndarray, float]:
    made = simulate(LIBRARY.conditions[name], 1, seed=5, shape=(side, side))
    return made.frames_nyx[0], made.truth[0], float(made.pixel_size_pm[0])


def answer(atoms: list[np.ndarray], frame: np.ndarray, pixel_size_pm: float) -> Prediction:
    """Return a prediction in which each member found these atoms."""
    found = [np.column_stack([one, np.ones(len(one))]).astype(np.float32) for one in atoms]
    empty = np.zeros(frame.shape, np.float32)
    everyone = tuple(range(len(atoms)))
    return Prediction(
        np.empty((0, 7), np.float32), empty, empty, found, None, pixel_size_pm, everyone
    )


def worse(truth: np.ndarray, missed: float = 0.0, false: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return the true atoms with a share of them missing and a share of false ones added."""
    rng = np.random.default_rng(seed)
    extra = np.column_stack(
        [
            rng.uniform(0, truth[:, :2].max(), (int(false * len(truth)), 2)),
            np.zeros(int(false * len(truth))),
        ]
    )
    return np.concatenate([truth[rng.random(len(truth)) >= missed], extra])


def ranked(name: str, found: list[dict[str, float]], scores: Matrix = MEASURED, **more):
    frame, truth, size = frame_of(name)
    atoms = [worse(truth, seed=index, **one) for index, one in enumerate(found)]
    prediction = answer(atoms, frame, size)
    return select(
        record(), scores, untrained(), frame, size, prediction=prediction, library=LIBRARY, **more
    )


GOOD = {"missed": 0.01}


def test_the_member_that_was_measured_best_there_and_fits_the_frame_comes_first():
    found = ranked(COARSE, [{"missed": 0.4}, {"missed": 0.3}, GOOD])
    assert found.candidates[0].member == 2
    assert 2 in found.chosen
    assert 0 not in found.chosen


def test_equal_atoms_are_ranked_by_the_matrix_and_equal_measures_by_the_atoms():
    assert ranked(DIRTY, [GOOD, GOOD, GOOD]).candidates[0].member == 1
    flat = matrix({NOMINAL: (0.9, 0.9, 0.9)})
    poor = {"missed": 0.3, "false": 0.3}
    assert ranked(NOMINAL, [poor, poor, GOOD], flat).candidates[0].member == 2


def test_the_frame_overrules_a_matrix_that_was_measured_elsewhere():
    elsewhere = matrix({NOMINAL: (0.99, 0.8, 0.8)})
    found = ranked(DIRTY, [{"missed": 0.5, "false": 0.5}, GOOD, {"missed": 0.5}], elsewhere)
    assert found.candidates[0].member == 1


def test_every_component_is_returned_by_name():
    parts = ranked(NOMINAL, [GOOD, GOOD, GOOD]).candidates[0].components
    assert set(parts) == {
        "matrix", "forward", "lattice", "agreement", "confidence", "fitness", "distance",
    }  # fmt: skip


def test_members_that_cannot_be_told_apart_are_all_chosen():
    equal = matrix({NOMINAL: (0.97, 0.97, 0.97)})
    assert set(ranked(NOMINAL, [{}, {}, {}], equal).chosen) == {0, 1, 2}


def test_the_interval_holds_the_prediction_and_widens_away_from_what_was_measured():
    near = ranked(NOMINAL, [GOOD] * 3).candidates[0]
    far = ranked(DIRTY, [GOOD] * 3, matrix({NOMINAL: (0.99, 0.98, 0.97)})).candidates[0]
    for one in (near, far):
        assert 0 <= one.low <= one.predicted_f1 <= one.high <= 1
    assert far.high - far.low > near.high - near.low


def test_a_condition_like_the_frames_is_named_the_nearest():
    assert ranked(COARSE, [GOOD] * 3).nearest[0][0] == COARSE


def test_a_frame_unlike_anything_measured_is_out_of_distribution_but_still_answered():
    only = matrix({NOMINAL: (0.99, 0.98, 0.97)})
    found = ranked(DIRTY, [GOOD] * 3, only)
    assert found.verdict == "out-of-distribution"
    assert found.chosen
    assert "nearest measured condition" in found.why
    assert ranked(NOMINAL, [GOOD] * 3, only).verdict == "ok"


def test_members_that_all_fail_are_out_of_distribution_and_the_reason_says_so():
    bad = {"missed": 0.8, "false": 1.0}
    found = ranked(NOMINAL, [bad] * 3, matrix({NOMINAL: (0.3, 0.3, 0.3)}))
    assert found.verdict == "out-of-distribution"
    assert "no member promises F1 0.60" in found.why


def test_the_reason_names_what_a_policy_never_saw():
    found = ranked(COARSE, [{"missed": 0.4}, {"missed": 0.4}, GOOD])
    reasons = {one.member: one.why for one in found.candidates}
    assert "pixel size 24 pm is outside what 'graphene-nominal' saw (14.5 to 17.5)" in reasons[0]
    assert "outside what 'graphene-" in found.why
    assert "'graphene-coarse' was trained there" in found.why
    assert "re-rendered atoms explain" in found.why


def test_what_the_instrument_told_enters_the_reason():
    low = Condition(id="told", dose_e_per_a2=2e4, origin="measured")
    reasons = [one.why for one in ranked(NOMINAL, [GOOD] * 3, condition=low).candidates]
    assert any("dose 2e+04 e/A^2 is outside what 'graphene-nominal' saw" in why for why in reasons)


def test_a_sample_without_a_lattice_is_not_judged_by_one():
    single_atoms = LIBRARY.conditions["ptnc-hpai"]
    found = ranked(NOMINAL, [GOOD] * 3, condition=single_atoms)
    assert all("lattice" not in one.components for one in found.candidates)


def test_an_ensemble_that_was_never_measured_is_ranked_by_the_frame_alone():
    found = ranked(NOMINAL, [{"missed": 0.5}, GOOD, {"missed": 0.5}], Matrix(members=range(3)))
    assert found.candidates[0].member == 1
    assert all("matrix" not in one.components for one in found.candidates)
    assert "no measured condition is known" in found.why


def test_conditions_that_the_library_lost_still_count_by_their_scores(tmp_path):
    frame, truth, size = frame_of(NOMINAL)
    prediction = answer([worse(truth, 0.01)] * 3, frame, size)
    scores = matrix({"lost": (0.5, 0.5, 0.99)})
    found = select(
        record(), scores, untrained(), frame, size, prediction=prediction, library=Library(tmp_path)
    )
    assert found.candidates[0].member == 2
    assert all(np.isfinite(list(one.components.values())).all() for one in found.candidates)


def test_without_a_prediction_the_ensemble_is_asked_and_empty_answers_do_no_harm():
    frame, _, size = frame_of(NOMINAL)
    found = select(record(), MEASURED, untrained(), frame, size, library=LIBRARY)
    assert len(found.candidates) == 3


def test_an_unknown_pixel_size_is_survived():
    frame, truth, size = frame_of(NOMINAL)
    prediction = answer([worse(truth, 0.01)] * 3, frame, size)
    found = select(
        record(), MEASURED, untrained(), frame, None, prediction=prediction, library=LIBRARY
    )
    assert found.candidates[0].predicted_f1 > 0.8


def test_the_order_of_the_members_does_not_change_the_ranking():
    found = [{"missed": 0.2}, {}, {"false": 0.2}]
    scores = matrix({NOMINAL: (0.9, 0.9, 0.9)})
    frame, truth, size = frame_of(NOMINAL)
    atoms = [worse(truth, seed=index, **one) for index, one in enumerate(found)]
    ahead = answer(atoms, frame, size)
    turned = answer(atoms[::-1], frame, size)
    turned = Prediction(**{**vars(turned), "members": (2, 1, 0)})
    orders = [
        [
            one.member
            for one in select(
                record(), scores, untrained(), frame, size, prediction=each, library=LIBRARY
            ).candidates
        ]
        for each in (ahead, turned)
    ]
    assert orders[0] == orders[1]


def test_a_512_px_frame_is_ranked_in_less_than_two_seconds_of_one_core():
    frame, truth, size = frame_of(NOMINAL, side=512)
    prediction = answer([worse(truth, 0.02, seed=index) for index in range(3)] * 4, frame, size)
    twelve = Prediction(**{**vars(prediction), "members": tuple(range(12))})
    select(record(), MEASURED, untrained(), frame, size, prediction=twelve, library=LIBRARY)
    start = time.process_time()
    select(record(), MEASURED, untrained(), frame, size, prediction=twelve, library=LIBRARY)
    assert time.process_time() - start < 2.0


@pytest.mark.real
def test_a_real_frame_of_single_atoms_is_out_of_distribution_for_graphene(shared_data):
    from manybeam.data.intake import read_frames

    read = read_frames(shared_data / "frames/ptnc/021.tif", pixel_size_pm=29.3)
    found = select(record(), MEASURED, untrained(), read.frame, 29.3, library=LIBRARY)
    assert found.verdict == "out-of-distribution"
