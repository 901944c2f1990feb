"""`manybeam-watch`: files of a folder in, tables of atoms out, against the real service."""

import csv
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from manybeam_client import Session
from manybeam_client.link import Link
from manybeam_client.network.place import find_place
from manybeam_client.watch import STATE, FolderWatch, Taken

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

Watching = Callable[..., FolderWatch]


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    """Make watches of the folder of a test."""
    links: list[Link] = []

    def make(url: str, **more: Any) -> FolderWatch:
        links.append(Link(find_place(url)))
        known = {"ensemble": "graphene", "pixel_size_pm": 16, **more}
        return FolderWatch(links[-1], tmp_path, tmp_path / "out", ["*.npy", "*.TIF"], **known)

    yield make
    for link in links:
        link.close()


def looked(watch: FolderWatch, times: int = 2) -> list[Taken]:
    return [one for _ in range(times) for one in watch.look()]


def test_the_atoms_of_a_file_are_in_a_table_with_units(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "scan 1.npy", frame)
    (taken,) = looked(watching(url))
    with Session(url, ensemble="graphene", pixel_size_pm=16) as session:
        answer = session.predict(frame)
    with (tmp_path / "out" / "scan 1.npy.atoms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert taken.atom_count == len(rows) == len(answer.atoms)
    columns = ["y_px", "x_px", "class", "probability", "spread_px", "y_pm", "x_pm", "spread_pm"]
    assert list(rows[0]) == columns
    assert [float(one["y_px"]) for one in rows] == pytest.approx(answer.atoms[:, 0], abs=1e-3)
    assert float(rows[0]["x_pm"]) == pytest.approx(answer.atoms[0, 1] * 16, abs=0.1)


def test_an_instrument_file_is_sent_as_it_is(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", frame)
    tifffile.imwrite(tmp_path / "b.TIF", frame)
    first, second = looked(watching(url))
    assert (first.problem, second.problem) == (None, None)
    tables = [tmp_path / "out" / f"{name}.atoms.csv" for name in ("a.npy", "b.TIF")]
    assert tables[0].read_text() == tables[1].read_text()


def test_a_file_is_taken_once_when_it_no_longer_grows_also_after_a_restart(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    watch, path = watching(url), tmp_path / "a.npy"
    np.save(path, frame)
    whole = path.read_bytes()
    for size in (100, 200):
        path.write_bytes(whole[:size])
        assert watch.look() == []
    path.write_bytes(whole)
    assert [len(watch.look()) for _ in range(4)] == [0, 1, 0, 0]
    assert looked(watching(url)) == []
    np.save(path, frame[:40])
    assert [one.name for one in looked(watching(url))] == ["a.npy"]


def test_a_file_that_is_refused_has_its_reason_beside_it_until_it_is_better(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    watch, why = watching(url), tmp_path / "out" / "a.npy.error.txt"
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "notes.txt").write_text("not asked for")
    np.save(tmp_path / "b.npy", frame)
    first, second = looked(watch)
    assert (first.problem is not None, second.problem) == (True, None)
    assert "400" in why.read_text()
    np.save(tmp_path / "a.npy", frame)
    (third,) = looked(watch)
    assert (third.problem, why.exists()) == (None, False)


def test_a_result_that_cannot_be_written_is_tried_again(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    watch, table = watching(url), tmp_path / "out" / "a.npy.atoms.csv"
    np.save(tmp_path / "a.npy", frame)
    table.mkdir()  # as if another program held it
    looked(watch)
    table.rmdir()
    assert [one.name for one in watch.look()] == ["a.npy"]
    assert table.is_file()


def test_a_file_that_grows_and_a_result_that_cannot_be_written_are_missed(
    url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    watch = watching(url)
    np.save(tmp_path / "a.npy", frame)
    watch.look()
    assert watch.missed_count == 1
    (tmp_path / "out" / "a.npy.atoms.csv").mkdir()
    assert (watch.look(), watch.missed_count) == ([], 1)
    (tmp_path / "out" / "a.npy.atoms.csv").rmdir()
    assert (len(watch.look()), watch.missed_count) == (1, 0)


def test_files_wait_while_the_service_is_away(
    wire: Any, watching: Watching, frame: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    watch = watching(wire.url)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", frame)
    wire.cut()
    (tried,) = looked(watch)
    assert tried.problem is not None
    assert not list((tmp_path / "out").glob("*.csv"))
    wire.mend()
    done: list[str] = []
    until(
        lambda: done.extend(one.name for one in watch.look() if not one.problem) or len(done) == 2
    )
    assert done == ["a.npy", "b.npy"]


@pytest.mark.parametrize("status", [200, 500])
def test_a_file_is_sent_again_after_a_login_page_or_a_failure(
    status: int, url: str, watching: Watching, frame: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", frame)
    with strange_server(status) as strange:
        (tried,) = looked(watching(strange))
    assert tried.problem is not None
    assert tried.problem.kind == "unreadable"
    (done,) = looked(watching(url))
    assert done.problem is None


@contextmanager
def strange_server(status: int) -> Iterator[str]:
    """Answer all with a page of HTML."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_command_ends_after_the_files_that_are_there(
    url: str, frame: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", frame)

    def command(address: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        root = Path(__file__).parents[2] / "platform" / "client"
        known = {**os.environ, "PYTHONPATH": str(root)}
        more = ["--ensemble", "graphene", "--pixel-size-pm", "16", "--once", "--every-s", "0.05"]
        argv = [sys.executable, "-m", "manybeam_client", "watch", str(folder), "--url", address]
        return subprocess.run(
            [*argv, *more], env=known, capture_output=True, text=True, check=False
        )

    away, done = command("http://127.0.0.1:9", tmp_path), command(url, tmp_path)
    assert (away.returncode, done.returncode) == (3, 0)
    assert done.stdout.startswith("a.npy: ")
    assert (tmp_path / STATE).exists()
    assert command(url, tmp_path / "nowhere").returncode == 2
