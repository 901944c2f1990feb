"""The service on Ray Serve: start, status and stop, and the parts of one replica.

The replica that receives a request also answers it, because moving a frame to another process takes
longer than the smallest ensemble. Beside the replicas there is one process that watches the
sessions (`serve.monitor`). On Linux, Ray's own HAProxy is the proxy; it is four to seven times
faster than Ray's proxy in Python.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from manybeam import __version__
from manybeam.addresses import is_loopback, place_of, reachable, url_of
from manybeam.asgi import PLATFORM_HEADER, NamesPlatform
from manybeam.cluster import joining as cluster
from manybeam.cluster.identity import check_platform, platform_id
from manybeam.errors import (
    Conflict,
    InvalidInput,
    NotAllowed,
    UnknownRef,
    Unreachable,
    WorkFailed,
)
from manybeam.serve.deployed import (
    Deployed,
    check_room,
    deploy_or_go_on,
    forget_deployed,
    host_count,
    running_deployed,
    use_cores_of_host,
    with_threads,
)
from manybeam.serve.haproxy import (
    URL,
    ask_for_tokens,
    forget_haproxy,
    haproxy_can_serve,
    haproxy_key,
    haproxy_variables,
    has_haproxy,
)
from manybeam.serve.logs import WRITTEN_AT_ONCE, log_to_serve
from manybeam.serve.ports import port_in_use, port_is_free
from manybeam.serve.replica_addresses import LOOPBACK, ForProxyOnly, listen_inside
from manybeam.settings import settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from manybeam.serve.edge.access import TokenCache

logger = logging.getLogger(__name__)

APP, DEPLOYMENT = "manybeam", "predict"
# Variables of the replicas: whose service it is, and whether it requires tokens. No name is that of
# a setting, which has another meaning.
PLATFORM, TOKENS = "MANYBEAM_PLATFORM_ID", "MANYBEAM_REPLICA_TOKENS"
_TOKENS_BEFORE = "MANYBEAM_SERVE_TOKENS"  # of a service that an older version started
# Ray calls this function for what it wraps around its HTTP servers.
RAY_MIDDLEWARES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "manybeam.serve.edge.guard:ray_middlewares"
}
QUIET = {"enable_access_log": False}  # metrics count the requests
READY_S = 60.0
HEALTH_S = 1.0  # a replica that died is replaced after so long; Ray's is 10
STOP_S = 30.0
# Features of small crops are no faster on several cores.
MONITOR_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    **WRITTEN_AT_ONCE,
}


@dataclass(frozen=True)
class Plan:
    """The arguments of one replica; they may contain secrets.

    Args:
        refs: ensembles loaded before the replica takes requests.
        variables: settings of the process that started the service.
        threads: predictions at the same time.
        waiting: largest number of requests in the replica.
        capacity: further ensembles in memory.
        is_local: answer only requests addressed to a loopback name.
        needs_token: answer only requests with a token.
        platform: the id of the platform, which every answer names.
        proxy_key: what the proxy shows; without it, requests are refused. "" if it shows nothing.
    """

    refs: tuple[str, ...]
    variables: dict[str, str]
    threads: int
    waiting: int
    capacity: int
    is_local: bool
    needs_token: bool
    platform: str
    proxy_key: str = ""


@dataclass(frozen=True)
class ServiceState:
    """The state of the running service, from Ray Serve.

    Attributes:
        url: where it listens.
        status: of Ray Serve, as `RUNNING`.
        replicas: processes of every state, those that start or end among them.
        message: why it is in this state.
        needs_token: whether callers need a token.
        hosts: the name of the host of each replica that answers.
    """

    url: str
    status: str
    replicas: int
    message: str = ""
    needs_token: bool = False
    hosts: tuple[str, ...] = ()


def run_service(
    refs: Sequence[str] | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8100,
    replicas: int | None = None,
    cpus_per_replica: float | None = None,
    gpus_per_replica: float | None = None,
    threads: int = 2,
    waiting: int = 32,
    capacity: int = 4,
    tokens: bool | None = None,
    insecure: bool = False,
) -> ServiceState:
    """Start the service, or change the running one; return when it answers.

    It runs in the cluster until `stop_service` or the end of the cluster. Replicas are spread over
    the nodes. During a change requests are answered by what runs, and if the change fails it goes
    on. Ensembles, number and reserved devices of a running service stay as they are if left out.

    Args:
        refs: ensembles loaded now; others are loaded at their first use. None for no change.
        host: address to listen on.
        port: port to listen on.
        replicas: processes that answer; at first one. If nothing else changes, those that run keep
            their threads; otherwise the cores are divided anew.
        cpus_per_replica: cores reserved on the cluster for each. At first none, so that an
            instrument gets its answer also while a training uses every core.
        gpus_per_replica: GPUs reserved for each; at first none.
        threads: predictions of a replica at the same time.
        waiting: largest number of requests in a replica; others get 429.
        capacity: ensembles in memory of a replica, in addition to `refs`.
        tokens: answer only callers with a token of the database. If left out, a running service
            stays as it is, and for a new one the setting `serve_tokens` counts.
        insecure: allow an address that other machines can reach without tokens. A running service
            keeps its tokens all the same, unless `tokens` is False.

    Raises:
        PortInUse: another process uses the port; nothing was started.
        UnknownRef: one of `refs` is not in the zoo; nothing was started.
        NoCapacity: the nodes have too few cores or GPUs; nothing was started.
        NotAllowed: other machines can reach the address, and tokens are not required.
        Conflict: the service runs at another address, is another platform's, or was started by an
            older version and `refs` is left out.
        WorkFailed: Ray Serve did not come up.
    """
    running = _running_at(host, port)
    needs_token = _needs_token(host, running, tokens=tokens, insecure=insecure)
    _check_refs(refs or ())
    address = cluster.connect()
    before = running_deployed() if running else None
    replicas = replicas or (before.replicas if before else running.replicas if running else 1)
    plan = Plan(
        _refs(refs, running, before),
        cluster.environment(),
        threads,
        waiting,
        capacity,
        is_local=not needs_token and is_loopback(host),
        needs_token=needs_token,
        platform=platform_id(),
    )
    if running is not None:  # new replicas must fit the proxy that runs
        variables = _running_variables(running, plan.platform)
    else:
        variables = _new_variables(plan.platform, address, host, port)
    variables[TOKENS] = str(needs_token)
    plan = replace(plan, proxy_key=haproxy_key(variables))
    actor = _actor(before, cpus_per_replica, gpus_per_replica, variables)
    wanted = with_threads(Deployed(asdict(plan), actor, replicas), before, host_count(actor))
    check_room(wanted)
    try:
        if running is None:
            # The rules bring HAProxy to the host; all else that Ray starts stays on loopback.
            _start_serve(LOOPBACK if plan.proxy_key else host, port, variables)
        deploy_or_go_on(wanted, _deploy, before)
        return _answering(_service_url(), plan.platform)
    except BaseException:  # Ctrl-C too: no proxy may go on without a service behind it
        if running is None:
            with suppress(Exception):  # the first error is the one to report
                stop_service()
        raise


def _refs(
    refs: Sequence[str] | None, running: ServiceState | None, before: Deployed | None
) -> tuple[str, ...]:
    """Return the ensembles of the service: those that were named, else those that it has."""
    if refs is None and running and not before:
        raise Conflict(
            "it is not known which ensembles the running service has",
            "an older version of Manybeam started it, and a change without them would end them",
            "name them: manybeam serve up REF...; or stop it first: manybeam serve stop",
        )
    return tuple(before.plan["refs"] if refs is None and before else refs or ())


def _actor(
    before: Deployed | None, cpus: float | None, gpus: float | None, variables: dict[str, str]
) -> dict[str, Any]:
    """Return the options of a replica's process for Ray."""
    known = before.actor if before else {"num_cpus": 0.0, "num_gpus": 0.0}
    return {
        "num_cpus": known["num_cpus"] if cpus is None else cpus,
        "num_gpus": known["num_gpus"] if gpus is None else gpus,
        # Ray spreads over the hosts only what needs something; this is next to nothing.
        "memory": 2**20,
        "runtime_env": {"env_vars": variables},
    }


def _needs_token(
    host: str, running: ServiceState | None, *, tokens: bool | None, insecure: bool
) -> bool:
    """Return whether the service requires tokens; a change of its ensembles does not open it."""
    if tokens and insecure:
        raise InvalidInput("--tokens and --insecure contradict each other", "", "leave one out")
    if tokens is None and running is not None:
        tokens = running.needs_token
    elif tokens is None and not insecure:
        tokens = settings().serve_tokens
    if not tokens and not insecure and not is_loopback(host):
        raise NotAllowed(
            f"{host!r} can be reached from other machines",
            "there, the service answers only callers with a token",
            f"manybeam serve up --host {host} --tokens",
        )
    return bool(tokens)


def _running_at(host: str, port: int) -> ServiceState | None:
    """Return the service that runs at an address; None if one can be started there."""
    is_free = port_is_free(host, port)
    running = service_state()
    if running is None and not is_free:
        raise port_in_use(host, port)
    if running is not None and running.url != url_of(host, port):
        raise Conflict(
            f"the service runs at {running.url} already",
            "a cluster has one service",
            "manybeam serve stop",
        )
    return running


def stop_service() -> bool:
    """Stop the service and free its port; return whether there was one.

    What a failed start left, such as a proxy without a service, is ended too. On a shared cluster
    the applications of others go on, and so does a proxy that is not ours.
    """
    if not _joined() or _client() is None:
        return False
    from ray import serve

    applications = set(serve.status().applications)
    if APP in applications and len(applications) > 1:
        serve.delete(APP)
    elif APP in applications or (not applications and _serve_is_ours()):
        _shut_down()
    else:
        return False
    forget_deployed()
    logger.info("service stopped")
    return True


def service_state() -> ServiceState | None:
    """Return the running service of this process's cluster, None if there is none.

    It starts nothing: without a cluster there is no service.
    """
    if not _joined():
        return None
    from ray import serve

    status = serve.status()
    found = status.applications.get(APP)
    if found is None:
        return None
    is_up = DEPLOYMENT in found.deployments
    count = sum(found.deployments[DEPLOYMENT].replica_states.values()) if is_up else 0
    needs_token = is_up and _has_tokens(_replica_variables())
    status_name, hosts = str(found.status.value), _hosts() if is_up else ()
    return ServiceState(_service_url(), status_name, count, found.message, needs_token, hosts)


def _has_tokens(variables: Mapping[str, str]) -> bool:
    return variables.get(TOKENS, variables.get(_TOKENS_BEFORE)) == str(True)


def _service_url() -> str:
    """Return where the running service is; of one that an older version started, what Ray says."""
    options = _http_options()
    if options is None:
        return ""
    with suppress(KeyError):
        return _replica_variables()[URL]
    return url_of(options.host, options.port)


def _joined() -> bool:
    """Join the cluster of this process if there is one; return whether there is."""
    import ray

    if not ray.is_initialized():
        if not cluster.cluster_address():
            return False
        cluster.connect()
    from ray import serve  # noqa: F401 - at its import, Ray sets the level to INFO

    # Our own messages show the progress.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return True


def check_start(
    refs: Sequence[str] | None, host: str, *, tokens: bool | None, insecure: bool
) -> None:
    """Refuse what cannot be a new service, before a cluster is started for it.

    Args and errors are those of `run_service`.
    """
    _needs_token(host, None, tokens=tokens, insecure=insecure)
    _check_refs(refs or ())


def _check_refs(refs: Sequence[str]) -> None:
    """Refuse unknown references before anything starts; the error names all of them."""
    if not refs:
        return
    from manybeam.zoo.registry import Zoo

    zoo, faults = Zoo(), []
    for ref in refs:
        try:
            zoo.resolve(ref)
        except UnknownRef as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UnknownRef("; ".join(map(str, faults)), "", "manybeam zoo ls")


# Serve kills a proxy that is not ready after 5 s, and gives up; a busy machine needs longer.
_PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30"}


def _start_serve(host: str, port: int, variables: dict[str, str]) -> None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.schema import LoggingConfig

    try:
        serve.start(
            http_options={"host": host, "port": port},
            proxy_location="HeadOnly",
            logging_config=LoggingConfig(enable_access_log=False),
            controller_options={"runtime_env": {"env_vars": {**variables, **_PATIENCE}}},
        )
    except (RayError, RuntimeError, TimeoutError) as error:
        raise WorkFailed(
            f"Ray Serve did not start at {url_of(host, port)}",
            _reason(str(error)),
            f"manybeam doctor; Ray keeps its logs in {cluster.logs_folder()}",
        ) from error


def _reason(text: str) -> str:
    """Return the important line of a message of Ray: that of the innermost exception."""
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r"([\w.]+(Error|Exception)|manybeam\.errors\.\w+)\b", line)
    ]
    return (errors or lines or ["Ray does not say why"])[-1][:500]


def _shut_down() -> None:
    """End Serve: its proxies, its controller, every replica, and their files.

    The controller ends during the call that ends it. Ray would repeat this call and print so on
    standard output, which is for data. So repeats are switched off.
    """
    import ray
    from ray import serve

    client, place = _client(), place_of(_service_url())
    if client is not None:
        end = client._controller.graceful_shutdown.options(max_task_retries=0)
        try:
            ray.get(end.remote(), timeout=STOP_S)
        except ray.exceptions.RayActorError:
            logger.debug("controller ended")
    shut_down: Any = serve.shutdown  # Ray's lacks types
    shut_down()
    forget_haproxy(cluster.connect())
    if place is not None and place[1] and is_loopback(reachable(place[0])):
        _wait_until_free(place[0], place[1])


def _serve_is_ours() -> bool:
    """Return whether a Serve without applications is what a start of ours left."""
    options = _http_options()
    return (
        not settings().ray_address  # the whole cluster is ours
        or has_haproxy(cluster.connect())
        or place_of(settings().service_url) == (options.host, options.port)
    )


def _wait_until_free(host: str, port: int) -> None:
    """Wait until a proxy that is ended has let go of its port."""
    deadline = time.monotonic() + STOP_S
    while not port_is_free(host, port) and time.monotonic() < deadline:
        time.sleep(0.05)  # Ray does not report when a process it killed is gone


def _client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _replica_variables() -> dict[str, str]:
    """Return the environment of the running replicas."""
    actor = _details()["deployment_config"]["ray_actor_options"]
    return dict(actor["runtime_env"]["env_vars"])


def _hosts() -> tuple[str, ...]:
    """Return the name of the host of each replica that answers."""
    import ray

    nodes: Any = ray.nodes  # Ray's lacks types
    names = {one["NodeID"]: str(one["NodeManagerHostname"]) for one in nodes()}
    running = [one for one in _details()["replicas"] if one["state"] == "RUNNING"]
    return tuple(sorted(names.get(one["node_id"], str(one["node_ip"])) for one in running))


def _details() -> dict[str, Any]:
    """Return what Ray knows of the deployment."""
    return dict(_client().get_serve_details()["applications"][APP]["deployments"][DEPLOYMENT])


def _new_variables(platform: str, address: str, host: str, port: int) -> dict[str, str]:
    """Return the environment of the parts of a service that will be started.

    Args:
        platform: the id of the platform.
        address: of the cluster.
        host: where the service listens.
        port: of the service.
    """
    variables = {
        # Products of matrices are small here; threads of BLAS would only wait for each other.
        "OPENBLAS_NUM_THREADS": "1",
        **RAY_MIDDLEWARES,
        **WRITTEN_AT_ONCE,
        URL: url_of(host, port),
        PLATFORM: platform,
    }
    if haproxy_can_serve(host):
        variables |= haproxy_variables(address, platform, host, port)
    return variables


def _running_variables(running: ServiceState, platform: str) -> dict[str, str]:
    """Return the environment of the running replicas, if the service is this platform's."""
    variables = _replica_variables()
    if variables.get(PLATFORM) != platform:
        raise Conflict(
            f"the service at {running.url} is of another platform: {variables.get(PLATFORM)}",
            f"this one is {platform}; its answers would be refused there",
            "use the MANYBEAM_HOME from which it was started, or stop it: manybeam serve stop",
        )
    return variables


def _http_options() -> Any:
    client = _client()
    return client.http_config if client else None


def _deploy(wanted: Deployed) -> None:
    from ray import serve

    # HAProxy starts again with the new replicas, or with those before if the new ones fail.
    variables = wanted.actor["runtime_env"]["env_vars"]
    ask_for_tokens(variables, needs_token=bool(wanted.plan["needs_token"]))
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=wanted.replicas,
        max_ongoing_requests=1000,
        max_surge_percent=wanted.surge_percent,
        graceful_shutdown_timeout_s=10,
        health_check_period_s=HEALTH_S,
        logging_config=QUIET,
        ray_actor_options=wanted.actor,
    )(serve.ingress(_builder(_plan(wanted)))(Replica))
    deployment = _versioned(deployment, wanted.version)
    try:
        serve.run(deployment.bind(_monitor(wanted)), name=APP, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        ours = serve.status().applications.get(APP)
        found = ours.deployments.get(DEPLOYMENT) if ours else None
        reason = _reason(found.message if found and found.message else str(error))
        raise WorkFailed(
            "the service's replicas did not start",
            reason,
            f"manybeam zoo ls lists what can be served; logs are in {cluster.logs_folder()}",
        ) from error


def _plan(wanted: Deployed) -> Plan:
    """Return the arguments of a replica, from JSON data."""
    return Plan(**{**wanted.plan, "refs": tuple(wanted.plan["refs"])})


def _versioned(deployment: Any, version: str) -> Any:
    """Return a deployment with a version; without one, Ray restarts replicas at each change."""
    return deployment.options(version=version, _internal=True)


def _monitor(wanted: Deployed) -> Any:
    """Return the monitor, which a change of the replicas' number or ensembles does not restart."""
    from ray import serve

    from manybeam.serve.monitor.deployment import MONITOR, MonitorReplica

    settings_of, platform = wanted.plan["variables"], wanted.plan["platform"]
    known = json.dumps([__version__, settings_of, platform], sort_keys=True)
    deployment = serve.deployment(
        name=MONITOR,
        num_replicas=1,
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_S,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": MONITOR_VARIABLES}},
    )(MonitorReplica)
    version = hashlib.sha256(known.encode()).hexdigest()[:16]
    return _versioned(deployment, version).bind(settings_of, platform)


class Replica:
    """One process of the service; its state is in its web application.

    Args:
        monitor: the monitor, which Ray starts with it.
    """

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor


def _builder(plan: Plan) -> "Callable[[], FastAPI]":
    """Return the function that makes the application of a replica."""

    def build() -> "FastAPI":
        return replica_api(plan)

    return build


def replica_api(plan: Plan) -> "FastAPI":
    """Return the application of one replica, with its parts."""
    use_cores_of_host()
    log_to_serve()
    from manybeam.db.deployment import open_database
    from manybeam.db.serving.rollouts import Rollouts
    from manybeam.predictor.versions.live import LiveVersions
    from manybeam.predictor.versions.of_zoo import ZooVersions
    from manybeam.serve.edge.handler import ReplicaLimits
    from manybeam.serve.edge.proxied import Arrivals, Marks, ProxyHeaders
    from manybeam.serve.metrics import Meter, gather
    from manybeam.serve.monitor.deployment import RemoteMonitor
    from manybeam.serve.monitor.reporter import FrameReporter
    from manybeam.serve.predict import Service
    from manybeam.serve.routes import api
    from manybeam.serve.traffic.traffic import Traffic
    from manybeam.zoo.registry import Zoo

    is_beside_proxy = listen_inside(plan.platform)
    cluster.adopt(plan.variables)
    source = ZooVersions(Zoo(), plan.refs, capacity=plan.capacity, fresh_s=0.0)
    versions, meter = LiveVersions(source), Meter()
    traffic = Traffic(versions, lambda: Rollouts(open_database()), meter)
    traffic.start()
    reporter = FrameReporter(RemoteMonitor(_monitor_handle), meter.unwatched)
    service = Service(versions, traffic, reporter=reporter)
    service.sessions.refresher.start()
    limits = ReplicaLimits(
        threads=plan.threads,
        waiting=plan.waiting,
        max_frame_px=settings().max_frame_px,
        is_local=plan.is_local,
        names_requests=False,
    )
    app = api(service, limits, meter, gather, _tokens_of(plan))
    marks = Marks(settings().cache / "begun")
    marks.tidy()
    headers = ProxyHeaders(marks, Arrivals(is_beside_proxy=is_beside_proxy))
    app.add_middleware(ForProxyOnly, key=plan.proxy_key, headers=headers)
    app.add_middleware(NamesPlatform, platform=plan.platform)
    return app


def _monitor_handle() -> Any:
    """Return the handle of the monitor; it exists when the replicas answer."""
    from ray import serve

    from manybeam.serve.monitor.deployment import MONITOR

    return serve.get_deployment_handle(MONITOR, APP)


def _tokens_of(plan: Plan) -> "TokenCache | None":
    """Return what checks tokens; None if none are needed."""
    from manybeam.db.deployment import open_database
    from manybeam.db.tokens import Tokens
    from manybeam.serve.edge.access import TokenCache

    if not plan.needs_token:
        return None
    tokens = TokenCache(lambda: Tokens(open_database()), settings().cache / "tokens.json")
    tokens.start()
    return tokens


def _answering(listening_url: str, platform: str) -> ServiceState:
    """Wait until the service answers; its proxy starts after its replicas."""
    host, port = place_of(listening_url) or ("", None)
    url = url_of(reachable(host), port or 80)
    import urllib3

    deadline = time.monotonic() + READY_S
    with urllib3.PoolManager(retries=False, timeout=2.0) as http:
        while time.monotonic() < deadline:
            try:
                answer = http.request("GET", f"{url}/readyz")
                check_platform(url, answer.headers)
                if answer.status == 200 and answer.headers.get(PLATFORM_HEADER) == platform:
                    state = service_state()
                    if state is not None:
                        return state
            except urllib3.exceptions.HTTPError:
                logger.debug("service does not answer yet", extra={"url": url})
            time.sleep(0.05)  # HAProxy does not report when it has read its new configuration
    logs = f"Ray keeps its logs in {cluster.logs_folder()}"
    raise Unreachable(f"the service does not answer at {url}", f"waited {READY_S:.0f} s", logs)
