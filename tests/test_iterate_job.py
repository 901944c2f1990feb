"""Jobs of kind adapt: from YAML to a candidate, stopped and continued, and the report."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from manybeam.cli import main
from manybeam.cli.adapt_report import iterate_report
from manybeam.data.frames import FrameSet
from manybeam.data.simulation.simulate import simulate
from manybeam.data.tiles import Tiles
from manybeam.errors import InvalidInput, InvalidSpec, UnknownRef
from manybeam.jobs.adapt import iterate
from manybeam.jobs.kinds import RUNNERS
from manybeam.jobs.scratch import Scratch
from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
from manybeam.learn.nets.member import Member, save_weights
from manybeam.learn.training.member import train_member
from manybeam.settings import settings
from manybeam.spec import Condition, Library, Policy, Recipe, load_job
from manybeam.zoo.matrix import Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

RECIPE = Recipe(
    id="small",
    network={"filters": 8, "levels": 3},
    training={"steps": 120, "batch": 8, "learning_rate": 4e-3},
    tiles={"tile_px": 48, "pixel_size_pm": 20, "mask_radius_pm": 45},
    members=[{"seed": 1, "policy": "careful"}, {"seed": 2, "policy": "careful"}],
)
SEEN = {"sample": {"structure": "graphene"}, "scan": {"pixel_size_pm": 20}}
CAREFUL = Policy(
    id="careful",
    **SEEN,
    state={"contamination": [0.02, 0.1], "background": 0.3},
    dose_e_per_a2=[8e5, 2e6],
)
NOMINAL = Condition(
    id="nominal",
    **SEEN,
    state={"contamination": 0.05, "background": 0.3},
    dose_e_per_a2=1.2e6,
)
DIRTY = Condition(
    id="dirty",
    **SEEN,
    state={"contamination": 1.5, "background": 0.3},
    dose_e_per_a2=2e5,
)
MOS2 = {"structure": "mos2"}
ASKED = {"labels": "pseudo", "steps": 40, "max_regression": 0.5}
CHILD = """
import sys
from manybeam.jobs.adapt import iterate
from manybeam.settings import settings
from manybeam.spec import Library
from manybeam.zoo.registry import Zoo
library = Library(settings().zoo)
iterate(Zoo(), "graphene", sys.argv[1], library.policy("careful"), library,
        members=[0, 1], labels="pseudo", steps=40, max_regression=0.5)
"""


@pytest.fixture(scope="module")
def members(one_thread) -> list[Member]:
    inputs, targets = simulated_tiles(CAREFUL, RECIPE.tiles, count=48, seed=1)
    known = Tiles(inputs, targets, ("careful",), "careful")
    return [train_member(RECIPE, RECIPE.members[i], i, known) for i in range(2)]


@pytest.fixture
def facility_folder(
    tmp_path: Path, members, use_settings: Callable[[dict[str, str]], None], empty_database: Path
) -> Path:
    """A folder with a zoo that serves two members, a library, and a set of dirty frames."""
    library = tmp_path / "zoo"
    for kind, one in (("conditions", NOMINAL), ("policies", CAREFUL)):
        (library / kind).mkdir(parents=True)
        (library / kind / f"{one.id}.yaml").write_text(one.model_dump_json(exclude_none=True))
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home"), "MANYBEAM_ZOO": str(library),
                  "MANYBEAM_TRACKING_URI": f"sqlite:///{tmp_path}/zoo.db",
                  "MANYBEAM_ARTIFACTS": (tmp_path / "weights").as_uri()})  # fmt: skip
    shutil.copy(empty_database, tmp_path / "zoo.db")
    scores = [Score(i, "nominal", NOMINAL.digest, {"f1": 0.99}) for i in range(2)]
    Zoo().register("graphene", members, job={}, alias="serving", scores=scores)
    frames = FrameSet.create(str(tmp_path / "new.zarr"), DIRTY, shape=(96, 96))
    frames.append(simulate(DIRTY, 2, seed=600, shape=(96, 96)).frames_nyx, None, 20.0)
    return tmp_path


def adapted(folder: Path, **more):
    library = Library(settings().zoo)
    given = {"members": [0, 1], **ASKED, **more}
    return iterate(Zoo(), "graphene", str(folder / "new.zarr"), CAREFUL, library, **given)


def kept_in(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("rounds/*/*.safetensors"))


@pytest.mark.faults
def test_a_round_killed_midway_leaves_nothing_in_the_zoo_and_goes_on_to_the_same_answer(
    facility_folder, use_settings
):
    home, env = facility_folder / "home", dict(os.environ)
    argv = [sys.executable, "-c", CHILD, str(facility_folder / "new.zarr")]
    child = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE)
    until = time.monotonic() + 300
    while not kept_in(home) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    told = child.communicate()[1].decode()
    assert child.returncode == -signal.SIGKILL, told
    assert kept_in(home)
    assert [one.version for one in Zoo().ls("graphene")] == [1]
    went_on = adapted(facility_folder)
    assert kept_in(home) == []
    use_settings({"MANYBEAM_HOME": str(facility_folder / "elsewhere")})
    whole = adapted(facility_folder)
    assert went_on.round.steps == whole.round.steps
    assert [one.data_digest for one in went_on.round.members] == [
        one.data_digest for one in whole.round.members
    ]
    for one, two in zip(went_on.round.members, whole.round.members, strict=True):
        assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_a_damaged_step_is_done_anew(tmp_path, use_settings):
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    scratch = Scratch("d" * 32)
    assert scratch.get("round-01-member-00") is None
    data = save_weights({"a": torch.ones(3)})
    scratch.put("round-01-member-00", data)
    assert scratch.get("round-01-member-00") == data
    scratch.put("round-01-member-00", data[:-5])
    assert scratch.get("round-01-member-00") is None
    scratch.clear()
    assert not scratch.folder.exists()


JOB = {
    "kind": "adapt",
    "name": "graphene",
    "ensemble": "graphene@serving",
    "frames": ["new.zarr"],
    "adapt": {"policy": "careful", "labels": "pseudo", "steps": 40, "members": [1]},
    "gates": {"max_regression": 0.5},
}


def write_job(folder: Path, **change) -> Path:
    path = folder / "jobs" / "adapt.yaml"
    path.parent.mkdir(exist_ok=True)
    content = {key: value for key, value in (JOB | change).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_job_of_kind_adapt_makes_a_candidate_that_records_its_rounds(facility_folder, capsys):
    more = {"rounds": 2, "beside": True}
    path = write_job(
        facility_folder,
        frames=[str(facility_folder / "new.zarr")],
        adapt={**JOB["adapt"], **more},
    )
    assert main(["train", str(path), "-o", "json"]) == 0, capsys.readouterr().err
    record = Zoo().resolve("graphene@candidate")
    assert record.parent == "graphene@1"
    assert [one.parent for one in record.members] == ["", "", "graphene@1/01"]
    assert record.job["adapt"]["beside"] is True
    first = record.job["rounds"][0][0]
    assert first["accepted"]
    assert first["member"] == 1
    assert Zoo().resolve("graphene").version == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"ensemble": None}, "kind adapt needs ensemble", id="no ensemble"),
        pytest.param({"adapt": None}, "needs adapt.policy", id="no adapt"),
        pytest.param({"recipe": "small"}, "kind adapt takes no recipe", id="recipe"),
        pytest.param({"kind": "train"}, "kind train needs recipe", id="train without recipe"),
        pytest.param({"frames": ["a", "b"]}, "adapts to one FrameSet", id="two sets"),
        pytest.param({"frames": None}, "adapts to one FrameSet", id="no set"),
        pytest.param({"alias": "serving"}, "only a candidate", id="serving"),
        pytest.param({"name": "other"}, "are two ensembles", id="other name"),
        pytest.param(
            {"adapt": {"policy": "careful", "labels": "oracle"}}, "adapt.labels", id="labels"
        ),
        pytest.param(
            {"adapt": {"policy": "careful", "teacher": "oracle"}}, "adapt.teacher", id="old name"
        ),
        pytest.param(
            {"adapt": {"policy": "careful", "roundz": 2}}, "did you mean 'rounds'", id="typo"
        ),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(tmp_path, change, said):
    with pytest.raises(InvalidSpec, match=said):
        load_job(write_job(tmp_path, **change))


def test_a_job_of_kind_evaluate_needs_an_ensemble_and_no_recipe(tmp_path):
    bare = {"kind": "evaluate", "adapt": None, "frames": None, "gates": None}
    assert load_job(write_job(tmp_path, **bare)).ensemble == "graphene@serving"
    assert "evaluate" in RUNNERS


def test_the_frames_to_adapt_to_can_be_named(facility_folder):
    done = adapted(facility_folder, frames=[1], members=[0], steps=2)
    wanted = FrameSet.open(str(facility_folder / "new.zarr")).frame(1)
    np.testing.assert_array_equal(done.frames_nyx, wanted[None])
    with pytest.raises(InvalidInput, match="no frame 7"):
        adapted(facility_folder, frames=[0, 7])


def test_a_reference_to_one_member_adapts_it_and_keeps_the_others(facility_folder):
    library, frames = Library(settings().zoo), str(facility_folder / "new.zarr")
    done = iterate(Zoo(), "graphene@1/01", frames, CAREFUL, library, **ASKED)
    assert {step.member for step in done.round.steps} == {1}
    assert [one.index for one in done.round.members] == [0, 1]
    assert done.record is not None, done.round.why
    assert done.record.member_count == 2
    with pytest.raises(InvalidInput, match="member 01 alone"):
        iterate(Zoo(), "graphene@1/01", frames, CAREFUL, library, members=[0], **ASKED)


def test_a_member_that_is_not_there_is_refused_before_any_work(facility_folder):
    with pytest.raises(UnknownRef, match="graphene@1 has no member 77"):
        adapted(facility_folder, members=[0, 77])


def test_a_policy_of_another_structure_is_refused_before_any_work(facility_folder):
    library, frames = Library(settings().zoo), str(facility_folder / "new.zarr")
    other = CAREFUL.model_copy(update={"sample": CAREFUL.sample.model_copy(update=MOS2)})
    with pytest.raises(InvalidInput, match=r"careful is of mos2; members of graphene@1 were"):
        iterate(Zoo(), "graphene@1", frames, other, library, **ASKED)


def test_the_report_shows_before_and_after_and_says_what_was_decided(facility_folder, tmp_path):
    done = adapted(facility_folder)
    page = iterate_report(done, tmp_path / "report")
    text = page.read_text()
    assert done.record is not None, done.round.why
    assert f"candidate `{done.record.ref}`" in text
    assert done.round.steps[0].why.replace("|", "/") in text
    assert "| nominal |" in text
    for name in ("before.png", "after.png"):
        assert f"({name})" in text
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "report").glob(".*.part"))


def test_the_command_writes_its_report_whatever_the_gate_says(facility_folder, capsys):
    folder = facility_folder / "report"
    words = ["iterate", str(facility_folder / "new.zarr"), "-e", "graphene", "--policy", "careful"]
    words += ["--labels", "pseudo", "--steps", "1", "--member", "0", "--frame", "0"]
    code = main([*words, "--max-regression", "0", "--report", str(folder), "-o", "json"])
    assert code in (0, 6)
    verdict = "Refused" if code == 6 else "Registered"
    assert verdict in (folder / "report.md").read_text()
    assert len(Zoo().ls("graphene")) == (1 if code == 6 else 2)
