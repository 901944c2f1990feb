"""What the members know, what is proposed when a stream leaves it, and the command that says so."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from manybeam.cli.watch import watch
from manybeam.data.frames import FrameSet
from manybeam.data.io.frame import Frame
from manybeam.data.simulation.simulate import Simulated, simulate
from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput, OutOfDistribution, exit_code
from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.training.member import train_member
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.stream import advice
from manybeam.predictor.stream.advice import known_frames, wandering
from manybeam.predictor.stream.drift import DriftWatch
from manybeam.predictor.versions.loaded import LoadedVersion, OneVersion
from manybeam.spec import Condition, Library, MemberPlan, Policy, Recipe
from manybeam.zoo.matrix import ENSEMBLE, Matrix, Score
from manybeam.zoo.records import Record
from manybeam.zoo.registry import Zoo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

GRAPHENE = {"structure": "graphene"}
RECIPE = Recipe(
    id="small",
    network={"filters": 8, "levels": 4},
    training={"steps": 150, "batch": 8, "learning_rate": 4e-3},
    tiles={"tile_px": 48, "pixel_size_pm": 20, "mask_radius_pm": 45},
    members=[{"seed": 1, "policy": "careful"}, {"seed": 2, "policy": "dirt"}],
)


def imaging(kind, name: str, dose, contamination, jitter=5, sample=GRAPHENE):
    return kind(
        id=name,
        sample=sample,
        scan={"pixel_size_pm": 20, "row_jitter_pm": jitter},
        state={"contamination": contamination, "background": 0.3},
        dose_e_per_a2=dose,
    )


CAREFUL = imaging(Policy, "careful", [8e5, 2e6], [0.02, 0.1])
DIRT = imaging(Policy, "dirt", [1e5, 1e6], [0.8, 2.0])
BROAD = imaging(Policy, "broad", [2e4, 2e6], [0.02, 2.0], [2, 20])
NOMINAL = imaging(Condition, "nominal", 1.2e6, 0.05)
DIRTY = imaging(Condition, "dirty", 2e5, 1.5)


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """Two small members: one knows careful sessions only, the other dirty ones."""
    made = []
    for index, policy in enumerate((CAREFUL, DIRT)):
        inputs, targets = simulated_tiles(policy, RECIPE.tiles, count=64, seed=1)
        plan = MemberPlan(seed=index + 1, policy=policy.id)
        made.append(train_member(RECIPE, plan, index, Tiles(inputs, targets, (policy.id,), "t")))
    return Ensemble(made)


def scored(name: str, *values: float) -> list[Score]:
    digest = {"nominal": NOMINAL, "dirty": DIRTY}[name].digest
    return [
        Score(member, name, digest, {"f1": f1, "f1_low": f1 - 0.01, "f1_high": f1 + 0.01})
        for member, f1 in enumerate(values)
    ]


BOTH = Matrix([*scored("nominal", 0.99, 0.9), *scored("dirty", 0.4, 0.97)])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("library")
    for kind, one in (
        ("conditions", NOMINAL), ("conditions", DIRTY),
        ("policies", CAREFUL), ("policies", DIRT), ("policies", BROAD),
    ):  # fmt: skip
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / f"{one.id}.yaml").write_text(one.model_dump_json(exclude_none=True))
    return Library(folder)


@pytest.fixture(scope="module")
def zoo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def zoo(zoo_home: Path, ensemble: Ensemble) -> Zoo:
    home = zoo_home
    made = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
    made.register("graphene", ensemble.members, job={}, alias="serving", scores=BOTH.rows)
    return made


@pytest.fixture(scope="module")
def record(zoo: Zoo) -> Record:
    return zoo.resolve("graphene")


def made(condition: Condition, count: int = 4, seed: int = 600) -> Simulated:
    return simulate(condition, count, seed=seed, shape=(96, 96))


def propose(record, matrix, ensemble, frames_nyx, size_pm, *, library, **more: Any):
    """Return the advice on frames that one version, made of these parts, answers."""
    version = LoadedVersion(ensemble, matrix, None, record)
    predictor = Predictor(OneVersion(version), library)
    frames = [Frame(one, size_pm) for one in frames_nyx]
    return advice.propose(predictor, record.ref, frames, library=library, **more)


def test_serving_members_with_a_good_predicted_f1_go_on(record, ensemble, library):
    found = propose(record, BOTH, ensemble, made(NOMINAL).frames_nyx, 20.0,
                    serving=[0], library=library)  # fmt: skip
    assert found.action == "go on"
    assert found.members == (0,)
    assert found.predicted_f1 > 0.8
    assert found.command == ""


def test_members_that_are_better_beyond_their_interval_are_switched_to(record, ensemble, library):
    found = propose(record, BOTH, ensemble, made(DIRTY).frames_nyx, 20.0,
                    serving=[0], library=library)  # fmt: skip
    assert found.action == "switch members"
    assert found.members == (1,)
    assert "that of 01 (dirt) is" in found.why


def adapting(record, ensemble, library, **more: Any):
    """Ask about dirty frames with none but the member that never saw any."""
    alone = Ensemble(ensemble.members[:1])
    careful = Matrix(scored("nominal", 0.99))
    return propose(record, careful, alone, made(DIRTY).frames_nyx, 20.0,
                   serving=[0], library=library, draws=96, **more)  # fmt: skip


def test_where_no_predicted_f1_is_good_but_a_policy_makes_such_frames_it_is_to_adapt(
    record, ensemble, library
):
    found = adapting(record, ensemble, library, frames_url="frames/drifted")
    assert found.action == "adapt"
    assert found.command == "manybeam iterate frames/drifted -e graphene@1 --policy broad"
    assert found.inferred is not None
    assert found.inferred.distance <= 1
    assert "contamination" in found.why


def test_frames_that_no_policy_makes_are_shown_to_a_person(record, ensemble, library):
    found = adapting(record, ensemble, library, policy=CAREFUL)
    assert found.action == "ask"
    assert "'careful' makes no frames like these" in found.why
    assert found.command == ""


def test_without_frames_nothing_is_proposed(record, ensemble, library):
    with pytest.raises(InvalidInput, match="no frames since the change"):
        propose(record, BOTH, ensemble, np.empty((0, 96, 96)), 20.0, library=library)


def test_known_are_the_conditions_the_ensemble_does_well_on(library):
    poor = Matrix([*scored("nominal", 0.99, 0.7), *scored("dirty", 0.4, 0.7)])
    found, again = (known_frames(poor, library, (64, 64), count=60) for _ in range(2))
    assert found.conditions == ("nominal",)
    assert len(found.features_ns) == len(found.condition_n) == 60
    assert np.array_equal(found.features_ns, again.features_ns, equal_nan=True)
    whole = poor.with_rows([Score(ENSEMBLE, "nominal", NOMINAL.digest, {"f1": 0.5})])
    with pytest.raises(InvalidInput, match="has no known condition"):
        known_frames(whole, library, (64, 64))


def test_a_session_wanders_about_its_condition_and_keeps_its_pixel_size():
    about = dict(wandering(NOMINAL).quantities())
    assert vars(about["optics.defocus_nm"]) == pytest.approx({"low": -0.9, "high": 0.9})
    assert about["state.contamination"].low == 0
    assert about["dose_e_per_a2"].low < 1.2e6 < about["dose_e_per_a2"].high
    assert about["scan.pixel_size_pm"] == 20


@pytest.fixture
def here(
    zoo_home: Path,
    zoo: Zoo,
    library: Library,
    use_settings: Callable[[dict[str, str]], None],
    tmp_path: Path,
) -> Path:
    """A folder to write in, with the settings of the module's zoo and library."""
    use_settings(
        {
            "MANYBEAM_HOME": str(zoo_home),
            "MANYBEAM_TRACKING_URI": f"sqlite:///{zoo_home}/zoo.db",
            "MANYBEAM_ARTIFACTS": (zoo_home / "weights").as_uri(),
            "MANYBEAM_ZOO": str(library.folder),
        }
    )
    return tmp_path


def written(folder: Path, name: str, *parts: Simulated) -> str:
    frames = FrameSet.create(str(folder / name), NOMINAL, shape=(96, 96))
    for part in parts:
        frames.append(part.frames_nyx, None, part.pixel_size_pm)
    return frames.url


def run(*words: str) -> None:
    app = typer.Typer()
    app.command()(watch)
    app(list(words), standalone_mode=False)


@pytest.fixture(scope="module")
def session() -> tuple[Simulated, Simulated]:
    return made(NOMINAL, 90, seed=700), made(DIRTY, 10, seed=701)


def test_a_session_that_drifts_is_told_in_one_row_and_the_drifted_frames_are_kept(
    here, session, capsys
):
    url, kept = written(here, "today", *session), str(here / "drifted")
    words = [url, "-e", "graphene", "--first", "60", "--keep", kept, "--fail-on-drift"]
    with pytest.raises(OutOfDistribution, match="drift since frame") as told:
        run(*words, "-o", "json")
    assert exit_code(told.value) == 7
    (row,) = json.loads(capsys.readouterr().out)
    assert 90 <= row["frame"] < 100
    assert abs(row["since"] - 90) <= 2
    assert row["proposal"] in {"go on", "switch members", "adapt", "ask"}
    found = FrameSet.open(kept)
    assert len(found) == 100 - row["since"]
    assert np.array_equal(found.frame(-1), FrameSet.open(url).frame(99))
    with pytest.raises(InvalidInput, match="is not empty"):
        run(*words)


def test_a_session_watched_in_two_parts_ends_as_if_watched_in_one(here, session, capsys):
    fine, dirty = session
    whole = written(here, "whole", fine, dirty)
    parts = [written(here, "one", fine), written(here, "two", dirty)]
    state = here / "state.json"
    run(whole, "-e", "graphene", "--first", "60", "-o", "json")
    (row,) = json.loads(capsys.readouterr().out)
    run(parts[0], "-e", "graphene", "--first", "60", "--state", str(state), "-o", "json")
    assert json.loads(capsys.readouterr().out) == []
    run(parts[1], "-e", "graphene", "--state", str(state), "-o", "json")
    (later,) = json.loads(capsys.readouterr().out)
    assert later["frame"] == row["frame"] - 90
    assert later["score"] == row["score"]
    assert DriftWatch.restore(state.read_text()).seen == 40


def test_a_session_at_another_magnification_is_a_drift_and_not_refused(here, session, capsys):
    fine, dirty = session
    closer = dataclasses.replace(dirty, pixel_size_pm=dirty.pixel_size_pm * 4)
    url, state = written(here, "closer", fine, closer), here / "closer.json"
    with pytest.raises(OutOfDistribution, match="drift since frame"):
        run(url, "-e", "graphene", "--first", "60", "--state", str(state), "--fail-on-drift",
            "-o", "json")  # fmt: skip
    (row,) = json.loads(capsys.readouterr().out)
    assert 90 <= row["frame"] < 100
    assert DriftWatch.restore(state.read_text()).seen == 40


def test_files_are_watched_in_their_order(here, session, capsys):
    fine, dirty = session
    np.save(here / "a.npy", fine.frames_nyx[:60])
    np.save(here / "b.npy", dirty.frames_nyx)
    words = ["--pixel-size-pm", "20", "-e", "graphene", "--first", "40", "-o", "json"]
    run(str(here / "a.npy"), str(here / "b.npy"), *words)
    (row,) = json.loads(capsys.readouterr().out)
    assert abs(row["since"] - 60) <= 2


def test_going_to_another_condition_that_was_measured_well_is_no_drift(here, session, capsys):
    fine, dirty = session
    blank = Simulated(np.ones((1, 96, 96), np.float32), [], np.array([20.0]))
    short = Simulated(fine.frames_nyx[:15], [], fine.pixel_size_pm[:15])
    run(written(here, "both", short, blank, dirty), "-e", "graphene", "-o", "json")
    out = capsys.readouterr()
    assert json.loads(out.out) == []
    assert "known: dirty, nominal" in out.err
    assert "frame 15: a constant frame has no drift features: left out" in out.err
    assert "26 frames watched, 0 alarms" in out.err
