"""Changes of the running service: what answers goes on until its successor does, or for good.

Ray starts the successors of replicas beside them, if there is room. If they do not start, it leaves
those that answer, but forgets how to start them again. So what runs is kept in the memory of the
cluster, and is put back.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from manybeam.errors import ManybeamError, NoCapacity, WorkFailed
from manybeam.learn.nets.inference.runtime import cores

logger = logging.getLogger(__name__)

# Variables of a replica: the threads of one prediction, and, if they depend on its host, how many
# replicas share that.
THREADS, ON_HOST = "OMP_NUM_THREADS", "MANYBEAM_REPLICAS_ON_HOST"
_KEY, _NAMESPACE = b"deployed", b"manybeam"  # in the memory of the cluster, which ends with it


@dataclass(frozen=True)
class Deployed:
    """What the replicas of a service shall be; it may contain secrets.

    Args:
        plan: the arguments of each replica, as JSON data.
        actor: the options of its process for Ray, as JSON data.
        replicas: their number.
    """

    plan: dict[str, Any]
    actor: dict[str, Any]
    replicas: int

    @property
    def version(self) -> str:
        """A digest of what a replica cannot change while it runs; the number is not part of it."""
        text = json.dumps([self.plan, self.actor], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def surge_percent(self) -> int:
        """How many replicas may start beside those that they replace: one, if there is room."""
        free = _ray().available_resources()
        needed = {"CPU": self.actor["num_cpus"], "GPU": self.actor["num_gpus"]}
        if any(amount > free.get(name, 0.0) for name, amount in needed.items()):
            return 0
        return -(-100 // self.replicas)


def with_threads(wanted: Deployed, before: Deployed | None, hosts: int) -> Deployed:
    """Return what is wanted, with what gives one prediction the threads of its replica's cores.

    These are the reserved cores. If none are, a replica divides those of its host, which need not
    be this one, by the replicas there: see `use_cores_of_host`.

    Another number of replicas restarts none, so those that run keep their threads, and new ones
    get as many; Ray has one environment for all.

    Args:
        wanted: what shall run; its environment is that of `before`, or new.
        before: what runs; None if nothing does, or if that is not known.
        hosts: over how many the replicas are spread.
    """
    if before and before.version == wanted.version:
        return wanted
    known = wanted.actor["runtime_env"]["env_vars"]
    variables = {name: value for name, value in known.items() if name not in (THREADS, ON_HOST)}
    if reserved := int(wanted.actor["num_cpus"]):
        variables[THREADS] = str(reserved)
    else:
        # Of what has no number, Ray sets one, and takes it away when a replica has started.
        variables |= {THREADS: "1", ON_HOST: str(math.ceil(wanted.replicas / max(1, hosts)))}
    return replace(wanted, actor={**wanted.actor, "runtime_env": {"env_vars": variables}})


def use_cores_of_host() -> None:
    """Give a prediction in this replica its part of the cores of the host.

    It comes before the libraries that read the number of threads when they are imported.
    """
    if on_host := os.environ.get(ON_HOST):
        os.environ.pop(THREADS, None)
        os.environ[THREADS] = str(max(1, cores() // int(on_host)))


def host_count(actor: dict[str, Any]) -> int:
    """Return over how many hosts Ray spreads replicas with these options."""
    asked = actor["num_cpus"], actor["num_gpus"]
    nodes = [one for one in _ray().nodes() if one["Alive"]]
    return len({one["NodeManagerAddress"] for one in nodes if _places(one["Resources"], *asked, 1)})


def check_room(wanted: Deployed) -> None:
    """Refuse what no state of this cluster has room for; Ray would wait for ever.

    Raises:
        NoCapacity: its nodes have too few cores or GPUs.
    """
    cpus, gpus = wanted.actor["num_cpus"], wanted.actor["num_gpus"]
    nodes = [one["Resources"] for one in _ray().nodes() if one["Alive"]]
    places = sum(_places(one, cpus, gpus, wanted.replicas) for one in nodes)
    if places < wanted.replicas:
        has = [f"{one.get('CPU', 0):g} cores and {one.get('GPU', 0):g} GPUs" for one in nodes]
        raise NoCapacity(
            f"the cluster has room for {places} of {wanted.replicas} replicas with {cpus:g} cores "
            f"and {gpus:g} GPUs each",
            f"its nodes have {'; '.join(has)}",
            "fewer --replicas, or smaller --cpus-per-replica or --gpus-per-replica",
        )


def _places(node: dict[str, float], cpus: float, gpus: float, most: int) -> int:
    asked = [(node.get("CPU", 0.0), cpus), (node.get("GPU", 0.0), gpus)]
    return min([most, *(int(has / each) for has, each in asked if each)])


def deploy_or_go_on(
    wanted: Deployed, deploy: Callable[[Deployed], None], running: Deployed | None
) -> None:
    """Start what is wanted, in place of what runs; return when it answers.

    Args:
        wanted: what shall run.
        deploy: tells Ray, and waits.
        running: what runs; None if nothing does, or if that is not known.

    Raises:
        WorkFailed: it does not start; what ran goes on.
    """
    try:
        deploy(wanted)
    except BaseException as error:
        if running is None:
            raise
        deploy(running)  # it runs still, so this takes a moment
        if not isinstance(error, ManybeamError):
            raise
        raise WorkFailed(
            error.what, f"{error.why}; the service goes on as it was", error.hint
        ) from error
    _put(wanted)


def running_deployed() -> Deployed | None:
    """Return what runs; None if that is not known, as of a service of an older version."""
    with suppress(ValueError, TypeError, KeyError):
        return Deployed(**json.loads(_kv()._internal_kv_get(_KEY, namespace=_NAMESPACE) or b""))
    return None


def forget_deployed() -> None:
    """Forget what runs: the service has ended."""
    _kv()._internal_kv_del(_KEY, namespace=_NAMESPACE)


def _put(deployed: Deployed) -> None:
    content = json.dumps(asdict(deployed)).encode()
    _kv()._internal_kv_put(_KEY, content, overwrite=True, namespace=_NAMESPACE)


def _ray() -> Any:
    import ray

    return ray


def _kv() -> Any:
    from ray.experimental import internal_kv

    return internal_kv
