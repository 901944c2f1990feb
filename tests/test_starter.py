"""The project's conditions, policies and jobs: found from any folder, copied, and listed."""

import json
from pathlib import Path

import pytest

from manybeam.cli import main
from manybeam.settings import settings, starter_folder
from manybeam.spec import Library
from manybeam.spec.starter import job_here

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANYBEAM_ZOO", raising=False)
    monkeypatch.setenv("MANYBEAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()


def test_without_a_zoo_folder_that_of_the_package_is_used() -> None:
    assert settings().zoo == starter_folder() / "zoo"
    assert Library(settings().zoo).conditions.keys() == Library(ROOT / "zoo").conditions.keys()


def test_a_zoo_folder_here_is_preferred_and_any_other_folder_of_that_name_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "zoo").mkdir()
    assert settings().zoo == starter_folder() / "zoo"
    (tmp_path / "zoo" / "conditions").mkdir()
    settings.cache_clear()
    assert settings().zoo == Path("zoo")


def test_init_writes_what_the_package_has_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "lab"]) == 0
    assert f"{len(Library(ROOT / 'zoo').policies)} policies" in capsys.readouterr().err
    for folder in ("zoo", "jobs"):
        ours = {one.relative_to(ROOT): one.read_bytes() for one in (ROOT / folder).rglob("*.yaml")}
        copy = tmp_path / "lab"
        assert ours == {
            one.relative_to(copy): one.read_bytes() for one in (copy / folder).rglob("*.yaml")
        }
    changed = tmp_path / "lab" / "zoo" / "policies" / "graphene-any.yaml"
    changed.write_text("mine")
    (tmp_path / "lab" / "jobs").rename(tmp_path / "elsewhere")
    assert main(["init", "lab"]) != 0
    assert "lab/zoo exists already" in capsys.readouterr().err
    assert changed.read_text() == "mine"
    assert not (tmp_path / "lab" / "jobs").exists()


def test_init_leaves_nothing_where_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", "file"]) != 0
    assert "cannot be written" in capsys.readouterr().err


def test_a_job_of_the_package_is_found_from_any_folder(tmp_path: Path) -> None:
    ours = starter_folder() / "jobs" / "quickstart.yaml"
    assert job_here(Path("jobs/quickstart.yaml")) == ours
    assert job_here(Path("quickstart.yaml")) == ours
    for other in ("elsewhere/quickstart.yaml", "/quickstart.yaml", "jobs/unknown.yaml"):
        assert job_here(Path(other)) == Path(other)
    (tmp_path / "quickstart.yaml").write_text("")
    assert job_here(Path("quickstart.yaml")) == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("noun", "some"),
    [
        ("conditions", "graphene-60kv-nominal"),
        ("policies", "graphene-general"),
        ("recipes", "quickstart"),
    ],
)
def test_each_kind_is_listed_with_its_id_first(
    noun: str, some: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([noun, "ls", "-o", "id"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == sorted(getattr(Library(ROOT / "zoo"), noun))
    assert main([noun, "ls", some[:8], "-o", "id"]) == 0
    part = capsys.readouterr().out.split()
    assert some in part
    assert part == [name for name in listed if some[:8] in name]
    assert main([noun, "ls", "no-such-thing"]) == 4
    assert "no-such-thing" in capsys.readouterr().err


def test_a_glob_is_a_pattern_of_the_whole_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conditions", "ls", "*-coarse", "-o", "id"]) == 0
    found = capsys.readouterr().out.split()
    assert found
    assert all(name.endswith("-coarse") for name in found)


def test_numbers_stay_numbers_for_programs_and_are_words_for_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["policies", "show", "graphene-general", "-o", "json"]) == 0
    rows = {row["quantity"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["scan.pixel_size_pm"]["value"] == [10, 26]
    assert rows["scan.pixel_size_pm"]["unit"] == "pm"
    assert rows["optics.focal_spread_nm"]["value"] == 4
    assert main(["policies", "show", "graphene-general", "-o", "table"]) == 0
    assert "10 to 26" in capsys.readouterr().out


def test_an_unknown_id_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conditions", "show", "graphene-60kv-nomnal"]) == 4
    assert "graphene-60kv-nominal" in capsys.readouterr().err
