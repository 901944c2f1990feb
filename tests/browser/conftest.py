"""A real browser before a real `manybeam web` over a real embedded zoo."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from manybeam.data.simulation import SIMULATOR
from manybeam.db.deployment import open_database
from manybeam.db.serving.rollouts import Rollouts
from manybeam.spec import Library
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Score

ROOT = Path(__file__).parents[2]
LIBRARY = Library(ROOT / "zoo")
CONDITIONS = tuple(name for name in LIBRARY.conditions if name.startswith("graphene-60kv"))[:12]
LOWDOSE = "graphene-60kv-lowdose"
NOWHERE = "http://127.0.0.1:9"  # the port of discard: nobody listens
CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FRAMES, ATOMS = 16, 60
COMMAND = ("-m", "manybeam", "web")


@dataclass
class Server:
    """One `manybeam web`, in a process of its own.

    Attributes:
        home: folder of its platform.
        variables: settings beside those the environment has.
        port: 0 until it runs; then the same at every start.
    """

    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: "subprocess.Popen[str] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.home / "admin-token").read_text().strip()

    def start(self) -> None:
        """Start it and wait until it has read the zoo, or found that it cannot."""
        settings = {"MANYBEAM_HOME": str(self.home), "MANYBEAM_ZOO": str(ROOT / "zoo")}
        with (self.home / "web.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND, f"--port={self.port}", "--refresh=0.3"],
                env={**os.environ, "OMP_NUM_THREADS": "1", **settings, **self.variables},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        assert said.startswith("http://"), (self.home / "web.log").read_text()
        self.port = urlsplit(said).port or 0
        deadline = time.monotonic() + 60
        while not self._has_looked():
            assert time.monotonic() < deadline, (self.home / "web.log").read_text()
            time.sleep(0.05)

    def _has_looked(self) -> bool:
        """Tell whether it has read the zoo, or found that it cannot."""
        with urllib.request.urlopen(f"{self.url}/healthz", timeout=60) as answer:
            told = json.load(answer)
        return bool(told["is_fresh"] or told["trouble"])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def serving(home: Path, **variables: str) -> Iterator[Server]:
    """Serve the platform of a folder until the block ends."""
    server = Server(home, variables)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()


def drawn(quality: float, condition: str, member: int, seed: int) -> Score:
    """Return a score as a measurement leaves it: each of 60 atoms in 16 frames found or not."""
    rng = random.Random(f"{seed} {condition} {member}")
    hits = [sum(rng.random() < quality for _ in range(ATOMS)) for _ in range(FRAMES)]
    counts = tuple((hit, ATOMS - hit, ATOMS - hit) for hit in hits)
    f1 = sum(hits) / (ATOMS * FRAMES)
    values = {"f1": f1, "f1_low": f1 - 0.02, "f1_high": min(f1 + 0.02, 1.0), "frames": FRAMES}
    values |= {"precision": f1, "recall": f1, "ece": 0.03, "rmse_pm": 12 * (1.1 - f1)}
    digest = f"{LIBRARY.conditions[condition].digest}-{SIMULATOR}"
    return Score(member, condition, digest, values, counts, datetime.now(UTC), "1.0")


def scores(
    count: int, quality: Callable[[str], float], conditions: Sequence[str] = CONDITIONS
) -> list[Score]:
    """Return the scores of an ensemble that is better than its members, and of the classical."""
    better = {ENSEMBLE: 0.05, CLASSICAL: -0.2}
    return [
        drawn(min(quality(condition) + better.get(row, 0.0), 1.0), condition, row, seed=7)
        for condition in conditions
        for row in (ENSEMBLE, *range(count), CLASSICAL)
    ]


@pytest.fixture(scope="session")
def make_home(
    tmp_path_factory: pytest.TempPathFactory, tiny_members: Callable[[int], list[Any]]
) -> Callable[[], Path]:
    """Make platforms with four versions.

    `graphene@1` serves. `graphene@2`, the candidate and its shadow, is better but for low dose,
    where it is worse. `weak@1` was never measured at low dose, `old@1` is archived.
    """
    from manybeam.zoo.registry import ARCHIVED_TAG, Zoo

    def first() -> Path:
        home = tmp_path_factory.mktemp("platform")
        zoo = Zoo(f"sqlite:///{home}/zoo.db", (home / "weights").as_uri(), home / "cache" / "zoo")
        job = {"kind": "train", "recipe": "graphene"}
        three, two = tiny_members(3), tiny_members(2)
        zoo.register("graphene", three, job=job, scores=scores(3, lambda _: 0.7), alias="serving")
        second = scores(3, lambda name: 0.45 if name == LOWDOSE else 0.8)
        zoo.register(
            "graphene", three, job=job, scores=second, alias="candidate", parent="graphene@1"
        )
        elsewhere = [name for name in CONDITIONS if name != LOWDOSE]
        weak = scores(2, lambda _: 0.5, elsewhere)
        zoo.register("weak", two, job=job, scores=weak, failed=("02: loss is NaN",))
        zoo.register("old", two, job=job, scores=weak)
        zoo.tag("old@1", ARCHIVED_TAG, datetime.now(UTC).isoformat(timespec="seconds"))
        _add_shadow(home)
        return home

    template = first()

    def make() -> Path:
        return shutil.copytree(template, tmp_path_factory.mktemp("copy") / "home")

    return make


def _add_shadow(home: Path) -> None:
    """Let the candidate be a shadow of the version that serves, with two instruments."""
    database = open_database(f"sqlite:///{home}/manybeam.db")
    rollouts = Rollouts(database)
    number = rollouts.start("shadow", "graphene@2", base="graphene@1", who="ada").id
    side = {"frames": 40, "ms": {"40": 38, "48": 2}}
    between = {"agreed": 900, "only_base": 100, "only_new": 50}
    sums = {"base": side, "new": side, "between": between, "skipped": 3}
    rollouts.add(number, {"STEM-1": sums, "STEM-2": sums})
    database.close()


@pytest.fixture(scope="module")
def server(make_home: Callable[[], Path]) -> Iterator[Server]:
    """One server for the tests of a module that change nothing."""
    with serving(make_home()) as running:
        yield running


@pytest.fixture(scope="session")
def fill_catalogue() -> Callable[[Path, int], None]:
    """Write a catalogue of many members, as a refresh leaves it when it has read them."""
    from manybeam.zoo.catalogue import Catalogue
    from manybeam.zoo.records import MemberRecord, Record, VersionEntry
    from manybeam.zoo.registry import Zoo

    def versions(count: int) -> Iterator[tuple[VersionEntry, Record, list[Score]]]:
        rng, now = random.Random(0), datetime.now(UTC)
        members = tuple(
            MemberRecord(i, i, "graphene-nominal", "big@1", {}, "", "", 0.1, 1.0, "m", "", 1, "")
            for i in range(20)
        )
        for number in range(count // 20):
            name = f"graphene-{number:03d}"
            rows = [
                Score(
                    row,
                    one,
                    f"{LIBRARY.conditions[one].digest}-{SIMULATOR}",
                    {"f1": rng.random()},
                    taken=now,
                )
                for row in (ENSEMBLE, *range(20))
                for one in CONDITIONS
            ]
            record = Record(name, 1, members, now, {"kind": "train"})
            yield VersionEntry(name, 1, f"run-{number}", {}), record, rows

    def fill(home: Path, count: int) -> None:
        zoo = Zoo(NOWHERE, "file:///nowhere", home / "cache" / "zoo")
        catalogue = Catalogue(zoo, home / "cache" / "catalogue.db", LIBRARY)
        catalogue._write(versions(count))
        now = datetime.now(UTC).isoformat()
        catalogue._file.write(lambda db: db.set_fact("as_of", now))

    return fill


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium for one module: Playwright's event loop, while it runs, forbids others here."""
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@dataclass
class Seen:
    """What pages said and asked for, so that a test can hold it against the rules."""

    errors: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    def watch(self, page: Page) -> None:
        page.on(
            "console", lambda one: self.errors.append(one.text) if one.type == "error" else None
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.origins.add(urlsplit(request.url).netloc))


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages; afterwards each must have asked one origin only, and logged no error.

    `errors_are_meant` says that the server is made to fail in the test, which a console tells.
    """
    opened: list[tuple[BrowserContext, Seen, bool]] = []

    def make(*, errors_are_meant: bool = False, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
        context.set_default_timeout(15_000)
        seen, page = Seen(), context.new_page()
        seen.watch(page)
        opened.append((context, seen, errors_are_meant))
        return page

    yield make
    for context, seen, errors_are_meant in opened:
        context.close()
        assert len(seen.origins) <= 1, f"asked of other origins: {seen.origins}"
        assert errors_are_meant or not seen.errors, seen.errors
