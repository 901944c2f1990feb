"""What a rehearsal taught, kept beside a version of the zoo: bytes checked, preferences heeded."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import simulate
from manybeam.db.preference import Preference
from manybeam.errors import Corrupt, UnknownRef
from manybeam.predictor.answer import Question
from manybeam.predictor.learned import performance_predictor
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.preferences import record_preference, retract
from manybeam.predictor.selection import Selection
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.spec import Library
from manybeam.zoo.calibration_sets import KIND, record_calibration_set
from manybeam.zoo.matrix import ENSEMBLE, SELECTED, Score
from manybeam.zoo.registry import Zoo
from manybeam.zoo.selected_scores import digest_of
from manybeam.zoo.ways import ways_of

LIBRARY = Library(Path(__file__).parents[1] / "zoo")
FACTS = {"frames": "3"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _a_store_of_its_own(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home"), "MANYBEAM_ZOO": str(LIBRARY.folder)})


@pytest.fixture
def zoo(tmp_path: Path, rehearsed_home: Path) -> Zoo:
    """A copy of the rehearsed platform's records, to add to; its weights stay where they were."""
    shutil.copy(rehearsed_home / "zoo.db", tmp_path / "zoo.db")
    return zoo_with(tmp_path, "cache")


def zoo_with(folder: Path, cache: str) -> Zoo:
    return Zoo(f"sqlite:///{folder}/zoo.db", (folder / "weights").as_uri(), folder / cache)


def test_what_was_attached_comes_back_and_the_last_counts(zoo: Zoo) -> None:
    zoo.attach("graphene@1", "notes", b"first", FACTS)
    zoo.attach("graphene@1", "notes", b"second", FACTS)
    zoo.attach("graphene@1", "others", b"third", FACTS)
    assert zoo.attached("graphene@1", "notes") == b"second"
    assert zoo.attached("graphene@1", "others") == b"third"
    assert zoo.attached("graphene@2", "notes") is None


def test_what_is_attached_to_a_version_that_is_not_there_is_refused(zoo: Zoo) -> None:
    with pytest.raises(UnknownRef):
        zoo.attach("graphene@7", "notes", b"", FACTS)


def test_attached_bytes_that_changed_are_corrupt(
    zoo: Zoo, tmp_path: Path, rehearsed_home: Path
) -> None:
    zoo.attach("graphene@1", "damaged", b"right", FACTS)
    [path] = [one for one in rehearsed_home.rglob("damaged") if one.is_file()]
    path.write_bytes(b"wrong")
    with pytest.raises(Corrupt, match="damaged of graphene@1"):
        zoo_with(tmp_path, "empty").attached("graphene@1", "damaged")


def test_an_attachment_is_no_member_and_has_no_scores(zoo: Zoo) -> None:
    zoo.record_scores("graphene@2", [Score(1, "nominal", "d", {"f1": 0.9})])
    zoo.attach("graphene@2", "notes", b"", FACTS)
    matrix = zoo.matrix("graphene@2")
    assert list(matrix.conditions) == ["nominal"]
    assert matrix.value(1, "nominal", "f1") == 0.9
    assert zoo.resolve("graphene@2").member_count == len(zoo.members("graphene@2")) == 3


def test_an_ensemble_that_was_never_rehearsed_teaches_nothing(zoo: Zoo) -> None:
    assert performance_predictor(zoo, "graphene@1") is None


def test_a_rehearsed_ensemble_teaches_its_table_however_it_is_called(
    zoo: Zoo, rehearsed: Any
) -> None:
    for ref in ("graphene", "graphene@serving", "graphene@2"):
        known = performance_predictor(zoo, ref)
        assert known is not None
        np.testing.assert_array_equal(known.table.f1_nm, rehearsed.table.f1_nm)


def test_a_member_asked_alone_is_taught_by_its_own_column(zoo: Zoo, rehearsed: Any) -> None:
    known = performance_predictor(zoo, "graphene@2/01")
    assert known is not None
    assert known.table.members == (1,)
    np.testing.assert_array_equal(known.table.f1_nm[:, 0], rehearsed.table.f1_nm[:, 1])


def test_a_table_of_other_members_is_passed_over_with_a_warning(
    zoo: Zoo, rehearsed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = dataclasses.replace(rehearsed.table.only(0), members=(5,))
    record_calibration_set(zoo, "graphene@1", renamed, ("graphene-nominal",))
    assert performance_predictor(zoo, "graphene@1") is None
    assert "calibrated with other members" in caplog.text


def test_bytes_that_are_no_table_are_told(zoo: Zoo) -> None:
    zoo.attach("graphene@1", KIND, b"no table", FACTS)
    with pytest.raises(Corrupt, match="manybeam calibrate"):
        performance_predictor(zoo, "graphene@1")


def ranked(zoo: Zoo, ref: str, frame: np.ndarray, size_pm: float) -> Selection:
    """Return the members of a version ranked for a frame."""
    predictor = Predictor(ZooVersions(zoo), LIBRARY)
    found = predictor.rank(Frame(frame, size_pm), Question(ref, is_selecting=True))[0].selection
    assert found is not None
    return found


def test_a_ranking_without_an_answer_is_the_same_and_needs_less_of_the_frame(zoo: Zoo) -> None:
    made = simulate(LIBRARY.conditions["graphene-60kv-dirty"], 1, seed=8, shape=(560, 560))
    frame = Frame(made.frames_nyx[0], float(made.pixel_size_pm[0]))
    predictor = Predictor(ZooVersions(zoo), LIBRARY)
    question = Question("graphene", is_selecting=True)
    (part,), (whole,) = (predictor.rank(frame, question, has_answer=one) for one in (False, True))
    assert part.selection is not None
    assert whole.selection is not None
    assert part.selection.chosen == whole.selection.chosen
    assert part.selection.reasons == whole.selection.reasons
    f1 = [
        [one.predicted_f1 for one in each.candidates] for each in (part.selection, whole.selection)
    ]
    np.testing.assert_allclose(*f1, atol=1e-5)


@pytest.fixture
def dirty(zoo: Zoo) -> Callable[[int, int], Preference]:
    """Prefer one member on a dirty frame."""
    made = simulate(LIBRARY.conditions["graphene-60kv-dirty"], 3, seed=8, shape=(128, 128))
    record = zoo.resolve("graphene")

    def prefer(member: int, number: int) -> Preference:
        frame, size = made.frames_nyx[number], float(made.pixel_size_pm[number])
        found = ranked(zoo, "graphene", frame, size)
        return record_preference(
            record, found, [member], frame_yx=frame, file="a.tif", pixel_size_pm=size, who="Ada"
        )

    return prefer


def test_what_was_learnt_is_kept_until_a_preference_is_recorded_or_retracted(
    zoo: Zoo, dirty: Callable[[int, int], Preference]
) -> None:
    before = performance_predictor(zoo, "graphene")
    assert performance_predictor(zoo, "graphene@2") is before
    made = dirty(2, 0)
    with_preference = performance_predictor(zoo, "graphene")
    assert with_preference is not before
    assert performance_predictor(zoo, "graphene") is with_preference
    retract(made.id, "Ada")
    assert performance_predictor(zoo, "graphene") is before


def test_a_measurement_does_not_learn_from_preferences(
    zoo: Zoo, dirty: Callable[[int, int], Preference]
) -> None:
    before = performance_predictor(zoo, "graphene")
    dirty(2, 0)
    assert performance_predictor(zoo, "graphene") is not before
    assert performance_predictor(zoo, "graphene", with_preferences=False) is before


def test_a_new_calibration_ends_the_scores_of_members_selected_with_the_old_one(
    zoo: Zoo, rehearsed: Any
) -> None:
    old = digest_of(zoo.entry("graphene@2"))
    assert len(old) == 64
    both = [
        Score(row, "nominal", "d-1", {"f1": 0.9}, calibration=old) for row in (ENSEMBLE, SELECTED)
    ]
    zoo.record_scores("graphene@2", both)
    assert zoo.matrix("graphene@2").mean(SELECTED) == 0.9
    record_calibration_set(zoo, "graphene@2", rehearsed.table.only(0), ("graphene-nominal",))
    after = zoo.matrix("graphene@2")
    assert (after.mean(ENSEMBLE), after.mean(SELECTED)) == (0.9, None)
    ways = ways_of(zoo.resolve("graphene@2"), after, zoo.entry("graphene@2"))
    assert ways.commands == ("manybeam evaluate graphene@2 --conditions nominal",)
    row = Score(SELECTED, "nominal", "d-1", {"f1": 0.8})
    zoo.record_scores("graphene@2", [row])  # of an older Manybeam: nobody knows its set
    assert zoo.matrix("graphene@2").mean(SELECTED) == 0.8


@pytest.mark.slow
def test_selection_goes_on_after_preferences_and_heeds_them(
    zoo: Zoo, dirty: Callable[[int, int], Preference]
) -> None:
    made = simulate(LIBRARY.conditions["graphene-60kv-dirty"], 3, seed=8, shape=(128, 128))
    frame, size = made.frames_nyx[2], float(made.pixel_size_pm[2])

    def predicted() -> dict[int, float]:
        found = ranked(zoo, "graphene", frame, size)
        assert found.is_calibrated
        return {one.member: one.predicted_f1 for one in found.candidates}

    before = predicted()
    best = max(before, key=lambda member: before[member])
    other = (best + 1) % 3
    for number in (0, 1, 2):
        dirty(other, number)
    after = predicted()
    assert after[other] - after[best] > before[other] - before[best]


def test_a_preference_of_another_version_teaches_nothing_here(
    zoo: Zoo, dirty: Callable[[int, int], Preference]
) -> None:
    before = performance_predictor(zoo, "graphene@2")
    known = performance_predictor(zoo, "graphene@2")
    frame = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    record, found = zoo.resolve("graphene@1"), ranked(zoo, "graphene@1", frame, 16.0)
    record_preference(
        record, found, [0], frame_yx=frame, file="a.tif", pixel_size_pm=16.0, who="Ada"
    )
    assert known is before is performance_predictor(zoo, "graphene@2")
