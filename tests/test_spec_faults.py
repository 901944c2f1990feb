"""Faults of YAML files in our words: line, field, value, what is allowed, a close name."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from manybeam.errors import InvalidSpec, NotFound
from manybeam.spec import Library, load_condition, load_job, load_policy, load_recipe
from manybeam.spec.faults import fault_lines
from manybeam.spec.files import load_project, yaml_files
from manybeam.spec.imaging import Condition, other_units
from manybeam.spec.job import Job
from manybeam.spec.plain_yaml import read_yaml
from manybeam.spec.recipe import Recipe

ROOT = Path(__file__).parents[1]
JOB = "kind: train\nname: g\nrecipe: r\n"
RECIPE = "id: r\nmembers: [{seed: 1, policy: p}]\n"
# Words of pydantic and of Python's types, which a microscopist need not know.
FOREIGN = re.compile(
    r"Input should|valid (integer|string|tuple|dictionary|number)|unable to parse|Tuple|dict\b|"
    r"NoneType|after validation|instance of|unicode string|Traceback"
)


def said_of(text: str, load, tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InvalidSpec) as caught:
        load(tmp_path / "mine.yaml")
    return caught.value.what.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("load", "text", "said"),
    [
        pytest.param(load_job, "kind: calibrates\nname: g\n",
                     "1: kind: 'calibrates' is none of train, tune, evaluate, calibrate, adapt; "
                     "did you mean 'calibrate'?", id="choice"),
        pytest.param(load_job, JOB + "seed: many\n",
                     "4: seed: 'many' is no whole number", id="whole"),
        pytest.param(load_job, JOB + "frames: x\n", "4: frames: 'x' is no list", id="list"),
        pytest.param(load_job, JOB + "measure: [a]\n", "4: measure: ['a'] is no group", id="group"),
        pytest.param(load_job, JOB + "resources: {workers: 0}\n",
                     "4: resources.workers: 0 is too small; give at least 1", id="small"),
        pytest.param(load_job, "kind: train\nname: 3\nrecipe: r\n",
                     "2: name: 3 is no text; put it in quotes", id="text"),
        pytest.param(load_job, "kind:\nname: g\n", "1: kind: this field has no value", id="empty"),
        pytest.param(load_job, JOB + "colour: 1\n",
                     "4: colour: 1 no field of that name; fields here: kind", id="not close"),
        pytest.param(load_recipe, RECIPE + "network: {levels: 9}\n",
                     "3: network.levels: 9 is too large; give at most 6", id="large"),
        pytest.param(load_recipe, "id: r\nmembers: []\n",
                     "2: members: [] has too few entries; give at least 1", id="few"),
        pytest.param(load_recipe, "id: r\nmembers:\n- {seed: 1, policy: p}\n- {sead: 2}\n",
                     "4: members[1].sead: 2 no field of that name; did you mean 'seed'?",
                     id="entry"),
        pytest.param(load_recipe, RECIPE + "tiles: {elements: [Xx]}\n",
                     "3: tiles.elements[0]: 'Xx' is no element", id="element"),
        pytest.param(load_condition, "id: c\nbeam_kv: 60\n",
                     "2: beam_kv: 60 no field of that name; it belongs to optics", id="group of"),
        pytest.param(load_condition, "id: c\noptics: {beam_kv: 60000}\n",
                     "60000 V would be 60 kV", id="unit"),
        pytest.param(load_condition, "id: c\nscan: {shape: [512]}\n",
                     "2: scan.shape[1]: this field is required", id="short pair"),
        pytest.param(load_condition, "id: c\nscan: {}\ndose_e_per_a2: [1, 2]\n",
                     "3: dose_e_per_a2: a range where a condition needs one number", id="line"),
        pytest.param(load_policy, "id: p\n\ttitle: x\n", "2: is not YAML: a tab", id="tab"),
        pytest.param(load_policy, "id: p: q\n", "1: is not YAML: a second ':'", id="colon"),
        pytest.param(load_policy, "", "mine.yaml: holds nothing", id="nothing"),
        pytest.param(load_policy, "id: p\n5: x\n", "2: is not YAML: the name of a field is no text",
                     id="number as name"),
        pytest.param(load_policy, "id: p\n? [a]\n: x\n",
                     "2: is not YAML: the name of a field is no text", id="list as name"),
        pytest.param(load_policy, "id: p\n---\nid: q\n", "2: is not YAML: a second document",
                     id="documents"),
        pytest.param(load_policy, "id: p\ntitle: !!int x\n", "2: is not YAML: a tag (!)", id="tag"),
        pytest.param(load_policy, "id: !!set {a}\n", "1: is not YAML: a tag (!)", id="set"),
        pytest.param(load_policy, "id: &a [*a]\n", "1: is not YAML: a text that begins with *",
                     id="itself"),
        pytest.param(load_policy, "id: p\ntitle: \0\n",
                     "2: is not YAML: a letter that cannot be printed", id="control"),
        pytest.param(load_policy, f"id: {'9' * 5000}\n", "1: is not YAML: a number with too many",
                     id="digits"),
        pytest.param(load_policy, "id: " + "[" * 100_000, "1: is not YAML: more than 20 brackets",
                     id="deep"),
        pytest.param(load_policy, "title: >\n" + " x" * 600_000, "larger than 1,000,000 bytes",
                     id="long"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_our_words(load, text: str, said: str, tmp_path: Path) -> None:
    told = said_of(text, load, tmp_path)
    assert said in told
    assert not FOREIGN.search(told)


@pytest.mark.parametrize("content", ["\ufeffé".encode("utf-16"), b"# \n# \xe9t\xe9"])
def test_a_file_of_another_encoding_is_to_be_saved_as_utf_8(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InvalidSpec, match="save the file as UTF-8"):
        load_policy(tmp_path / "mine.yaml")


def test_a_file_that_is_no_text_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"II*\0\xff\xfe")
    with pytest.raises(InvalidSpec, match="is no text file"):
        load_policy(tmp_path / "mine.yaml")


def test_a_library_without_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no folder .*MANYBEAM_ZOO"):
        Library(tmp_path / "nowhere").policy("p")


def test_aliases_that_make_a_list_of_billions_are_shown_short(tmp_path: Path) -> None:
    lines = [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]
    told = said_of("\n".join(["a0: &a0 x", *lines]), load_job, tmp_path)
    assert len(told) < 10_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e5", 2e5), ("1.", 1.0), (".5", 0.5), ("+3", 3), ("010", 10), ("0x1F", 31), ("0o17", 15),
        ("1:20", "1:20"), ("2026-01-31", "2026-01-31"), ("2026-13-45", "2026-13-45"),
        ("no", "no"), ("N", "N"), ("=", "="), ("true", True), ("False", False), ("~", None),
        ("", None), (".inf", float("inf")), ("-.INF", -float("inf")), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_a_value_without_quotes_is_what_yaml_1_2_says(text: str, value, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"a: {text}\n")
    found = read_yaml(tmp_path / "mine.yaml")[0]["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"ensemble: 0x{'f' * 5000}\n", id="hex"),
        pytest.param(f"ensemble: {'9' * 5000}\n", id="decimal"),
        pytest.param("a: &a {x: 1}\n<<: [*a, *a]\n", id="a list of merges"),
        pytest.param("".join(f"f{n}: 1\n" for n in range(50_000)) + "f7: 2\n", id="many fields"),
    ],
)
def test_a_file_made_to_take_long_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSpec, match=r"digits|<<|given twice"):
        read_yaml(path)


def test_only_files_of_yaml_belong_to_the_library(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "notes.yesterday.html", "c.yaml.old", "d.yXml"):
        (tmp_path / name).touch()
    assert [path.name for path in yaml_files(tmp_path)] == ["a.yaml", "b.yml"]
    assert yaml_files(tmp_path / "none") == []


def test_a_file_that_ends_in_yml_belongs_to_the_library_too(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "p.yml").write_text("id: P\n")
    assert "p.yml:1: id: 'P'" in "\n".join(Library(tmp_path).faults())


def test_a_list_with_wrong_entries_is_not_called_too_short_as_well(tmp_path: Path) -> None:
    told = said_of("id: r\nmembers: [{seed: -1, policy: p}]\n", load_recipe, tmp_path)
    assert told.splitlines() == ["mine.yaml:2: members[0].seed: -1 is too small; give at least 0"]


@pytest.mark.parametrize("name", ["gpus", "colour", "aperture"])
def test_a_name_is_suggested_only_if_it_is_close(name: str, tmp_path: Path) -> None:
    told = said_of(f"{JOB}resources: {{{name}: 1}}\n", load_job, tmp_path)
    assert "did you mean" not in told
    assert "fields here: workers" in told


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70000) | st.floats(allow_nan=False) | st.text("a:"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
MODELS = {"job": Job, "recipe": Recipe, "condition": Condition}
fields = st.sampled_from(
    [(kind, name) for kind, model in MODELS.items() for name in model.model_fields]
)


@given(field=fields, value=values)
def test_no_value_of_any_field_is_answered_in_the_words_of_the_library(field, value) -> None:
    kind, name = field
    try:
        MODELS[kind].model_validate({name: value})
    except ValidationError as error:
        lines = fault_lines(Path("x.yaml"), MODELS[kind], error, None)
        assert lines
        assert not FOREIGN.search("\n".join(line.replace(repr(value), "") for line in lines))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A job, a condition, a policy and two recipes, each with a fault."""
    faults = {
        "jobs/j.yaml": "kind: teach\nname: g\n",
        "zoo/conditions/c.yaml": "id: c\noptics: {beam_kv: 1}\n",
        "zoo/policies/p.yaml": "id: p\nscans: {}\n",
        "zoo/recipes/a.yaml": "id: A B\nmembers: [{seed: 1, policy: p}]\n",
        "zoo/recipes/b.yaml": "id: b\n",
    }
    for name, text in faults.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_faults_of_all_files_of_a_project_are_told_at_once(project: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_project(project / "jobs" / "j.yaml", project / "zoo")
    for name in ("j.yaml:1", "c.yaml:2", "p.yaml:2", "a.yaml:1", "b.yaml:1"):
        assert name in caught.value.what


@pytest.mark.parametrize("kind", ["conditions", "policies", "recipes"])
def test_a_fault_in_one_file_of_a_library_tells_those_of_all(kind: str, project: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        getattr(Library(project / "zoo"), kind)
    assert caught.value.what.count(".yaml:") == 4


def test_our_own_project_has_no_fault() -> None:
    for path in (ROOT / "jobs").glob("*.yaml"):
        load_project(path, ROOT / "zoo")


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        pytest.param(60000, "kV", "60000 V would be 60 kV", id="volt"),
        pytest.param(0.16, "pm", "0.16 A would be 16 pm, 0.16 nm would be 160 pm", id="two"),
        pytest.param(1e12, "pm", "", id="no unit explains it"),
    ],
)
def test_another_unit_is_proposed_if_it_explains_the_value(
    value: float, unit: str, said: str
) -> None:
    assert other_units(value, 1, 500, unit).removeprefix("; ") == said
