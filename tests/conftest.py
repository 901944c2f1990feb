"""Fixtures that several test modules share."""

import gc
import json
import os
import pickle
import selectors
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psutil
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from manybeam.settings import settings

# The same examples in every run, and no times: what is red is red for everybody, and so is what is
# green. `pytest --hypothesis-profile=default` looks at others.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")

# Python looks for garbage after every 700 objects, which takes a tenth of the time of all tests.
gc.set_threshold(20_000, 20, 20)

# A shell hands a deaf ear for Ctrl-C on to what it runs in the background; tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Networks are compiled once for all tests, not in every home of a test. Other processes inherit it.
OWN_GRAPHS = ""
if "MANYBEAM_GRAPHS" not in os.environ:
    OWN_GRAPHS = os.environ["MANYBEAM_GRAPHS"] = tempfile.mkdtemp(prefix="manybeam-graphs-")

SERVICES = Path(__file__).parents[1] / "infra" / "services.py"

# What takes long to start: the fixture that starts it, and the marks of a test that asks for it.
STACKS: dict[str, tuple[str, ...]] = {
    "demo": ("cluster", "slow"),  # three minutes in one test: last, it would run alone
    "frail_facility": ("s3", "postgres"),
    "cluster": ("cluster",),
    "facility": ("s3", "postgres"),
    "browser": ("browser",),
    "rehearsed": ("slow",),
    "frail_s3": ("s3",),
    "s3_server": ("s3",),
    "postgres_server": ("postgres",),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they ask for, and run those that share something expensive in a row.

    Rows of what takes longest come first. A file's other tests stay together too, files with slow
    tests before others, so that no process is left alone with a long row at the end; otherwise
    everything keeps the order of the shuffle.
    """
    places = {stack: place for place, stack in enumerate(STACKS)}
    rows = {}
    for item in items:
        stacks = _stacks(item)
        for mark in {mark for stack in stacks for mark in STACKS[stack]}:
            item.add_marker(mark)
        rows[item.nodeid] = row = (*stacks, item.nodeid.partition("::")[0])[0]
        item.stash[PLACE] = places.setdefault(row, len(places))
    slow = {rows[item.nodeid] for item in items if item.get_closest_marker("slow")}
    slow.update(STACKS)
    items.sort(key=lambda item: (rows[item.nodeid] not in slow, item.stash[PLACE]))
    if getattr(config, "workerinput", {}).get("workerid") == "gw0":
        Path(config.workerinput["rows"]).write_text(json.dumps(rows))


def _stacks(item: pytest.Item) -> list[str]:
    """Return the stacks that a test asks for, by its fixtures or by a mark of its parameter."""
    names = {mark.args[0] for mark in item.iter_markers("needs")}
    names.update(getattr(item, "fixturenames", ()))
    return [stack for stack in STACKS if stack in names]


class Rows(LoadScopeScheduling):
    """Gives a process of pytest-xdist whole rows, so that a stack is started in one process only.

    `--dist=loadgroup` would do so, but pytest 9.2 does not let it write its groups into names.
    """

    def _split_scope(self, nodeid: str) -> str:
        return self._rows[nodeid]

    @cached_property
    def _rows(self) -> dict[str, str]:
        return dict(json.loads(self.config.stash[ROWS].read_text()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """End each stack after the last test that asks for it: idle servers take processor time."""
    done = yield
    for stack in list(STACKS)[: nextitem.stash[PLACE] if nextitem else 0]:
        ENDS.pop(stack, lambda: None)()
    return done


ROWS = pytest.StashKey[Path]()
PLACE = pytest.StashKey[int]()  # of a test's row among all rows
ENDS: dict[str, Callable[[], None]] = {}  # what ends a stack that runs


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rows:
    config.option.loadscopereorder = False
    return Rows(config, log)


def pytest_configure_node(node: Any) -> None:
    """Tell a process where to write which row each test is in; the first process does."""
    if ROWS not in node.config.stash:
        node.config.stash[ROWS] = Path(tempfile.mkdtemp(prefix="manybeam-rows-")) / "rows.json"
    node.workerinput["rows"] = str(node.config.stash[ROWS])


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN_GRAPHS:
        shutil.rmtree(OWN_GRAPHS, ignore_errors=True)
    if ROWS in config.stash:
        shutil.rmtree(config.stash[ROWS].parent)


@pytest.fixture(scope="session")
def ends() -> dict[str, Callable[[], None]]:
    """What ends each running stack, by its name; a fixture that starts one adds it."""
    return ENDS


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real frames beside the checkout; their absence is a failure, never a skip."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    assert folder.is_dir(), f"real frames expected in {folder}; put them there"
    return folder


@dataclass
class Services:
    """Real services of `infra/services.py` in a folder of their own, on free ports.

    Attributes:
        folder: where they keep their data, logs and secrets.
        ports: those of the services that were started; they come back on them.
    """

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, *names: str, port: int = 0) -> None:
        """Start services; the reason is told if one does not come up. 0 is any free port."""
        self._run("start", *names, *(f"--port={name}={port}" for name in names))
        for name in names:
            url = json.loads((self.folder / f"{name}.json").read_text())["url"]
            self.ports[name] = urlsplit(url).port or 0

    def mend(self) -> None:
        """Let what was frozen go on, and start what has ended, on the ports they had."""
        gone = [name for name in self.ports if not self._goes_on(name)]
        ports = [f"--port={name}={self.ports[name]}" for name in gone]
        if gone:
            self._run("start", *gone, *ports)
        if "mlflow" in self.ports:
            self._wait_for_mlflow()

    def _wait_for_mlflow(self) -> None:
        """Wait until it has got over the loss of its database."""
        search = "/api/2.0/mlflow/experiments/search?max_results=1"
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                urllib.request.urlopen(self.settings()["MANYBEAM_TRACKING_URI"] + search).close()
                return
            assert time.monotonic() < deadline, "MLflow never came back"
            time.sleep(0.2)

    def empty_zoo(self) -> None:
        """Remove what other tests registered: a listing reads all there is."""
        with self._tables() as db:
            db.execute("TRUNCATE registered_models, logged_models, runs, inputs, datasets CASCADE")
            db.execute("DELETE FROM experiments WHERE experiment_id <> 0")

    def read_zoo(self) -> dict[str, bytes]:
        """Return the rows of MLflow's tables, by table, to be written back later."""
        with self._tables() as db:
            found = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            names = sorted({name for (name,) in found} - {"alembic_version"})
            rows = {}
            for name in names:
                with db.cursor().copy(f'COPY "{name}" TO STDOUT') as copy:
                    rows[name] = b"".join(copy)
        return {name: content for name, content in rows.items() if content}

    def write_zoo(self, rows: dict[str, bytes]) -> None:
        """Write rows of MLflow's tables instead of those that there are; files stay."""
        with self._tables() as db:
            db.execute("SET session_replication_role = replica")  # rows may refer to later tables
            for name in rows:
                db.execute(f'TRUNCATE "{name}" CASCADE')
            for name, content in rows.items():
                with db.cursor().copy(f'COPY "{name}" FROM STDIN') as copy:
                    copy.write(content)

    def _tables(self) -> Any:
        """Return a connection to the database of MLflow, and of Manybeam's schemas."""
        import psycopg

        return psycopg.connect(self.settings()["MANYBEAM_DATABASE_URL"].replace("+psycopg", ""))

    def _goes_on(self, name: str) -> bool:
        """Let a service go on if it was frozen; say whether it runs at all."""
        try:
            process = psutil.Process(self.pid(name))
            process.resume()
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False
        return process.status() != psutil.STATUS_ZOMBIE

    def stop(self, *names: str) -> None:
        """Stop services by the pids they were started with; nobody needs their data."""
        self._run("stop", *names, "--now")

    def pid(self, name: str) -> int:
        """Return the process of a service."""
        return int(json.loads((self.folder / f"{name}.json").read_text())["pid"])

    def settings(self) -> dict[str, str]:
        """Return the environment that points Manybeam at them."""
        found = {}
        for path in self.folder.glob("*.json"):
            found.update(json.loads(path.read_text())["settings"])
        return found

    def _run(self, verb: str, *more: str) -> None:
        argv = [sys.executable, str(SERVICES), verb, *more, "--dir", str(self.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def new_services() -> Iterator[Callable[[], Services]]:
    """Make folders for real services; all in them are stopped at the end.

    Not in pytest's own folder: PostgreSQL under root runs as another user, who must reach it.
    """
    made: list[tuple[Services, subprocess.Popen[bytes]]] = []

    def make() -> Services:
        folder = Path(tempfile.mkdtemp(prefix="manybeam-services-"))
        folder.chmod(0o755)
        # A session that is killed runs no teardown; this one watches and stops its servers.
        watch = ["stop", "--now", "--after", str(os.getpid()), "--dir", str(folder)]
        argv = [sys.executable, str(SERVICES), *watch]
        made.append((Services(folder), subprocess.Popen(argv, start_new_session=True)))
        return made[-1][0]

    yield make
    for services, watcher in made:
        watcher.kill()
        watcher.wait()
        services.stop()
        shutil.rmtree(services.folder)


@pytest.fixture(scope="session")
def s3_server(new_services: Callable[[], Services]) -> Services:
    """One SeaweedFS for the session, started at the first use."""
    services = new_services()
    services.start("seaweedfs")
    ENDS["s3_server"] = services.stop
    return services


@pytest.fixture(scope="session")
def facility(new_services: Callable[[], Services]) -> Services:
    """One SeaweedFS, PostgreSQL and MLflow server for the session, started at the first use."""
    services = new_services()
    services.start("seaweedfs", "postgres", "mlflow")
    ENDS["facility"] = services.stop
    return services


@pytest.fixture(scope="session")
def postgres_server(new_services: Callable[[], Services]) -> Services:
    """One PostgreSQL for the session, started at the first use."""
    services = new_services()
    services.start("postgres")
    ENDS["postgres_server"] = services.stop
    return services


def own_schema(services: Services) -> str:
    """Return the URL of a part of PostgreSQL that nobody has used."""
    url = services.settings()["MANYBEAM_DATABASE_URL"]
    return f"{url}?options=-csearch_path%3Dt{uuid.uuid4().hex}"


@pytest.fixture
def new_schema(postgres_server: Services) -> Callable[[], str]:
    """Make URLs of parts of a real PostgreSQL that nobody has used."""
    return lambda: own_schema(postgres_server)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.needs("postgres_server")),
    ]
)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: a SQLite file, and a schema of a real PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/manybeam.db"
    return own_schema(request.getfixturevalue("postgres_server"))


@pytest.fixture
def database(database_url: str) -> Any:
    """A database of its own with the newest tables."""
    from manybeam.db.deployment import open_database

    found = open_database(database_url)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _give_connections_back() -> Iterator[None]:
    """Leave no connection open after a test: a PostgreSQL has a hundred for all of them."""
    yield
    if opened := sys.modules.get("manybeam.db.deployment"):
        opened.close_databases()


@pytest.fixture(autouse=True, scope="module")
def _close_the_files_of_mlflow() -> Iterator[None]:
    """Leave no database of MLflow open after a module: it closes none, and files are bounded."""
    yield
    for name in ("tracking", "model_registry"):
        if module := sys.modules.get(f"mlflow.store.{name}.sqlalchemy_store"):
            for engine in list(module.SqlAlchemyStore._engine_map.values()):
                engine.dispose()


@pytest.fixture(autouse=True)
def _leave_the_settings_alone() -> Iterator[None]:
    """Fail a test that leaves a setting behind: the ones after it would run with it."""
    before = _settings_of_environment()
    yield
    after = _settings_of_environment()
    if after != before:
        for name in after.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    settings.cache_clear()  # they may have been read while the test had changed one
    assert after == before


def _settings_of_environment() -> dict[str, str]:
    names = ("MANYBEAM_", "RAY_USE_TLS")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


@pytest.fixture
def lapse() -> Callable[[], None]:
    """Let every lease in the settings' database end, as time does."""
    from datetime import timedelta

    from sqlalchemy import update

    from manybeam.db.database import now
    from manybeam.db.deployment import open_database
    from manybeam.db.tables import LockRow

    def end() -> None:
        with open_database().writing() as connection:
            over = now(connection) - timedelta(seconds=1)
            connection.execute(update(LockRow).values(expires=over))

    return end


@pytest.fixture(scope="session")
def frail_services(new_services: Callable[[], Services]) -> Services:
    """The services of `frail_facility`."""
    services = new_services()
    services.start("seaweedfs", "postgres", "mlflow")
    ENDS["frail_facility"] = services.stop
    return services


@pytest.fixture
def frail_facility(frail_services: Services) -> Iterator[Services]:
    """Those three, to be stopped, killed and frozen; after the test they all run again."""
    yield frail_services
    frail_services.mend()


@pytest.fixture(scope="session")
def frail_s3_services(new_services: Callable[[], Services]) -> Services:
    """The server of `frail_s3`."""
    services = new_services()
    services.start("seaweedfs")
    ENDS["frail_s3"] = services.stop
    return services


@pytest.fixture
def frail_s3(frail_s3_services: Services) -> Iterator[Services]:
    """A SeaweedFS to be killed and frozen; after the test it runs again. Take names of your own."""
    yield frail_s3_services
    frail_s3_services.mend()


@pytest.fixture
def use_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set MANYBEAM_ variables for one test; `settings()` is read afresh."""

    def use(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()

    return use


@pytest.fixture
def s3_url(s3_server: Services, use_settings: Callable[[dict[str, str]], None]) -> str:
    """A prefix of its own in the bucket of the session's S3 server, with the settings for it."""
    found = s3_server.settings()
    use_settings(found)
    return f"{found['MANYBEAM_STORE']}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def tiny_members() -> Callable[[int], list[Any]]:
    """Make members of a small real network with drawn weights: they answer, if not wisely."""
    import torch

    from manybeam.learn.nets.member import Member
    from manybeam.learn.nets.networks import build
    from manybeam.spec.recipe import MemberPlan, Network, Recipe

    def make(count: int) -> list[Member]:
        plans = tuple(MemberPlan(seed=seed, policy="graphene-nominal") for seed in range(count))
        recipe = Recipe(id="tiny", network=Network(filters=2, levels=2), members=plans)
        made = []
        for plan in plans:
            with torch.random.fork_rng():
                torch.manual_seed(plan.seed)
                weights = build(recipe.network).state_dict()
            # Twice as large: as drawn, they are too timid to call anything an atom.
            loud = {n: v * 2 if v.is_floating_point() else v.clone() for n, v in weights.items()}
            made.append(
                Member(plan.seed, plan.seed, plan.policy, recipe, loud, (0.5,), 0.1, "0" * 32)
            )
        return made

    return make


@pytest.fixture(scope="session")
def tiny_zoo(
    tmp_path_factory: pytest.TempPathFactory, tiny_members: Callable[[int], list[Any]]
) -> Any:
    """A zoo in a folder that serves `graphene`: two versions of three members, one failed."""
    from manybeam.zoo.registry import Zoo

    folder = tmp_path_factory.mktemp("tiny-zoo") / "home"
    folder.mkdir()
    zoo = Zoo(f"sqlite:///{folder}/zoo.db", (folder / "weights").as_uri(), folder / "cache" / "zoo")
    members = tiny_members(3)
    zoo.register("graphene", members[:2], job={"kind": "train"})
    zoo.register(
        "graphene", members, job={"kind": "train"}, alias="serving", failed=("03: loss is NaN",)
    )
    return zoo


@pytest.fixture(scope="session")
def serving() -> Callable[[Any], AbstractContextManager[str]]:
    """Serve an ASGI application by a real server on a free port of this process, for a block."""
    import uvicorn

    @contextmanager
    def serve(app: Any) -> Iterator[str]:
        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()

    return serve


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch take one core: small networks train no faster on two, and slower on a busy one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Rehearsed:
    """Small members that were really trained, and what they did on frames of known truth.

    Attributes:
        members: three, each trained under one policy.
        ensemble: of them.
        policies: what the frames of the set were drawn from, in turn.
        table: the calibration set.
    """

    members: list[Any]
    ensemble: Any
    policies: list[Any]
    table: Any

    def drawn(self, number: int, seed: int = 99) -> Any:
        """Return a frame under a condition drawn as those of the set: simulated, with truth.

        With the seed of the set it is the frame of that number.
        """
        import numpy as np

        from manybeam.data.simulation.simulate import simulate
        from manybeam.learn.analysis.condition_inference import draw

        policy, rng = (
            self.policies[number % len(self.policies)],
            np.random.default_rng((seed, number)),
        )
        condition = draw(policy, rng)
        return simulate(condition, 1, seed=int(rng.integers(2**31)), shape=policy.scan.shape)


TABLE_SEED, TABLE_ROWS = 3, 132


@pytest.fixture(scope="session")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """Three members for good, dirty and coarse frames, rehearsed: about fifteen seconds.

    The first process of a run that needs them makes them for the others.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept = folder / "rehearsed.pickle"
    with FileLock(folder / "rehearsed.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(_rehearse()))
        made: Rehearsed = pickle.loads(kept.read_bytes())
        return made


def _rehearse() -> Rehearsed:
    import torch

    from manybeam.data.tiles import Tiles
    from manybeam.learn.adaptation.pseudo_labels import simulated_tiles
    from manybeam.learn.analysis.calibration_set import measure_calibration_set
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.training.member import train_member
    from manybeam.spec import Library, Recipe

    library = Library(SERVICES.parents[1] / "zoo")
    names = [f"graphene-{name}" for name in ("nominal", "dirty", "coarse")]
    recipe = Recipe.model_validate(
        {
            "id": "small",
            "network": {"filters": 8, "levels": 3},
            "training": {"steps": 120, "batch": 8, "learning_rate": 4e-3},
            "tiles": {"tile_px": 48, "pixel_size_pm": 20, "mask_radius_pm": 45},
            "members": [{"seed": i + 1, "policy": name} for i, name in enumerate(names)],
        }
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    members = []
    for index, name in enumerate(names):
        inputs, targets = simulated_tiles(library.policies[name], recipe.tiles, count=48, seed=1)
        known = Tiles(inputs, targets, (name,), name)
        members.append(train_member(recipe, recipe.members[index], index, known))
    general, hard = library.policies["graphene-general"], library.policies["graphene-hard"]
    own = [library.policies[name] for name in names]
    policies = [own[0], general, own[1], general, own[2], hard]
    ensemble = Ensemble(members)
    table = measure_calibration_set(ensemble, policies, 0, TABLE_ROWS, seed=TABLE_SEED)
    torch.set_num_threads(before)
    return Rehearsed(members, ensemble, policies, table)


@pytest.fixture(scope="session")
def rehearsed_home(
    tmp_path_factory: pytest.TempPathFactory, rehearsed: Rehearsed, tiny_members: Any
) -> Path:
    """A platform's folder: `graphene@1` was never rehearsed, `graphene@2` was, and serves."""
    from manybeam.zoo.calibration_sets import record_calibration_set

    home = tmp_path_factory.mktemp("rehearsed") / "home"
    home.mkdir()
    zoo = zoo_of(home)
    zoo.register("graphene", tiny_members(2), job={"kind": "train"})
    zoo.register("graphene", rehearsed.members, job={"kind": "train"}, alias="serving")
    record_calibration_set(
        zoo, "graphene@2", rehearsed.table, tuple(one.id for one in rehearsed.policies)
    )
    return home


@pytest.fixture(scope="session")
def rehearsed_zoo(rehearsed_home: Path) -> Any:
    """The zoo of that platform."""
    return zoo_of(rehearsed_home)


def zoo_of(home: Path) -> Any:
    """Return the zoo that commands find in a platform's folder."""
    from manybeam.zoo.registry import Zoo

    return Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables: they take two seconds to make."""
    from manybeam.zoo.registry import Zoo

    path = tmp_path_factory.mktemp("zoo") / "empty.db"
    Zoo(f"sqlite:///{path}", "file:///nowhere").ls()
    return path


@pytest.fixture
def embedded(tmp_path: Path, empty_database: Path) -> Any:
    """An empty zoo of its own in the test's folder: SQLite and a folder."""
    shutil.copy(empty_database, tmp_path / "zoo.db")
    return zoo_of(tmp_path)


@pytest.fixture(scope="session")
def zoo_servers() -> dict[str, Services]:
    """The services of each MLflow that a test's zoo was on, by its address."""
    return {}


@pytest.fixture
def zoo_on(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    use_settings: Callable[[dict[str, str]], None],
    zoo_servers: dict[str, Services],
) -> Callable[[str], Any]:
    """Make the zoo of a stack, or the `embedded` one, that of the settings."""
    from manybeam.zoo.registry import Zoo

    def make(stack: str) -> Any:
        if stack == "embedded":
            use_settings({"MANYBEAM_HOME": str(tmp_path)})
            return request.getfixturevalue("embedded")
        services = request.getfixturevalue(stack)
        services.empty_zoo()
        found = services.settings()
        own = {"MANYBEAM_HOME": str(tmp_path), "MANYBEAM_DATABASE_URL": own_schema(services)}
        own["MANYBEAM_STORE"] = f"{found['MANYBEAM_STORE']}/{uuid.uuid4().hex}"
        use_settings({**found, **own})
        zoo_servers[found["MANYBEAM_TRACKING_URI"]] = services
        return Zoo(found["MANYBEAM_TRACKING_URI"], "", tmp_path / "cache" / "zoo")

    return make


@pytest.fixture(scope="session")
def zoo_copies() -> dict[tuple[str, str], Any]:
    """What `fill` writes again: the folder of an embedded zoo, or MLflow's rows and files."""
    return {}


@pytest.fixture
def fill(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    zoo_servers: dict[str, Services],
    zoo_copies: dict[tuple[str, str], Any],
) -> Callable[[Any, Callable[[Any], None]], None]:
    """Fill the empty zoo of a test by a function, and that of the next test by a copy.

    To register a version takes half a second. On servers, Manybeam's own database is not copied.
    """
    from manybeam.data.store import open_store
    from manybeam.db.deployment import close_databases

    def on_servers(server: Services, key: tuple[str, str], make: Callable[[], None]) -> None:
        files = open_store("s3://mlflow/artifacts")  # the bucket of `infra/services.py`
        if key in zoo_copies:
            rows, contents = zoo_copies[key]
            server.write_zoo(rows)
            for path, content in contents.items():
                files.put(path, content)
            return
        before = set(files.list())
        make()
        contents = {path: files.get(path) for path in set(files.list()) - before}
        zoo_copies[key] = server.read_zoo(), contents

    def in_folder(zoo: Any, key: tuple[str, str], make: Callable[[], None]) -> None:
        if key in zoo_copies:
            shutil.copytree(zoo_copies[key], tmp_path, dirs_exist_ok=True)
            zoo.tracking.follow_moved()
            return
        make()
        close_databases()
        zoo_copies[key] = shutil.copytree(tmp_path, tmp_path_factory.mktemp("copy") / "home")

    def write(zoo: Any, make: Callable[[Any], None]) -> None:
        key = (zoo.address, f"{make.__module__} {make.__qualname__}")
        if server := zoo_servers.get(zoo.address):
            on_servers(server, key, lambda: make(zoo))
        else:
            in_folder(zoo, ("embedded", key[1]), lambda: make(zoo))

    return write


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("facility", marks=pytest.mark.needs("facility"), id="server"),
    ]
)
def zoo(request: pytest.FixtureRequest, zoo_on: Callable[[str], Any]) -> Any:
    """A zoo on SQLite and a folder, and one on MLflow's server, PostgreSQL and S3.

    It is empty. The settings point at it, so that what opens `Zoo()` or the store finds the same.
    """
    return zoo_on(request.param)


@pytest.fixture
def name() -> str:
    """A name nobody used."""
    return f"graphene-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def idle_sockets() -> Iterator[Callable[[int], int]]:
    """Open thousands of connections to a port of loopback that never say anything."""
    import resource

    opened: list[socket.socket] = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def connect(port: int) -> int:
        wanted = 4300
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted + 1000), before[1]))
        for _ in range(wanted):
            one = socket.socket()
            opened.append(one)
            one.settimeout(0)
            one.connect_ex(("127.0.0.1", port))  # those that find no room wait for it
        return len(opened)

    yield connect
    for one in opened:
        one.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until something is observed, at most a given time."""

    def wait(is_true: Callable[[], Any], patience_s: float = 10.0) -> None:
        end_s = time.monotonic() + patience_s
        while not is_true():
            assert time.monotonic() < end_s, "it was never observed"
            time.sleep(0.005)

    return wait


class Wire:
    """A TCP proxy in front of a server: it can be cut, so that nothing passes, and mended.

    Attributes:
        url: where to connect.
    """

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._to, self._cut, self.is_silent = (host, int(port)), threading.Event(), False
        self._open: list[socket.socket] = []
        self._server: socketserver.ThreadingTCPServer | None = None
        self._port = 0
        self.mend()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        """Let connections pass, from now on."""
        pump = self._pump

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                pump(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.is_silent = False
        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones pass."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        if self._server is not None:
            self.cut()

    def _pump(self, near: socket.socket) -> None:
        with (
            socket.create_connection(self._to) as far,
            selectors.DefaultSelector() as ready,
            suppress(OSError),
        ):
            self._open += [near, far]
            ready.register(near, selectors.EVENT_READ, (near, far))
            ready.register(far, selectors.EVENT_READ, (far, near))
            while True:
                for one, _ in ready.select(0.5):
                    source, target = one.data
                    data = source.recv(65536)
                    if not data:
                        return
                    while self.is_silent:
                        if not self._server:
                            return
                        time.sleep(0.01)
                    target.sendall(data)


@pytest.fixture
def new_wire() -> Iterator[Callable[[str], Wire]]:
    """Make networks before servers, which a test may cut."""
    made: list[Wire] = []

    def make(url: str) -> Wire:
        made.append(Wire(url))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the client, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(SERVICES.parents[1] / "platform" / "client", folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, folder, source], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    assert found.name == "manybeam_client-0.1.0-py3-none-any.whl"
    return found
