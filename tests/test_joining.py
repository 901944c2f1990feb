"""Whether a cluster asks for its token: what each answer of a head means."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from manybeam.cluster.joining import check_token_is_needed, give_way
from manybeam.errors import NotAllowed, Unreachable

Head = Callable[[Callable[[grpc.ServicerContext], bytes]], str]


@pytest.fixture
def head(use_settings: Callable[[dict[str, str]], None]) -> Iterator[Head]:
    """Start a server that answers as a head of Ray does; return its address."""
    servers = []

    def start(answer: Callable[[grpc.ServicerContext], bytes]) -> str:
        def check_alive(_: bytes, context: grpc.ServicerContext) -> bytes:
            return answer(context)

        server = grpc.server(ThreadPoolExecutor(1))
        method = grpc.unary_unary_rpc_method_handler(check_alive)
        service = grpc.method_handlers_generic_handler(
            "ray.rpc.NodeInfoGcsService", {"CheckAlive": method}
        )
        server.add_generic_rpc_handlers((service,))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
        use_settings({"MANYBEAM_RAY_ADDRESS": address})
        return address

    yield start
    for server in servers:
        server.stop(None).wait()


def _refuse(code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], bytes]:
    return lambda context: context.abort(code, "no")


def test_a_head_that_asks_for_its_token_is_joined(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = head(_refuse(grpc.StatusCode.UNAUTHENTICATED))
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")  # no way to a cluster
    monkeypatch.setenv("no_grpc_proxy", "nowhere")
    check_token_is_needed(address)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(lambda _: b"", NotAllowed, id="an answer"),
        pytest.param(_refuse(grpc.StatusCode.UNIMPLEMENTED), NotAllowed, id="another refusal"),
        pytest.param(_refuse(grpc.StatusCode.UNAVAILABLE), Unreachable, id="unavailable"),
    ],
)
def test_a_head_that_does_not_ask_for_it_is_told_from_one_that_does_not_serve(
    head: Head, answer: Callable[[Any], bytes], error: type[Exception]
) -> None:
    with pytest.raises(error) as told:
        check_token_is_needed(head(answer))
    assert ("asks for no token" in str(told.value)) is (error is NotAllowed)


def test_a_busy_head_is_not_said_to_be_open(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manybeam.cluster.joining.KNOCK_S", 0.2)
    done = threading.Event()
    address = head(lambda _: str(done.wait(30)).encode())
    with pytest.raises(Unreachable, match="does not serve requests"):
        check_token_is_needed(address)
    done.set()


def test_work_gives_way_by_its_niceness_where_its_scheduling_is_fixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError("as in a container")

    def niceness() -> int:
        give_way()
        return os.getpriority(os.PRIO_PROCESS, 0)

    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as pool:  # on Linux it is that of a thread
        assert pool.submit(niceness).result() > before
