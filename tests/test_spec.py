"""YAML models: bounds, ranges, and every fault told at once."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from manybeam.errors import InvalidSpec, UnknownCondition
from manybeam.spec import (
    Condition,
    Job,
    Library,
    Policy,
    Range,
    Recipe,
    load_condition,
    load_job,
    load_recipe,
)

ROOT = Path(__file__).parents[1]
FAULTY = """\
id: Bad Id
optic: {}
optics: {beam_kv: 60 kV, convergance_mrad: 30}
scan: {pixel_size_pm: 0}
dose_e_per_a2: [1e5, 2e6]
"""


def _faults(tmp_path: Path, text: str, load=load_condition) -> str:
    path = tmp_path / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("faulty.yaml:1: id: 'Bad Id' lower-case letters", id="pattern"),
        pytest.param(
            "faulty.yaml:2: optic: {} no field of that name; did you mean 'optics'?", id="typo"
        ),
        pytest.param(
            "faulty.yaml:3: optics.beam_kv: '60 kV' is not a bare number; give a number from",
            id="unit",
        ),
        pytest.param("did you mean 'convergence_mrad'?", id="nested-typo"),
        pytest.param(
            "faulty.yaml:4: scan.pixel_size_pm: 0 is out of bounds; give a number from 1 to 500 pm",
            id="bound",
        ),
    ],
)
def test_every_fault_of_a_file_is_told_with_line_field_value_and_remedy(
    tmp_path: Path, said: str
) -> None:
    assert said in _faults(tmp_path, FAULTY)


def test_a_range_where_a_condition_needs_a_number_is_refused(tmp_path: Path) -> None:
    told = _faults(tmp_path, "id: a\ndose_e_per_a2: [1e5, 2e6]\n")
    assert "dose_e_per_a2: a range where a condition needs one number" in told


def test_a_policy_takes_ranges_and_numbers() -> None:
    policy = Policy.model_validate({"id": "p", "optics": {"beam_kv": [60, 80], "defocus_nm": 2}})
    assert policy.optics.beam_kv == Range(low=60, high=80)
    assert policy.optics.defocus_nm == 2.0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([80, 60], id="reversed"),
        pytest.param([60], id="short-list-out-of-type"),
        pytest.param([1, 2, 3], id="three"),
        pytest.param(True, id="boolean"),
        pytest.param("60", id="text"),
        pytest.param(float("nan"), id="nan"),
        pytest.param(1e9, id="beyond"),
    ],
)
def test_what_is_neither_number_nor_range_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"id": "p", "optics": {"beam_kv": value}})


def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("id: a\ndose_e_per_a2: 2e5\n")
    assert load_condition(path).dose_e_per_a2 == 2e5


def test_the_digest_tells_physics_and_not_names() -> None:
    one = Condition.model_validate({"id": "a", "optics": {"beam_kv": 60}})
    renamed = Condition.model_validate({"id": "b", "title": "t", "optics": {"beam_kv": 60}})
    other = Condition.model_validate({"id": "a", "optics": {"beam_kv": 80}})
    assert one.digest == renamed.digest != other.digest


def test_unknown_stays_unknown() -> None:
    assert Condition(id="a").optics.beam_kv is None


def test_a_model_survives_a_round_trip() -> None:
    policy = Policy.model_validate({"id": "p", "dose_e_per_a2": [1e4, 1e6]})
    assert Policy.model_validate(policy.model_dump(mode="json")) == policy


def test_members_that_would_be_equal_are_refused() -> None:
    twin = {"seed": 1, "policy": "p"}
    with pytest.raises(ValidationError, match="given twice"):
        Recipe.model_validate({"id": "r", "members": [twin, twin]})


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    assert "members: this field is required" in _faults(tmp_path, "id: r\n", load_recipe)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("- a\n- b\n", id="list"),
        pytest.param("a: [1\n", id="not-yaml"),
        pytest.param("!!python/object:os.system {}", id="code"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "faulty.yaml" in _faults(tmp_path, text)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"absent\.yaml: cannot be read"):
        load_condition(tmp_path / "absent.yaml")


def test_an_unknown_condition_offers_the_nearest() -> None:
    with pytest.raises(UnknownCondition, match="graphene-60kv-nominal"):
        Library(ROOT / "zoo").condition("graphene-60kv-nomnal")


def test_a_glob_finds_conditions_in_order() -> None:
    found = [c.id for c in Library(ROOT / "zoo").matching(("graphene-*",))]
    assert found == sorted(found)
    assert len(found) >= 12


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_job_we_ship_names_a_recipe_policies_and_conditions_we_ship(path: Path) -> None:
    job, library = load_job(path), Library.beside(path, ROOT)
    assert isinstance(job, Job)
    if job.recipe:
        assert all(library.policy(member.policy) for member in library.recipe(job.recipe).members)
        assert library.matching(job.measure.conditions)
    if job.adapt.policy:
        assert library.policy(job.adapt.policy)
    assert all(library.policy(name) for name in job.calibrate.policies)


CALIBRATION = {"name": "graphene", "ensemble": "graphene@serving"}
ADAPTATION = {**CALIBRATION, "frames": ["frames/today"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            {"kind": "rehearse", **CALIBRATION, "rehearsal": {"frame_count": 300}},
            {"kind": "calibrate", **CALIBRATION, "calibrate": {"frame_count": 300}},
            id="rehearse",
        ),
        pytest.param(
            {"kind": "iterate", **ADAPTATION, "adapt": {"policy": "p", "teacher": "both"}},
            {"kind": "adapt", **ADAPTATION, "adapt": {"policy": "p", "labels": "both"}},
            id="iterate",
        ),
    ],
)
def test_a_job_in_old_words_is_read_as_the_same_job(
    old: dict[str, object], new: dict[str, object]
) -> None:
    job = Job.model_validate(old)
    assert job == Job.model_validate(new)
    assert job.kind == new["kind"]
    kept = job.model_dump(mode="json", exclude_defaults=True)
    assert kept.keys() == new.keys()
    assert Job.model_validate(kept) == job


def test_a_section_given_under_its_old_and_its_new_name_is_refused(tmp_path: Path) -> None:
    text = "kind: calibrate\nname: a\nensemble: a\ncalibrate: {}\nrehearsal: {}\n"
    assert "faulty.yaml:5: rehearsal" in _faults(tmp_path, text, load_job)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("id: a\nid: b\n", "field 'id' is given twice", id="twice"),
        pytest.param("id: a\ndetector: {gain: 0}\n", "gain: 0 is out of bounds", id="no gain"),
        pytest.param(
            "id: a\ndetector: {detector_inner_mrad: 200, detector_outer_mrad: 70}\n",
            "detector_inner_mrad 200 is not below detector_outer_mrad 70",
            id="no-ring",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in _faults(tmp_path, text)
