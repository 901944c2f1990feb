"""jobs.evaluate: members x conditions as Ray tasks, on frames that no training has seen."""

from pathlib import Path

import numpy as np
import pytest

from manybeam.data.frames import FrameSet
from manybeam.data.simulation import SIMULATOR
from manybeam.errors import InvalidInput, UnknownCondition, UnknownFrameSet
from manybeam.jobs.evaluate import evaluate
from manybeam.jobs.test_sets import BLOCK, FrameBlock, labelled_frames, plan_blocks
from manybeam.jobs.train import train
from manybeam.learn.nets.member import Member
from manybeam.spec import Condition, Job, Library
from manybeam.spec.job import Measure
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score

CONDITION = Condition.model_validate(
    {
        "id": "test-graphene",
        "sample": {"structure": "graphene"},
        "scan": {"pixel_size_pm": 20, "shape": [64, 64]},
        "dose_e_per_a2": 1e6,
    }
)


@pytest.fixture
def members(job: Job, library: Library, home: Path, tmp_path: Path) -> tuple[Member, ...]:
    """Three members that know discs in noise."""
    return train(job, library, str(tmp_path / "store"), executor="local").members


@pytest.fixture
def on_frames(frames: FrameSet) -> Measure:
    return Measure(frames=(frames.url,), match_radius_pm=60)


@pytest.fixture
def with_condition(library: Library) -> Library:
    """The library, with one condition to simulate."""
    path = library.folder / "conditions" / "test-graphene.yaml"
    path.parent.mkdir()
    path.write_text(CONDITION.model_dump_json(exclude_none=True))
    return Library(library.folder)


def test_workers_score_as_this_process_does(
    cluster: str, members: tuple[Member, ...], on_frames: Measure, library: Library
) -> None:
    here = evaluate(members, on_frames, library, executor="local")
    assert evaluate(members, on_frames, library) == here


@pytest.mark.slow
def test_there_is_a_row_for_each_member_the_ensemble_and_the_classical_detector(
    members: tuple[Member, ...], on_frames: Measure, library: Library
) -> None:
    rows = evaluate(members, on_frames, library, executor="local")
    assert sorted(row.member for row in rows) == [CLASSICAL, ENSEMBLE, 0, 1, 2]
    assert {row.condition for row in rows} == {"discs-frames"}
    assert all(row.values["frames"] == 6 for row in rows)
    assert {"f1", "f1_low", "f1_high", "precision", "recall", "rmse_pm"} <= rows[-1].values.keys()


@pytest.mark.slow
def test_members_score_well_on_what_they_were_trained_on(
    job: Job, library: Library, home: Path, tmp_path: Path, on_frames: Measure
) -> None:
    long = job.model_copy(update={"recipe": "long"})
    members = train(long, library, str(tmp_path / "long"), executor="local").members
    matrix = Matrix(evaluate(members, on_frames, library, executor="local"))
    assert min(matrix.value(member, "discs-frames") or 0 for member in (0, 1, 2, ENSEMBLE)) > 0.9


def test_progress_counts_the_pieces_of_work(
    cluster: str, members: tuple[Member, ...], on_frames: Measure, library: Library
) -> None:
    told: list[tuple[int, int]] = []
    evaluate(members, on_frames, library, progress=lambda *event: told.append(event))
    assert sorted(told) == [(1, 2), (2, 2)]  # the members on a block; the detector on all frames


@pytest.mark.slow
def test_every_frame_of_a_long_frameset_counts_once(
    members: tuple[Member, ...], frames: FrameSet, library: Library
) -> None:
    truth = [frames.truth(i) for i in range(6)]
    for _ in range(2):
        frames.append(frames.frames(slice(0, 6)), truth, None)
    measure = Measure(frames=(frames.url,), match_radius_pm=60)
    assert len(plan_blocks(measure, library, 0)) == 3
    once = evaluate(members, Measure(frames=(frames.url,)), library, executor="local")
    assert {row.values["frames"] for row in once} == {18}


def test_simulated_conditions_are_measured_beside_recorded_frames(
    cluster: str, members: tuple[Member, ...], frames: FrameSet, with_condition: Library
) -> None:
    measure = Measure(conditions=("test-*",), frames=(frames.url,), frames_per_condition=3)
    matrix = Matrix(evaluate(members, measure, with_condition))
    assert matrix.conditions == ("discs-frames", "test-graphene")
    assert matrix.value(ENSEMBLE, "test-graphene", "frames") == 3
    assert matrix.condition_digest("test-graphene") == f"{CONDITION.digest}-{SIMULATOR}"


def test_scores_on_frames_of_another_simulator_are_kept_apart(
    with_condition: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Measure(conditions=("test-graphene",))
    (now,) = plan_blocks(measure, with_condition, 0)
    monkeypatch.setattr("manybeam.jobs.test_sets.SIMULATOR", 10**3)
    (later,) = plan_blocks(measure, with_condition, 0)
    kept = Matrix([Score(0, now.name, now.digest, {"f1": 0.1, "recall": 0.2})])
    kept = kept.with_rows([Score(0, later.name, later.digest, {"f1": 0.9})])
    assert kept.values(0, "test-graphene") == {"f1": 0.9}


@pytest.mark.slow
def test_the_detector_is_tuned_on_half_of_all_frames_not_of_a_block(
    members: tuple[Member, ...], frames: FrameSet, library: Library, tmp_path: Path
) -> None:
    """The ninth frame is alone in its block: there, nothing could be tuned on."""
    large = Condition.model_validate({"id": "large", "scan": {"pixel_size_pm": 60}})
    scores = []
    for count in (8, 9):
        nine = FrameSet.create(tmp_path / f"{count}", large, frames.shape)
        order = [0, 1, 2, 3, 4, 5, 0, 1, 2][:count]
        nine.append(frames.frames(order), [frames.truth(i) for i in order], None)
        rows = evaluate(members[:1], Measure(frames=(nine.url,)), library, executor="local")
        scores.append(next(row.values["f1"] for row in rows if row.member == CLASSICAL))
    assert scores[1] > scores[0] - 0.02


def test_asking_for_more_frames_keeps_those_asked_for_before() -> None:
    few, many = (
        list(labelled_frames(FrameBlock("c", CONDITION.digest, CONDITION, 0, stop, 0)))
        for stop in (3, BLOCK)
    )
    assert len(many) == BLOCK
    assert all(
        np.array_equal(one.frame_yx, other.frame_yx)
        for one, other in zip(few, many[:3], strict=True)
    )


def test_blocks_of_one_condition_hold_other_frames() -> None:
    first, second = (
        next(
            iter(labelled_frames(FrameBlock("c", CONDITION.digest, CONDITION, start, start + 1, 0)))
        )
        for start in (0, BLOCK)
    )
    assert not np.array_equal(first.frame_yx, second.frame_yx)


def test_recorded_frames_of_a_simulated_condition_are_a_column_of_their_own(
    with_condition: Library, tmp_path: Path
) -> None:
    recorded = FrameSet.create(tmp_path / "recorded", CONDITION, (64, 64))
    recorded.append(np.eye(64, dtype=np.float32)[None], [np.ones((1, 3), np.float32)], None)
    measure = Measure(conditions=("test-graphene",), frames=(recorded.url,))
    names = {block.name for block in plan_blocks(measure, with_condition, 0)}
    assert names == {"test-graphene", "test-graphene-frames"}


@pytest.mark.parametrize(
    ("measure", "error", "said"),
    [
        pytest.param({}, InvalidInput, "no conditions and no frames", id="nothing"),
        pytest.param({"conditions": ["moon-*"]}, UnknownCondition, "moon", id="condition"),
        pytest.param({"frames": ["nowhere"]}, UnknownFrameSet, "nowhere", id="frames"),
    ],
)
def test_a_measurement_of_nothing_is_refused(
    measure: dict[str, object], error: type[Exception], said: str, library: Library
) -> None:
    with pytest.raises(error, match=said):
        plan_blocks(Measure.model_validate(measure), library, 0)


def test_frames_that_nobody_marked_are_refused(library: Library, tmp_path: Path) -> None:
    bare = FrameSet.create(tmp_path / "bare", CONDITION, (64, 64))
    bare.append(np.eye(64, dtype=np.float32)[None], None, None)
    with pytest.raises(InvalidInput, match="its frames have no marked atoms"):
        plan_blocks(Measure(frames=(bare.url,)), library, 0)
