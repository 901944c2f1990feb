"""The calibration set: rows that depend on their number only, and answers computed from it.

`rehearsed` is a table of 132 frames and three small members that were really trained.
"""

import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st

from manybeam.errors import Corrupt, InvalidInput, NotFound
from manybeam.learn.analysis.calibration_set import CalibrationSet, measure_calibration_set
from manybeam.learn.analysis.fitness import SCORES
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.scoring.scores import f1_of, match_frame
from manybeam.predictor.performance import PerformancePredictor
from manybeam.spec import Library

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
ALL = {0: 1.0, 1: 1.0, 2: 1.0}
pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(one: CalibrationSet, two: CalibrationSet) -> None:
    for field in dataclasses.fields(CalibrationSet):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


@pytest.fixture(scope="module")
def six(rehearsed: Any) -> CalibrationSet:
    return measure_calibration_set(rehearsed.ensemble, rehearsed.policies, 0, 6, seed=5)


def test_a_table_is_the_same_however_its_rows_are_shared_out(
    rehearsed: Any, six: CalibrationSet
) -> None:
    parts = [
        measure_calibration_set(rehearsed.ensemble, rehearsed.policies, start, stop, seed=5)
        for start, stop in ((0, 1), (1, 4), (4, 6))
    ]
    assert_same(CalibrationSet.joined(parts), six)


def test_another_seed_draws_other_frames(rehearsed: Any, six: CalibrationSet) -> None:
    other = measure_calibration_set(rehearsed.ensemble, rehearsed.policies, 0, 1, seed=6)
    assert not np.array_equal(other.summary_ns, six.summary_ns[:1])


def test_a_table_comes_back_from_its_bytes(six: CalibrationSet) -> None:
    assert_same(CalibrationSet.from_bytes(six.to_bytes()), six)


def test_a_table_knows_its_structure_and_one_kept_before_that_is_still_read(
    six: CalibrationSet,
) -> None:
    assert six.structure == "graphene"
    with np.load(io.BytesIO(six.to_bytes())) as file:
        new = {name: file[name] for name in file.files if name != "structure"}
    old, lost = ({**new, "version": np.array([version, 3])} for version in (1, 2))
    kept = io.BytesIO()
    np.savez(kept, **old)
    assert_same(CalibrationSet.from_bytes(kept.getvalue()), dataclasses.replace(six, structure=""))
    kept = io.BytesIO()
    np.savez(kept, **lost)
    with pytest.raises(Corrupt, match="structure"):
        CalibrationSet.from_bytes(kept.getvalue())


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="nothing"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(lambda data: data[:100] + bytes(200) + data[300:], id="zeros within"),
        pytest.param(lambda _: b"PK\x03\x04" + bytes(50), id="only begins like one"),
        pytest.param(lambda _: npy(), id="one array"),
        pytest.param(lambda _: b"not a table", id="text"),
    ],
)
def test_bytes_that_are_no_table_are_corrupt(six: CalibrationSet, damage: Any) -> None:
    with pytest.raises(Corrupt, match="manybeam calibrate"):
        CalibrationSet.from_bytes(damage(six.to_bytes()))


def test_a_table_of_another_version_is_corrupt(six: CalibrationSet) -> None:
    with np.load(io.BytesIO(six.to_bytes())) as file:
        arrays = {name: file[name] for name in file.files}
    for changed in ({"version": np.array([99, 1])}, {"scores": np.array(["forward"])}):
        file = io.BytesIO()
        np.savez(file, **{**arrays, **changed})
        with pytest.raises(Corrupt, match="another version"):
            CalibrationSet.from_bytes(file.getvalue())


@bounded(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_damaged_byte_is_told_or_does_no_harm(
    six: CalibrationSet, share: float, mask: int
) -> None:
    data = bytearray(six.to_bytes())
    data[int(share * len(data))] ^= mask
    try:
        read = CalibrationSet.from_bytes(bytes(data))
    except Corrupt:
        return
    assert_same(read, six)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_member_scores_by_its_beliefs_nearly_as_by_its_own_atoms(
    rehearsed: Any, member: int
) -> None:
    """Only nearly: a false atom beside a surer one of another member is one atom there."""
    away_n = np.abs(rehearsed.table.f1({member: 1.0}) - rehearsed.table.f1_nm[:, member])
    assert away_n.mean() < 0.03
    assert away_n.max() < 0.2


def test_the_f1_of_all_is_the_ensembles_own_on_the_same_frames(rehearsed: Any) -> None:
    told_n = rehearsed.table.f1(ALL)[:10]
    away = []
    for number, told in enumerate(told_n):
        made = rehearsed.drawn(number, seed=3)
        size = float(made.pixel_size_pm[0])
        found = rehearsed.ensemble.predict(made.frames_nyx[0], size)
        counts = match_frame(found.atoms, made.truth[0], size, found.mean_yx.shape).counts
        away.append(told - f1_of(np.array([counts]))[0])
    assert np.abs(away).max() < 0.05
    assert abs(np.mean(away)) < 0.01


def test_the_size_of_the_weights_does_not_count_only_their_ratio(rehearsed: Any) -> None:
    weights = {0: 0.2, 2: 0.6}
    doubled = {member: 2 * weight for member, weight in weights.items()}
    np.testing.assert_allclose(
        rehearsed.table.belief(weights), rehearsed.table.belief(doubled), atol=1e-6
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:], ids=str)
def test_members_in_another_order_are_columns_in_another_order(
    rehearsed: Any, six: CalibrationSet, order: tuple[int, ...]
) -> None:
    turned = measure_calibration_set(
        rehearsed.ensemble.subset(order), rehearsed.policies, 0, 2, seed=5
    )
    assert turned.members == order
    np.testing.assert_array_equal(turned.count_nm3, six.count_nm3[:2, list(order)])
    np.testing.assert_allclose(turned.score_nmf, six.score_nmf[:2, list(order)], atol=1e-9)
    np.testing.assert_allclose(turned.f1(ALL), six.f1(ALL)[:2], atol=0.01)


def test_what_one_member_did_is_left_of_a_table_of_it_alone(rehearsed: Any) -> None:
    alone = rehearsed.table.only(2)
    assert alone.members == (2,)
    np.testing.assert_array_equal(alone.f1_nm[:, 0], rehearsed.table.f1_nm[:, 2])
    np.testing.assert_array_equal(alone.f1({2: 1.0}), rehearsed.table.f1({2: 1.0}))
    assert np.isnan(alone.score_nmf[..., SCORES.index("agreement")]).all()
    with pytest.raises(NotFound, match="member 07 is not"):
        rehearsed.table.only(7)


def silent(rehearsed: Any) -> Ensemble:
    """Return the members, made so timid that they find nothing anywhere."""
    timid = []
    for member in rehearsed.members:
        weights = {name: value.clone() for name, value in member.weights.items()}
        last = [name for name in weights if name.endswith("bias")][-1]
        weights[last] = weights[last] - 50
        timid.append(dataclasses.replace(member, weights=weights))
    return Ensemble(timid)


def test_members_that_find_nothing_have_rows_too_and_promise_nothing(rehearsed: Any) -> None:
    table = measure_calibration_set(silent(rehearsed), rehearsed.policies, 0, 12, seed=5)
    assert table.f1_nm.max() == table.f1(ALL).max() == 0
    assert (table.truth_n > 0).all()
    assert len(table.belief_km) == 0
    assert_same(CalibrationSet.from_bytes(table.to_bytes()), table)


def test_a_large_frame_is_judged_in_the_window_that_was_looked_at(rehearsed: Any) -> None:
    policy = LIBRARY.policies["graphene-nominal"]
    scan = policy.scan.model_copy(update={"shape": (420, 440), "pixel_size_pm": 20.0})
    wide = policy.model_copy(update={"scan": scan})
    table = measure_calibration_set(rehearsed.ensemble, [wide], 0, 1, seed=1)
    assert table.f1_nm.min() > 0.9
    assert np.nanmedian(table.error_k) < 15  # a lattice laid over itself fits, but not so well


def test_frames_without_a_lattice_have_no_score_for_one_and_are_learnt_from(
    rehearsed: Any,
) -> None:
    table = measure_calibration_set(
        rehearsed.ensemble, [LIBRARY.policies["pt-nominal"]], 0, 4, seed=1
    )
    assert np.isnan(table.score_nmf[..., SCORES.index("lattice")]).all()
    assert np.isfinite(table.score_nmf[..., SCORES.index("forward")]).all()
    assert set(PerformancePredictor(table).weights) == {
        "simulated",
        "resembled",
        "forward",
        "lattice",
    }


@pytest.mark.parametrize(
    ("names", "stop"),
    [
        pytest.param(["graphene-nominal", "mos2-nominal"], 1, id="two structures"),
        pytest.param([], 1, id="no policy"),
        pytest.param(["graphene-nominal"], 0, id="no rows"),
    ],
)
def test_a_rehearsal_that_makes_no_sense_is_refused(
    rehearsed: Any, names: list[str], stop: int
) -> None:
    with pytest.raises(InvalidInput, match="frames of one structure"):
        measure_calibration_set(
            rehearsed.ensemble, [LIBRARY.policies[name] for name in names], 0, stop, seed=1
        )


def test_tables_of_different_members_are_not_joined(six: CalibrationSet) -> None:
    with pytest.raises(InvalidInput, match="different members"):
        CalibrationSet.joined([six, six.only(1)])
