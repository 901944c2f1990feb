"""`manybeam demo`: the main job from nothing to a report, on simulated frames.

Each step stores its result in the output folder, so a second run continues where the first one
stopped: finished members are not trained again, and a registered version is used.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from manybeam.cli.terminal.output import say
from manybeam.data.disk import write_files
from manybeam.errors import InvalidInput

# With the settings of a facility, the demo would register its members in the zoo of the facility.
FACILITY = ("STORE", "TRACKING_URI", "ARTIFACTS", "DATABASE_URL", "RAY_ADDRESS")


def run(
    *,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("manybeam-demo"),
    job: Annotated[Path, typer.Option(help="The training job to run.")] = Path(
        "jobs/quickstart.yaml"
    ),
    drift: Annotated[str, typer.Option(help="Condition of the unseen frames.")] = (
        "graphene-60kv-mix-c"
    ),
    frames: Annotated[
        int, typer.Option(min=200, help="Frames to calibrate on; fewer take less time.")
    ] = 400,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8100,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
) -> None:
    """Train a small ensemble on simulated frames and report its results: the main job.

    It simulates, trains, measures, registers, serves, predicts, selects and adapts.

    Example: manybeam demo --out manybeam-demo --keep
    """
    from manybeam.spec.starter import job_here

    job = job_here(job)
    if not job.is_file():
        raise InvalidInput(
            f"no job file {job}",
            "the demo runs one from the project's jobs folder",
            "give the path of a job, or leave --job out",
        )
    _check_port(port, out)
    out.mkdir(parents=True, exist_ok=True)
    _point_settings_at(out, port)
    from manybeam.cli.demo.chapters import write_report
    from manybeam.cli.demo.story import Story

    steps = Steps(out / "demo.json")
    story = Story(job, drift, out, frames, steps.facts)
    try:
        for title, step in story.steps():
            with steps.step(title) as show:
                for line in step():
                    show(line)
        with steps.step("write the report"):
            write_report(story, out / "report.html")
    finally:
        if keep:
            say(
                f"what was started stays (the service at http://127.0.0.1:{port}); stop it with: "
                f"MANYBEAM_HOME={out / 'platform'} manybeam down"
            )
        else:
            story.stop()
    say(f"open {out / 'report.html'} in a browser; it needs no network")


def _check_port(port: int, out: Path) -> None:
    """Refuse a used port before the training; an earlier demo with --keep may use it."""
    from manybeam.cluster.running import head
    from manybeam.serve.ports import port_in_use, port_is_free

    if head(out / "platform") is None and not port_is_free("127.0.0.1", port):
        error = port_in_use("127.0.0.1", port)
        raise type(error)(error.what, error.why, f"stop it, or add --port {port + 1}")


def _point_settings_at(out: Path, port: int) -> None:
    """Give this process and its children a separate platform in the output folder."""
    from manybeam.settings import settings

    for name in FACILITY:
        # Set and not removed, because manybeam.toml would count next.
        os.environ[f"MANYBEAM_{name}"] = ""
    os.environ["MANYBEAM_HOME"] = str((out / "platform").resolve())
    os.environ["MANYBEAM_SERVICE_URL"] = f"http://127.0.0.1:{port}"
    settings.cache_clear()


@dataclass
class Steps:
    """Prints each step with its time, and keeps the results in one JSON file."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _number: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.facts.update(json.loads(self.path.read_text()))

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Run one step; its lines are indented below its title and its facts saved after it."""
        self._number += 1
        begun = time.monotonic()
        say(f"{self._number}. {title}")
        yield lambda line: say(f"   {line}")
        taken_s = time.monotonic() - begun
        self.facts.setdefault("seconds", {})[title] = round(taken_s, 1)
        self._save()
        say(f"   {taken_s:.1f} s, {time.monotonic() - self._started:.0f} s since the start")

    def _save(self) -> None:
        write_files({self.path: json.dumps(self.facts, indent=1, default=str).encode()})
