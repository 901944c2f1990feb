"""The scripts that start and stop the real services, on free ports of this machine."""

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from manybeam.data.store import open_store

SCRIPT = Path(__file__).parents[1] / "infra" / "services.py"
UseSettings = Callable[[dict[str, str]], None]


def _run(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv], capture_output=True, text=True, check=False
    )


def test_data_and_secret_outlive_a_server_that_was_killed(
    frail_s3: Any, use_settings: UseSettings
) -> None:
    use_settings(frail_s3.settings())
    open_store("s3://frames").put("kept", b"kept")
    os.kill(frail_s3.pid("seaweedfs"), signal.SIGKILL)
    frail_s3.start("seaweedfs")
    use_settings(frail_s3.settings())
    assert open_store("s3://frames").get("kept") == b"kept"


def test_a_server_that_runs_is_kept(frail_s3: Any) -> None:
    before = frail_s3.pid("seaweedfs")
    frail_s3.start("seaweedfs")
    assert frail_s3.pid("seaweedfs") == before


def test_servers_listen_on_the_loopback_only_and_where_no_connection_can_be(frail_s3: Any) -> None:
    server = psutil.Process(frail_s3.pid("seaweedfs"))
    listening = [c for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    # On every machine: the range of connections, 32768 and above by default, can be set.
    assert {connection.laddr.port for connection in listening} <= {*range(10_000, 20_000)}


def test_secrets_are_for_the_owners_eyes_only(frail_s3: Any) -> None:
    for name in ("seaweedfs.json", "seaweedfs.key"):
        assert stat.S_IMODE((frail_s3.folder / name).stat().st_mode) == 0o600


def test_env_prints_what_points_manybeam_at_the_servers(frail_s3: Any) -> None:
    lines = _run("env", "--dir", str(frail_s3.folder)).stdout.splitlines()
    assert f"export MANYBEAM_S3_ENDPOINT={frail_s3.settings()['MANYBEAM_S3_ENDPOINT']}" in lines
    assert "export MANYBEAM_STORE=s3://frames" in lines


def test_a_stopped_server_is_gone(frail_s3: Any) -> None:
    pid = frail_s3.pid("seaweedfs")
    frail_s3.stop("seaweedfs")
    assert not psutil.pid_exists(pid)
    assert _run("status", "--dir", str(frail_s3.folder)).stdout == ""


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = _run("start", "seaweedfs", "--dir", str(tmp_path), f"--port=seaweedfs={port}")
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert "--port" in done.stderr


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(tmp_path: Path) -> None:
    somebody = {"name": "mlflow", "folder": "", "pid": os.getpid(), "started": 1.0, "url": "x"}
    (tmp_path / "mlflow.json").write_text(json.dumps(somebody))
    assert "is gone" in _run("status", "--dir", str(tmp_path)).stdout
    assert _run("stop", "--dir", str(tmp_path)).returncode == 0
    assert not (tmp_path / "mlflow.json").exists()


def test_mlflow_alone_says_what_it_needs(tmp_path: Path) -> None:
    done = _run("start", "mlflow", "--dir", str(tmp_path), "--port=mlflow=0")
    assert done.returncode == 1
    assert "mlflow needs seaweedfs and postgres" in done.stderr


def test_no_secret_is_in_an_argument_or_a_log(facility: Any) -> None:
    keys = [path.read_text().split()[1] for path in facility.folder.glob("*.key")]
    assert len(keys) == 2
    for name in ("seaweedfs", "postgres", "mlflow"):
        leader = psutil.Process(facility.pid(name))
        family = [leader, *leader.children(recursive=True)]
        said = "".join(" ".join(one.cmdline()) for one in family)
        said += (facility.folder / f"{name}.log").read_text(errors="replace")
        assert not [key for key in keys if key in said], name


def test_a_long_folder_has_its_sockets_elsewhere_and_leaves_none(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    sockets = Path(f"/tmp/manybeam-{name}")
    options = ("--dir", str(folder), "--port=seaweedfs=0")
    started = _run("start", "seaweedfs", *options)
    assert started.returncode == 0, started.stderr
    assert stat.S_IMODE(sockets.lstat().st_mode) == 0o700
    assert list(sockets.glob("*.sock"))
    assert _run("stop", "seaweedfs", *options, "--now").returncode == 0
    assert not sockets.exists()


@pytest.mark.parametrize("kind", ["link", "open"])
def test_a_folder_of_sockets_that_somebody_else_may_enter_is_refused(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    sockets = Path(f"/tmp/manybeam-{name}")
    try:
        if kind == "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            sockets.symlink_to(tmp_path / "elsewhere")
        else:
            sockets.mkdir()
            sockets.chmod(0o755)
        done = _run("start", "seaweedfs", "--dir", str(folder), "--port=seaweedfs=0")
    finally:
        sockets.unlink() if sockets.is_symlink() else sockets.rmdir()
    assert done.returncode == 1
    assert "not a folder that only this user can enter" in done.stderr


def test_all_three_come_up_together(facility: Any) -> None:
    with urllib.request.urlopen(
        facility.settings()["MANYBEAM_TRACKING_URI"] + "/version"
    ) as answer:
        assert answer.status == 200
    url = json.loads((facility.folder / "postgres.json").read_text())["url"]
    assert url.startswith("postgresql+psycopg://mlflow:")
