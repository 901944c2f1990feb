"""`manybeam instrument` and `manybeam serve` about tokens: made, shown once, listed, revoked."""

import json
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from manybeam.cli.app import main
from manybeam.cli.service.serve import _list_started
from manybeam.cli.terminal.output import Form
from manybeam.cluster.running import head
from manybeam.db.audit import AuditLog
from manybeam.db.deployment import open_database
from manybeam.db.tokens import Tokens
from manybeam.settings import settings


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_TOKEN": ""})


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command that succeeds, and return its rows."""

    def command(*words: str) -> Any:
        capsys.readouterr()
        assert main([*words, "-o", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    return command


Run = Callable[..., Any]


def test_an_instrument_gets_a_token_that_opens_the_service_for_it(run: Run) -> None:
    (made,) = run("instrument", "add", "STEM-1", "--title", "the big one")
    found = Tokens(open_database()).verify(made["token"])
    assert found is not None
    assert (found.instrument, found.scopes) == ("STEM-1", ("predict", "select"))
    (row,) = run("instrument", "ls")
    assert (row["instrument"], row["title"]) == ("STEM-1", "the big one")
    assert (row["state"], row["valid_tokens"]) == ("in use", 1)


def test_the_weight_of_an_instrument_is_given_changed_and_listed(run: Run) -> None:
    run("instrument", "add", "STEM-1", "--weight", "2")
    run("instrument", "add", "STEM-2")
    assert [row["weight"] for row in run("instrument", "ls")] == [2, 1]
    (changed,) = run("instrument", "weight", "STEM-2", "0.5")
    assert (changed["instrument"], changed["weight"]) == ("STEM-2", 0.5)
    assert [row["weight"] for row in run("instrument", "ls")] == [2, 0.5]
    last = AuditLog(open_database()).entries()[0]
    assert (last.action, last.details) == ("instrument weighted", {"weight": 0.5})


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(("weight", "STEM-9", "2"), 4, "no instrument 'STEM-9'", id="unknown"),
        pytest.param(("weight", "STEM-1", "0"), 2, "0.1 to 10", id="nothing"),
        pytest.param(("weight", "STEM-1", "nan"), 2, "0.1 to 10", id="no number"),
        pytest.param(("weight", "STEM-1", "11"), 2, "0.1 to 10", id="too much"),
        pytest.param(("add", "STEM-2", "--weight", "-1"), 2, "0.1 to 10", id="negative"),
    ],
)
def test_a_weight_that_cannot_be_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, told: str
) -> None:
    run("instrument", "add", "STEM-1")
    assert main(["instrument", *words]) == code
    assert told in capsys.readouterr().err
    assert [row["weight"] for row in run("instrument", "ls")] == [1]


def test_the_text_of_a_token_is_shown_once(run: Run) -> None:
    (first,) = run("instrument", "add", "STEM-1")
    (second,) = run(
        "instrument", "token", "STEM-1", "--days", "7", "--scopes", "predict", "--name", "laptop"
    )
    rows = run("instrument", "ls", "--tokens")
    assert {row["id"] for row in rows} == {first["id"], second["id"]}
    assert (second["scopes"], second["name"]) == (["predict"], "laptop")
    told = json.dumps([rows, [str(one) for one in AuditLog(open_database()).entries()]])
    assert first["token"] not in told
    assert second["token"] not in told


def test_a_token_is_revoked_by_its_id(run: Run) -> None:
    (made,) = run("instrument", "add", "STEM-1")
    (other,) = run("instrument", "token", "STEM-1")
    (row,) = run("instrument", "revoke", made["id"])
    assert (row["id"], row["state"]) == (made["id"], "revoked")
    states = {row["id"]: row["state"] for row in run("instrument", "ls", "--tokens")}
    assert states == {made["id"]: "revoked", other["id"]: "valid"}


def test_an_instrument_is_retired_with_all_its_tokens_and_can_come_back(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = run("instrument", "add", "STEM-1")
    run("instrument", "token", "STEM-1")
    assert main(["instrument", "revoke", "STEM-1"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert Tokens(open_database()).verify(made["token"]) is not None
    rows = run("instrument", "revoke", "STEM-1", "--yes")
    assert [row["state"] for row in rows] == ["revoked"] * 2
    assert main(["instrument", "token", "STEM-1"]) == 4
    assert "manybeam instrument add STEM-1" in capsys.readouterr().err
    (again,) = run("instrument", "add", "STEM-1")
    verify = Tokens(open_database()).verify
    assert verify(again["token"]) is not None
    assert verify(made["token"]) is None
    actions = [one.action for one in AuditLog(open_database()).entries()]
    assert actions.count("instrument added") == 2
    assert actions.count("instrument retired") == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(["add", "STEM-1"], 6, "manybeam instrument token STEM-1", id="there already"),
        pytest.param(["add", "a b"], 2, "letters, digits", id="a bad id"),
        pytest.param(["add", "t-0123abcd"], 2, "id of a token", id="like a token"),
        pytest.param(["add", "a/../b"], 2, "letters, digits", id="a path"),
        pytest.param(["token", "STEM-2"], 4, "instrument add STEM-2", id="unknown"),
        pytest.param(["token", "STEM-1", "--scopes", "admin"], 2, "predict, select", id="scope"),
        pytest.param(["token", "STEM-1", "--days", "0"], 2, "at least 1", id="no time"),
        pytest.param(["revoke", "t-00000000"], 4, "ls --tokens", id="an unknown token"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    run("instrument", "add", "STEM-1")
    assert main(["instrument", *words]) == code
    assert told in capsys.readouterr().err


def test_only_the_token_of_a_new_token_is_printed_as_its_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["instrument", "add", "STEM-1", "-o", "id"]) == 0
    assert Tokens(open_database()).verify(capsys.readouterr().out.strip()) is not None


def test_a_service_behind_tls_is_told_where_to_listen(
    use_settings: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use_settings({"MANYBEAM_SERVICE_URL": "https://manybeam.lab"})
    assert main(["serve", "up"]) == 2
    assert "manybeam serve up --host 127.0.0.1 --port 8100 --tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(["nobody"], 4, "the zoo is empty", id="ensemble"),
        pytest.param(["--host", "0.0.0.0"], 5, "can be reached from other machines", id="address"),
        pytest.param(["--tokens", "--insecure"], 2, "contradict each other", id="tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_cluster_starts(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:  # a port that nobody holds
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["serve", "up", *words, "--port", str(port)]) == code
    assert told in capsys.readouterr().err
    assert head(settings().home) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(JSONResponse({"detail": "it was revoked"}, 401), "it was revoked", id="ours"),
        pytest.param(HTMLResponse("<h1>no</h1>", 401), "HTTP 401, from a proxy", id="a proxy's"),
        pytest.param(JSONResponse(["no"], 403), "HTTP 403, from a proxy", id="a list"),
    ],
)
def test_a_service_that_refuses_to_list_is_told_and_its_start_does_not_fail(
    answer: Response,
    told: str,
    serving: Callable[[Any], AbstractContextManager[str]],
    use_settings: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(answer) as url:
        use_settings({"MANYBEAM_SERVICE_URL": url, "MANYBEAM_TOKEN": "mb-revoked"})
        assert main(["serve", "ls"]) == 5
        assert told in capsys.readouterr().err
        _list_started(url, Form.json)
        assert "the service is up, but it does not list its ensembles: " in (
            said := capsys.readouterr().err
        )
        assert told in said
