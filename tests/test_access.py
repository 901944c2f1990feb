"""Tokens at the edge of the service: what each opens, also while the database is away."""

import asyncio
import io
import json
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from sqlalchemy import update

from manybeam.db.database import now
from manybeam.db.deployment import close_databases, open_database
from manybeam.db.tables import TokenRow
from manybeam.db.tokens import Instruments, Tokens, hash_of
from manybeam.errors import DatabaseUnreachable, NotAllowed, NotAuthenticated
from manybeam.predictor.versions.of_zoo import ZooVersions
from manybeam.serve.edge.access import ANYBODY, AWAY_S, Caller, TokenCache
from manybeam.serve.edge.fair_queue import Share
from manybeam.serve.edge.handler import ReplicaLimits
from manybeam.serve.metrics import Meter
from manybeam.serve.predict import Service
from manybeam.serve.query import RequestQuery
from manybeam.serve.routes import api

# Ray Serve declares its own models the way pydantic wants to forget; only importing it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

FRAME = np.random.default_rng(0).random((48, 56), dtype=np.float32)
DAY_S = 86400.0
X = {"Authorization": "Bearer mb-x"}


class Clock:
    """A clock that a test sets."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def caller(cache: TokenCache, text: str, scope: str = "predict") -> Caller:
    return asyncio.run(cache.caller({"authorization": f"Bearer {text}"}, scope))


# -- the copy, on both databases --------------------------------------------------------------
@pytest.fixture
def tokens(database: Any) -> Tokens:
    Instruments(database).add("STEM-1")
    return Tokens(database)


@pytest.fixture
def cache(tokens: Tokens, tmp_path: Path) -> TokenCache:
    return TokenCache(lambda: tokens, tmp_path / "tokens.json")


def test_a_token_opens_what_it_was_made_for(tokens: Tokens, cache: TokenCache) -> None:
    text, made = tokens.create("scan", ["predict"], instrument="STEM-1")
    cache.read()
    assert caller(cache, text) == Caller(made.id, "STEM-1")
    with pytest.raises(NotAllowed, match=r"not for 'select'.*it is for predict"):
        caller(cache, text, "select")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        pytest.param("", "needs a token", id="none"),
        pytest.param("Bearer", "holds no token", id="empty"),
        pytest.param("Basic YTpi", "holds no token", id="another scheme"),
        pytest.param(f"Bearer {'x' * 600}", "holds no token", id="too long"),
        pytest.param("Bearer ü", "holds no token", id="no ascii"),
    ],
)
def test_a_header_without_a_token_is_told_so(cache: TokenCache, header: str, told: str) -> None:
    with pytest.raises(NotAuthenticated, match=told):
        asyncio.run(cache.caller({"authorization": header} if header else {}, "predict"))


def test_a_changed_weight_comes_with_the_next_reading(
    tokens: Tokens, cache: TokenCache, database: Any
) -> None:
    text, made = tokens.create("scan", ["predict"], instrument="STEM-1")
    other, program = tokens.create("program", ["predict"])
    cache.read()
    asked = RequestQuery(instrument="STEM-9")
    assert caller(cache, text).share(asked) == Share("instrument STEM-1", 1.0)
    assert caller(cache, other).share(asked) == Share(f"token {program.id}", 1.0)
    assert ANYBODY.share(asked) == Share("instrument STEM-9", 1.0)
    Instruments(database).set_weight("STEM-1", 2.5)
    cache.read()
    assert caller(cache, text) == Caller(made.id, "STEM-1", 2.5)
    assert caller(cache, other).weight == 1.0


@pytest.mark.slow
def test_a_token_made_now_works_at_once_and_one_revoked_now_soon_does_not(
    tokens: Tokens, cache: TokenCache
) -> None:
    cache.start()
    text, made = tokens.create("scan", ["predict"])
    assert caller(cache, text).name == made.id
    tokens.revoke(made.id)
    begun = time.monotonic()
    while _opens(cache, text):
        assert time.monotonic() < begun + 10
        time.sleep(0.1)
    with pytest.raises(NotAuthenticated, match="unknown or was revoked"):
        caller(cache, text)
    cache.close()


def test_the_tokens_of_a_retired_instrument_open_nothing(
    tokens: Tokens, cache: TokenCache, database: Any
) -> None:
    text, _ = tokens.create("scan", ["predict"], instrument="STEM-1")
    Instruments(database).retire("STEM-1")
    cache.read()
    assert tokens.verify(text) is None
    assert tokens.valid()[1] == []


def test_the_use_of_tokens_is_recorded_by_one_write_for_all(
    tokens: Tokens, cache: TokenCache
) -> None:
    texts = [tokens.create(f"scan {n}", ["predict"])[0] for n in range(3)]
    cache.read()
    for text in texts[:2] * 5:
        caller(cache, text)
    assert [one.last_used for one in tokens.list()] == [None] * 3
    cache.note_used()
    used = [one.last_used for one in tokens.list() if one.last_used]
    assert len(used) == 2
    assert used[0] == used[1]
    cache.note_used()
    assert [one.last_used for one in tokens.list() if one.last_used] == used


# -- time ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("jump_s", [-365 * DAY_S, 365 * DAY_S], ids=["back", "forward"])
def test_a_clock_that_jumps_neither_ends_a_token_nor_prolongs_it(
    tmp_path: Path, tokens: Tokens, database: Any, jump_s: float
) -> None:
    clock, jump = Clock(1000.0), timedelta(seconds=0)

    class Jumping(Tokens):
        def valid(self) -> Any:
            at, listed = super().valid()
            return at + jump, listed

    text, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=1))
    cache = TokenCache(lambda: Jumping(database), tmp_path / "tokens.json", clock=clock)
    cache.read()
    jump = timedelta(seconds=jump_s)
    cache.read()
    clock.at += 3500
    assert caller(cache, text)
    clock.at += 101
    cache.read()
    with pytest.raises(NotAuthenticated, match="expired"):
        caller(cache, text)


def test_an_expiry_that_was_changed_counts(
    tokens: Tokens, cache: TokenCache, database: Any
) -> None:
    text, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=1))
    cache.read()
    with database.writing() as connection:
        connection.execute(update(TokenRow).values(expires=now(connection)))
    cache.read()
    with pytest.raises(NotAuthenticated, match=r"expired; it was valid until 20"):
        caller(cache, text)


# -- without the database -------------------------------------------------------------------------
class Away:
    """A way to the database that a test cuts."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.is_cut = tokens, False

    def __call__(self) -> Tokens:
        if self.is_cut:
            raise DatabaseUnreachable("no answer", "", "")
        return self.tokens


@pytest.mark.slow
def test_a_known_token_works_for_a_day_without_the_database(tokens: Tokens, tmp_path: Path) -> None:
    away, clock = Away(tokens), Clock(0.0)
    cache = TokenCache(away, tmp_path / "tokens.json", clock=clock)
    text, _ = tokens.create("scan", ["predict"])
    brief, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=2))
    cache.read()
    away.is_cut = True
    for clock.at in (1.0, 7100.0):
        cache.read()
        assert caller(cache, text)
        assert caller(cache, brief)
    clock.at = AWAY_S
    assert caller(cache, text)
    with pytest.raises(NotAuthenticated, match="expired"):
        caller(cache, brief)
    with pytest.raises(DatabaseUnreachable, match="cannot be checked"):
        caller(cache, "mb-unknown")
    clock.at = AWAY_S + 1
    with pytest.raises(DatabaseUnreachable, match="cannot be checked"):
        caller(cache, text)


def test_a_replica_that_starts_without_the_database_knows_what_an_earlier_one_knew(
    tokens: Tokens, tmp_path: Path
) -> None:
    away, path = Away(tokens), tmp_path / "cache" / "tokens.json"
    text, _ = tokens.create("scan", ["predict"], instrument="STEM-1")
    brief, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=2))
    TokenCache(away, path).read()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text not in path.read_text()
    away.is_cut = True
    for later_s, opens in (
        (3600, [True, True]),
        (3 * 3600, [True, False]),
        (2 * DAY_S, [False] * 2),
    ):
        cache = TokenCache(away, path, wall=Clock(time.time() + later_s))
        cache.start()
        assert [_opens(cache, one) for one in (text, brief)] == opens
        cache.close()


def test_a_replica_that_starts_with_a_wrong_clock_takes_the_time_of_the_database(
    tokens: Tokens, tmp_path: Path
) -> None:
    away, path = Away(tokens), tmp_path / "tokens.json"
    text, _ = tokens.create("scan", ["predict"], lifetime=timedelta(hours=2))
    TokenCache(away, path).read()
    away.is_cut = True
    cache = TokenCache(away, path, wall=Clock(time.time() + 3 * 3600))
    cache.start()
    with pytest.raises(NotAuthenticated, match="expired"):
        caller(cache, text)
    away.is_cut = False
    cache.read()
    assert caller(cache, text)
    cache.close()


@pytest.mark.parametrize(
    ("back_s", "opens"), [pytest.param(2, True, id="a little"), pytest.param(60, False, id="far")]
)
def test_a_copy_from_the_future_is_not_used(
    tokens: Tokens, tmp_path: Path, back_s: float, *, opens: bool
) -> None:
    away, path = Away(tokens), tmp_path / "tokens.json"
    text, _ = tokens.create("scan", ["predict"])
    TokenCache(away, path).read()
    away.is_cut = True
    cache = TokenCache(away, path, wall=Clock(time.time() - back_s))
    cache.start()
    assert _opens(cache, text) is opens
    cache.close()


def test_that_the_database_is_away_is_logged_once_also_if_a_request_noticed_it_first(
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("manybeam.serve.edge.access.PATIENCE_S", 0.01)
    away = Away(tokens)
    cache = TokenCache(away, tmp_path / "tokens.json")
    away.is_cut = True
    with pytest.raises(DatabaseUnreachable):
        caller(cache, "mb-unknown")
    for _ in range(2):
        cache.read()
    assert [one.message.startswith("tokens are checked") for one in caplog.records] == [True]


def test_a_copy_that_cannot_be_written_harms_nobody(
    tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    cache = TokenCache(lambda: tokens, tmp_path / "cache" / "tokens.json")
    text, _ = tokens.create("scan", ["predict"])
    for _ in range(3):
        cache.read()
    assert caller(cache, text)
    assert [one.message.startswith("the copy of the tokens") for one in caplog.records] == [True]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"read": 1}', '{"read": "x", "tokens": []}'])
def test_a_damaged_copy_counts_as_none(tokens: Tokens, tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    text, _ = tokens.create("scan", ["predict"])
    cache = TokenCache(lambda: tokens, path)
    cache.start()
    assert caller(cache, text)
    assert hash_of(text) in path.read_text()
    cache.close()


def _opens(cache: TokenCache, text: str) -> bool:
    try:
        return bool(caller(cache, text))
    except (NotAuthenticated, DatabaseUnreachable):
        return False


@pytest.mark.faults
def test_a_service_whose_postgresql_stops_goes_on_for_those_it_knows(
    frail_facility: Any,
    use_settings: Callable[[dict[str, str]], None],
    tmp_path: Path,
    tiny_zoo: Any,
    serving: Callable[[Any], AbstractContextManager[str]],
) -> None:
    url = f"{frail_facility.settings()['MANYBEAM_DATABASE_URL']}?options=-csearch_path%3Dedge"
    use_settings({"MANYBEAM_DATABASE_URL": url})
    cache = TokenCache(lambda: Tokens(open_database()), tmp_path / "tokens.json")
    cache.start()
    known, _ = Tokens(open_database()).create("scan", ["predict"])
    with serving(service_of(tiny_zoo, cache)) as address, urllib3.PoolManager() as pool:

        def status(text: str) -> int:
            headers = {"Authorization": f"Bearer {text}"}
            answer = pool.request("GET", f"{address}/v1/ensembles", headers=headers, timeout=20)
            return int(answer.status)

        assert [status(known), status("mb-x")] == [200, 401]
        frail_facility.stop("postgres")
        assert [status(known), status("mb-x"), status(known)] == [200, 503, 200]
        assert int(pool.request("GET", f"{address}/v1/ensembles", headers=X).headers["retry-after"])
        frail_facility.mend()
        deadline = time.monotonic() + 20
        while status("mb-x") != 401:
            assert time.monotonic() < deadline, "the database was never asked again"
    cache.close()
    close_databases()


# -- over HTTP ------------------------------------------------------------------------------------
def service_of(zoo: Any, cache: TokenCache | None) -> Any:
    limits = ReplicaLimits(max_frame_px=100_000, is_local=cache is None)
    service = Service(ZooVersions(zoo, ["graphene"]))
    return api(service, limits, Meter(), lambda: "manybeam_frames_total 1.0\n", cache)


@pytest.fixture(scope="module")
def of_module(
    tiny_zoo: Any,
    tmp_path_factory: pytest.TempPathFactory,
    serving: Callable[[Any], AbstractContextManager[str]],
) -> Iterator[tuple[str, Tokens]]:
    folder = tmp_path_factory.mktemp("edge")
    database_url = f"sqlite:///{folder}/manybeam.db"
    tokens = Tokens(open_database(database_url))
    Instruments(open_database(database_url)).add("STEM-1")
    cache = TokenCache(lambda: Tokens(open_database(database_url)), folder / "tokens.json")
    cache.start()
    with serving(service_of(tiny_zoo, cache)) as address:
        yield address, tokens
    cache.close()


Ask = Callable[..., urllib3.BaseHTTPResponse]


@pytest.fixture
def ask(of_module: tuple[str, Tokens]) -> Iterator[Ask]:
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:

        def request(method: str, path: str, token: str = "", **headers: str) -> Any:
            body = None
            if method == "POST":
                stream = io.BytesIO()
                np.save(stream, FRAME)
                body = stream.getvalue()
            named = {"Content-Type": "application/x-npy", "Accept": "application/json", **headers}
            if token:
                named["Authorization"] = f"Bearer {token}"
            return pool.request(method, of_module[0] + path, body=body, headers=named)

        yield request


PREDICT, SELECT = "/v1/predict/graphene?pixel_size_pm=16", "/v1/select?pixel_size_pm=16"


def test_an_instruments_token_answers_for_its_instrument_only(
    ask: Ask, of_module: tuple[str, Tokens]
) -> None:
    text, _ = of_module[1].create("scan", ["predict", "select"], instrument="STEM-1")
    for path in (PREDICT, SELECT):
        filled, named = (ask("POST", path + more, text) for more in ("", "&instrument=STEM-1"))
        assert [one.json()["meta"]["instrument"] for one in (filled, named)] == ["STEM-1"] * 2
        other = ask("POST", f"{path}&instrument=STEM-2", text)
        assert (other.status, other.json()["type"]) == (403, "urn:manybeam:not-allowed")
        assert "STEM-2" in other.json()["detail"]


def test_a_program_without_an_instrument_may_name_any(
    ask: Ask, of_module: tuple[str, Tokens]
) -> None:
    text, _ = of_module[1].create("gateway", ["predict"])
    answer = ask("POST", f"{PREDICT}&instrument=STEM-9", text)
    assert answer.json()["meta"]["instrument"] == "STEM-9"


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", PREDICT, "predict"),
        ("POST", SELECT, "select"),
        ("GET", "/v1/ensembles", "predict"),
        ("GET", "/metrics", "predict"),
    ],
)
def test_each_path_wants_its_scope(
    ask: Ask, of_module: tuple[str, Tokens], method: str, path: str, scope: str
) -> None:
    right, _ = of_module[1].create("right", [scope])
    wrong, _ = of_module[1].create("wrong", ["ingest", "zoo:read"])
    none, unknown = ask(method, path), ask(method, path, "mb-x")
    assert ask(method, path, right).status == 200
    assert (none.status, unknown.status, ask(method, path, wrong).status) == (401, 401, 403)
    assert none.headers["www-authenticate"] == "Bearer"
    assert none.json()["type"] == "urn:manybeam:not-authenticated"
    assert "manybeam instrument token" in none.json()["hint"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/graphene"),
        ("GET", "/v2/models/auto/ready"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/models/graphene/infer"),
    ],
)
def test_the_open_inference_protocol_needs_the_same_token(
    ask: Ask, of_module: tuple[str, Tokens], method: str, path: str
) -> None:
    right, _ = of_module[1].create("right", ["predict"])
    wrong, _ = of_module[1].create("wrong", ["select"])
    none, other = ask(method, path), ask(method, path, wrong)
    assert (none.status, other.status) == (401, 403)
    assert none.json()["error"].startswith("this request needs a token")
    assert none.headers["www-authenticate"] == "Bearer"
    assert ask(method, path, right).status in (200, 415)  # what is sent is no tensor


@pytest.mark.slow
def test_an_expired_and_a_revoked_token_are_refused(
    ask: Ask, of_module: tuple[str, Tokens]
) -> None:
    brief, _ = of_module[1].create("brief", ["predict"], lifetime=timedelta(milliseconds=700))
    gone, made = of_module[1].create("gone", ["predict"])
    assert [ask("GET", "/v1/ensembles", one).status for one in (brief, gone)] == [200, 200]
    of_module[1].revoke(made.id)
    begun = time.monotonic()
    while ask("GET", "/v1/ensembles", gone).status != 401:
        assert time.monotonic() < begun + 10
    time.sleep(max(0.0, begun + 0.8 - time.monotonic()))
    assert "expired" in ask("GET", "/v1/ensembles", brief).json()["detail"]


OPEN = ["/healthz", "/readyz", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"]


@pytest.mark.parametrize("path", OPEN)
def test_a_balancer_needs_no_token(ask: Ask, path: str) -> None:
    assert ask("GET", path, Host="manybeam.lab").status == 200


def test_openapi_says_which_paths_need_a_token(ask: Ask) -> None:
    told = ask("GET", "/openapi.json").json()
    needing = {
        path
        for path, verbs in told["paths"].items()
        if any(verb.get("security") == [{"token": []}] for verb in verbs.values())
    }
    health = {"/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready"}
    assert needing == set(told["paths"]) - health
    assert told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_who_is_refused_costs_no_reading_of_the_query(ask: Ask) -> None:
    assert ask("POST", "/v1/predict/graphene?want=nonsense").status == 401


def test_a_copy_that_grows_old_is_told_by_readyz(
    tokens: Tokens,
    tmp_path: Path,
    tiny_zoo: Any,
    serving: Callable[[Any], AbstractContextManager[str]],
) -> None:
    clock = Clock(0.0)
    cache = TokenCache(lambda: tokens, tmp_path / "tokens.json", clock=clock)
    cache.read()
    with serving(service_of(tiny_zoo, cache)) as address:
        fresh = json.loads(urllib3.request("GET", f"{address}/readyz").data)
        clock.at = 37.0
        old = json.loads(urllib3.request("GET", f"{address}/readyz").data)
        clock.at = AWAY_S + 1
        gone = json.loads(urllib3.request("GET", f"{address}/readyz").data)
    assert gone["degraded"] == ["no token can be checked: the database does not answer"]
    assert fresh["degraded"] == []
    assert old["degraded"] == ["tokens are checked from a copy of 37 s ago"]
