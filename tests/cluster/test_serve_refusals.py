"""What the service refuses before it starts anything; none may be running beside these tests."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

from manybeam.db.deployment import open_database
from manybeam.db.tokens import Tokens
from manybeam.errors import InvalidInput, NotAllowed, PortInUse, UnknownRef, WorkFailed
from manybeam.serve.app import _start_serve, run_service, service_state, stop_service
from manybeam.serve.ports import port_is_free
from manybeam.zoo.registry import Zoo

Ports = Callable[[], int]
EVERYWHERE = "0.0.0.0"

pytestmark = [
    pytest.mark.usefixtures("served_home"),
    pytest.mark.cluster,
    # Ray Serve declares its models the way pydantic wants to forget; only importing it warns.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]


def test_a_held_port_is_told_and_nothing_starts(cluster: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(PortInUse, match=f"process {os.getpid()}"):
            run_service([], port=holder.getsockname()[1])
    assert service_state() is None


@pytest.mark.parametrize(
    ("refs", "host", "error"),
    [
        pytest.param(["grafene"], "127.0.0.1", UnknownRef, id="unknown-ensemble"),
        pytest.param([], "0.0.0.0", NotAllowed, id="open-to-all"),
        pytest.param([], "127.0.0.1.5", (NotAllowed, InvalidInput), id="no-address"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    cluster: str, refs: list[str], host: str, error: Any, free_port: Ports
) -> None:
    port = free_port()
    with pytest.raises(error):
        run_service(refs, host=host, port=port)
    assert service_state() is None
    assert port_is_free("127.0.0.1", port)


def test_a_service_for_other_machines_answers_those_with_a_token(
    cluster: str, free_port: Ports
) -> None:
    text, made = Tokens(open_database()).create("scan", ["predict"])
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/ensembles"

    def status(**headers: str) -> int:
        named = {"Host": "manybeam.lab", **headers}
        return int(urllib3.request("GET", url, headers=named, retries=False, timeout=30).status)

    state = run_service([], host=EVERYWHERE, port=port, tokens=True)
    assert state.needs_token
    assert (status(), status(Authorization=f"Bearer {text}")) == (401, 200)
    with pytest.raises(NotAllowed, match=r"manybeam serve up --host 0\.0\.0\.0 --tokens"):
        run_service([], host=EVERYWHERE, port=port, tokens=False)
    for more in ({}, {"insecure": True}):  # as it was
        assert run_service(["graphene"], host=EVERYWHERE, port=port, **more).needs_token
    assert (status(), status(Authorization=f"Bearer {text}")) == (401, 200)
    Tokens(open_database()).revoke(made.id)
    deadline = time.monotonic() + 10
    while status(Authorization=f"Bearer {text}") != 401:
        assert time.monotonic() < deadline
    assert stop_service()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        pytest.param({}, NotAllowed, id="nothing said"),
        pytest.param({"tokens": False}, NotAllowed, id="no tokens"),
        pytest.param({"tokens": True, "insecure": True}, InvalidInput, id="both"),
    ],
)
def test_a_service_for_other_machines_needs_tokens(
    cluster: str, free_port: Ports, given: dict[str, bool], error: type[Exception]
) -> None:
    with pytest.raises(error, match="--tokens"):
        run_service([], host=EVERYWHERE, port=free_port(), **given)
    assert service_state() is None


@pytest.mark.faults
def test_a_service_whose_weights_differ_from_those_registered_does_not_start(
    cluster: str, tiny_members: Any, tmp_path: Path, use_settings: Any, free_port: Ports
) -> None:
    use_settings({"MANYBEAM_HOME": str(tmp_path)})
    Zoo().register("graphene", tiny_members(1), job={}, alias="serving")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    weights = next((tmp_path / "weights").rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    port = free_port()
    with pytest.raises(WorkFailed, match="not the bytes that were registered"):
        run_service(["graphene"], port=port)
    assert service_state() is None
    assert port_is_free("127.0.0.1", port)
    assert not stop_service()  # neither a proxy nor its files stay
    assert json.loads((tmp_path / "haproxy.json").read_text()) == {}


def test_a_proxy_that_a_killed_start_left_is_stopped(cluster: str, free_port: Ports) -> None:
    port = free_port()
    _start_serve("127.0.0.1", port, {})  # what a command did that was killed then
    assert service_state() is None
    assert stop_service()
    assert port_is_free("127.0.0.1", port)
