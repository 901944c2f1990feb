"""The files and ports of HAProxy: short paths, none that stays, and ports of its own."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manybeam.data.disk import SHORT, short_temporary
from manybeam.errors import Conflict
from manybeam.serve.haproxy import (
    forget_haproxy,
    haproxy_can_serve,
    haproxy_key,
    haproxy_variables,
)
from manybeam.serve.ports import BLOCK

SERVICE = ("0123456789abcdef", "127.0.0.1", 8100)
GONE = "127.0.0.1:1"  # no cluster answers there


@pytest.fixture
def home(tmp_path: Path, use_settings: Callable[[dict[str, str]], None]) -> Path:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    return tmp_path


def _folder(variables: dict[str, str]) -> Path:
    return Path(variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent


def test_haproxy_serves_any_address_of_ipv4() -> None:
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "192.0.2.2"):
        assert haproxy_can_serve(host) == (sys.platform == "linux")
    assert not haproxy_can_serve("::1")


def test_its_sockets_have_room_for_the_name_ray_gives_their_folder(home: Path) -> None:
    variables = haproxy_variables(GONE, *SERVICE)
    assert len(variables["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]) + 57 <= 97
    forget_haproxy(GONE)


def test_no_port_behind_it_is_a_fixed_one_or_another_services(home: Path) -> None:
    kinds = ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP")
    blocks = []
    for address in (GONE, "127.0.0.1:2"):
        found = haproxy_variables(address, *SERVICE)
        single = [int(found[f"RAY_SERVE_{kind}_PORT"]) for kind in kinds]
        ends = [int(found[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX")]
        blocks.append({*single, *range(*ends)})
        assert len(blocks[-1]) == BLOCK - 1
    assert not blocks[0] & blocks[1]  # both were started here, and keep theirs
    assert not (blocks[0] | blocks[1]) & {8404, 8500, 9101, *range(30000, 31000)}
    for address in (GONE, "127.0.0.1:2"):
        forget_haproxy(address)


def test_its_folder_is_removed_with_the_service(home: Path) -> None:
    folder = _folder(haproxy_variables(GONE, *SERVICE))
    assert folder.is_dir()
    forget_haproxy(GONE)
    assert not folder.exists()
    assert json.loads((home / "haproxy.json").read_text()) == {}


def test_the_folder_of_a_cluster_that_was_killed_is_removed_at_the_next_start(home: Path) -> None:
    left = _folder(haproxy_variables("127.0.0.1:2", *SERVICE))
    again = _folder(haproxy_variables(GONE, *SERVICE))
    assert not left.exists()
    assert again.is_dir()
    for address in (GONE, "127.0.0.1:2"):
        forget_haproxy(address)


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


def test_the_key_of_the_proxy_is_new_for_each_service_and_only_the_owner_reads_it(
    home: Path,
) -> None:
    found = haproxy_variables("127.0.0.1:2", *SERVICE)
    again = haproxy_variables(GONE, *SERVICE)
    assert haproxy_key({}) == ""  # of another proxy
    assert len(haproxy_key(again)) == 32
    assert haproxy_key(again) not in "".join(again.values())  # Ray shows the variables
    assert _folder(again).stat().st_mode & 0o077 == 0
    with pytest.raises(Conflict, match="cannot be read"):  # the folder of the first is gone
        haproxy_key(found)
    for address in (GONE, "127.0.0.1:2"):
        forget_haproxy(address)


@pytest.mark.hosts  # it mounts a folder in a namespace of its own, as only root can
def test_where_temporary_files_are_no_programs_it_is_started_from_the_home(home: Path) -> None:
    code = (
        "import os, sys; from manybeam.serve.haproxy import *\n"
        f"found = haproxy_variables({GONE!r}, *{SERVICE!r})['RAY_SERVE_HAPROXY_BINARY_PATH']\n"
        f"print(found, os.access(found, os.X_OK)); forget_haproxy({GONE!r})\n"
        "print(os.path.exists(found))"
    )
    mount = 'mount -t tmpfs -o noexec tmpfs /mnt; TMPDIR=/mnt exec "$0" -c "$1"'
    argv = ["unshare", "--mount", "sh", "-ec", mount, sys.executable, code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    (started, is_left) = done.stdout.splitlines() or [done.stderr, ""]
    assert started.startswith(f"{home}/haproxy-mb-")
    assert (started.split()[-1], is_left) == ("True", "False")
