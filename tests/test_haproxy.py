"""The files of HAProxy: short paths, and none that stays."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.data.disk import SHORT, short_temporary
from manybeam.serve.haproxy import forget_haproxy, haproxy_can_serve, haproxy_variables

GONE = "127.0.0.1:1"  # no cluster answers there


@pytest.fixture
def home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    return tmp_path


def _folder(variables: dict[str, str]) -> Path:
    return Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent


def test_haproxy_serves_loopback_or_everything_but_not_one_outer_address() -> None:
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        assert haproxy_can_serve(host) == (sys.platform == "linux")
    assert not haproxy_can_serve("192.0.2.2")
    assert not haproxy_can_serve("::1")  # it asks the replicas at an address of IPv4


def test_its_sockets_have_room_for_the_name_ray_gives_their_folder(home: Path) -> None:
    variables = haproxy_variables(GONE)
    assert len(variables["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]) + 57 <= 97
    ports = {variables[f"RAY_SERVE_HAPROXY_{kind}_PORT"] for kind in ("METRICS", "STATS")}
    assert len(ports) == 2
    forget_haproxy(GONE)


def test_its_folder_is_removed_with_the_service(home: Path) -> None:
    folder = _folder(haproxy_variables(GONE))
    assert folder.is_dir()
    forget_haproxy(GONE)
    assert not folder.exists()
    assert json.loads((home / "haproxy.json").read_text()) == {}


def test_the_folder_of_a_cluster_that_was_killed_is_removed_at_the_next_start(home: Path) -> None:
    left = _folder(haproxy_variables("127.0.0.1:2"))
    again = _folder(haproxy_variables(GONE))
    assert not left.exists()
    assert again.is_dir()
    forget_haproxy(GONE)


def test_a_long_folder_for_temporary_files_is_replaced_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert short_temporary(40) == SHORT
    assert short_temporary(300) == long.resolve()
    with socket.socket(socket.AF_UNIX) as server, pytest.raises(OSError, match="too long"):
        server.bind(str(long / ("s" * 40)))
