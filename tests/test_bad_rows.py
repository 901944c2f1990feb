"""One damaged row in MLflow's database: that version is named and left out, the others go on."""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from manybeam.addresses import sqlite_url
from manybeam.cli import main
from manybeam.data.io.frame import frame_of
from manybeam.errors import Corrupt
from manybeam.predictor.answer import Question
from manybeam.predictor.predictor import Predictor
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.web.app import create_app, make_app_state
from manybeam.zoo.catalogue import Catalogue
from manybeam.zoo.matrix import Score
from manybeam.zoo.registry import Zoo

pytestmark = pytest.mark.slow

FRAME = np.random.default_rng(0).random((64, 64), dtype=np.float32)
TAG = "INSERT INTO model_version_tags(name, version, key, value) VALUES ('bad', 1, '{}', {})"
LOST = "DELETE FROM model_version_tags WHERE name = 'bad' AND key = 'manybeam.{}'"
ORDER = "UPDATE model_version_tags SET value = {} WHERE name = 'bad' AND key LIKE '%scores_order%'"
DAMAGE = [
    pytest.param(LOST.format("manifest"), id="no manifest"),
    pytest.param(LOST.format("sha256"), id="no digest"),
    pytest.param(LOST.format("experiment"), id="no experiment"),
    pytest.param(LOST.format("sha256").replace("DELETE FROM", "UPDATE").replace(
        "WHERE", "SET value = NULL WHERE"
    ), id="null digest"),
    pytest.param(TAG.format("manybeam.archived", "'yesterday'"), id="date"),
    pytest.param(TAG.format("manybeam.archived", "NULL"), id="null date"),
    pytest.param(TAG.format("manybeam.scores.m-1", "'?'"), id="scores"),
    pytest.param(ORDER.format("'second'"), id="order of scores"),
    pytest.param(ORDER.format("NULL"), id="null order of scores"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_members: Any) -> Path:
    """A home of two ensembles that serve, `bad` and `good`."""
    home = tmp_path_factory.mktemp("rows") / "home"
    home.mkdir()
    zoo = Zoo(sqlite_url(home / "zoo.db"), (home / "weights").as_uri(), home / "cache" / "zoo")
    for name, member in zip(("bad", "good"), tiny_members(2), strict=True):
        rows = [Score(member.index, "nominal", "n" * 32, {"f1": 0.9})]
        zoo.register(name, [member], job={"kind": "train"}, alias="serving", scores=rows)
    return home


@pytest.fixture
def damaged(
    sound: Path,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
) -> Callable[[str], Zoo]:
    """Make a copy of that home after one statement was run in its database."""

    def make(statement: str) -> Zoo:
        shutil.copy(sound / "zoo.db", tmp_path / "zoo.db")
        db = sqlite3.connect(tmp_path / "zoo.db")
        with db:
            assert db.execute(statement).rowcount
        db.close()
        library = str(Path(__file__).parents[1] / "zoo")
        use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_ZOO": library})
        return Zoo()

    return make


@pytest.mark.parametrize("statement", DAMAGE)
def test_lists_name_the_damaged_version_and_show_the_others(
    damaged: Callable[[str], Zoo], statement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = damaged(statement)
    assert {one.ref for one in zoo.listing()} == {"bad@1", "good@1"}
    done = Catalogue(zoo).refresh()
    assert (set(done.unreadable), done.changed) == ({"bad@1"}, ("good@1",))
    assert main(["zoo", "ls", "-o", "id"]) == 0
    assert capsys.readouterr().out.split() == ["good@1"]


@pytest.mark.parametrize("statement", DAMAGE)
def test_a_prediction_goes_on_without_the_damaged_version(
    damaged: Callable[[str], Zoo], statement: str
) -> None:
    predictor = Predictor(ZooVersions(damaged(statement)))
    frame = frame_of(FRAME, 16.0)
    assert predictor.answer(frame, Question("good")).ref.startswith("good@1")
    chosen = predictor.answer(frame, Question("auto"))
    assert chosen.ref.startswith("good@1")
    assert any("bad@1 is left out" in note for note in chosen.notes)
    with pytest.raises(Corrupt):
        predictor.answer(frame, Question("bad@1"))


@pytest.mark.parametrize("statement", [DAMAGE[1], DAMAGE[4]])
def test_pages_name_the_damaged_version_and_show_the_others(
    damaged: Callable[[str], Zoo], statement: str
) -> None:
    state = make_app_state(damaged(statement), refresh_s=60)
    state.refresher.refresh()

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get(path) for path in ("/api/v1/zoo", "/zoo", "/zoo/good@1")]

    listed, page, version = asyncio.run(ask())
    assert [row["ref"] for row in listed.json()["rows"]] == ["good@1"]
    assert "bad@1" in listed.json()["unreadable"]
    assert "cannot be read" in page.text
    assert (page.status_code, version.status_code) == (200, 200)


def test_nothing_is_collected_while_a_version_cannot_be_read(
    damaged: Callable[[str], Zoo], capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(LOST.format("manifest"))
    assert main(["zoo", "gc", "--yes"]) == 1
    assert "manybeam.manifest is missing" in capsys.readouterr().err


def test_an_alias_without_a_version_is_named_and_left_out(
    damaged: Callable[[str], Zoo], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        zoo = damaged("UPDATE registered_model_aliases SET version = 'x' WHERE name = 'bad'")
        assert {one.ref: one.aliases for one in zoo.listing()} == {
            "bad@1": (), "good@1": ("serving",),
        }  # fmt: skip
    assert "bad@serving is left out" in caplog.text
