"""The id of a platform: one home at one place has one, and answers of others are refused."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manybeam.cluster.identity import check_platform, known_platform_id, platform_id
from manybeam.errors import Conflict

Use = Callable[[dict[str, str]], None]
OTHER = "fedcba9876543210"


@pytest.fixture
def home(tmp_path: Path, use_settings: Use) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path / "home")})
    return tmp_path / "home"


def test_an_id_is_made_once_whoever_asks_first(home: Path) -> None:
    assert known_platform_id() == ""
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: platform_id(), range(16)))
    assert found == {known_platform_id()}


def test_a_copy_of_a_home_is_another_platform(home: Path, use_settings: Use) -> None:
    own = platform_id()
    shutil.copytree(home, home.with_name("copy"))
    use_settings({"MANYBEAM_HOME": str(home.with_name("copy"))})
    assert known_platform_id() == ""
    assert platform_id() != own


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"id": 1', '"id"'])
def test_a_damaged_file_is_no_id(text: str, home: Path) -> None:
    own = platform_id()
    (home / "platform.json").write_text(text)
    assert known_platform_id() == ""
    assert platform_id() not in ("", own)


@pytest.mark.parametrize(
    ("url", "named", "is_taken"),
    [
        pytest.param("http://127.0.0.1:8100", "own", True, id="ours"),
        pytest.param("http://127.0.0.1:8100/readyz", OTHER, False, id="a neighbour's"),
        pytest.param("http://[::1]:8100", OTHER, False, id="a neighbour's on ipv6"),
        pytest.param("http://lab.example.org:8100", OTHER, True, id="a facility's"),
        pytest.param("http://127.0.0.1:8100", None, True, id="a server that names none"),
    ],
)
def test_a_neighbours_answer_is_refused(
    url: str, named: str | None, *, is_taken: bool, home: Path
) -> None:
    name = platform_id() if named == "own" else named
    headers = {"x-manybeam-platform": name} if name else {}
    if is_taken:
        check_platform(url, headers)
    else:
        with pytest.raises(Conflict, match=f"another platform answers at .*{OTHER}"):
            check_platform(url, headers)


def test_before_anything_was_started_every_neighbour_is_another(home: Path) -> None:
    with pytest.raises(Conflict, match="nothing was started from this home"):
        check_platform("http://127.0.0.1:8100", {"x-manybeam-platform": OTHER})
