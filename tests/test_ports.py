"""Addresses of this machine: free or held, and by whom."""

import socket

import pytest

from manybeam.errors import InvalidInput, NoCapacity
from manybeam.serve import ports
from manybeam.serve.ports import BLOCK, BLOCKS, free_block, port_in_use, port_is_free


def test_a_port_somebody_listens_on_is_not_free_and_its_holder_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        told = port_in_use("127.0.0.1", port)
    assert "process" in told.what
    assert f"MANYBEAM_SERVICE_URL=http://127.0.0.1:{port + 1}" in told.hint
    assert port_is_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        pytest.param("203.0.113.7", 8100, id="address-of-another-machine"),
        pytest.param("no such host", 8100, id="no-host"),
        pytest.param("127.0.0.1", 70000, id="no-port"),
    ],
)
def test_an_address_this_machine_has_not_is_refused(host: str, port: int) -> None:
    with pytest.raises(InvalidInput, match="cannot listen"):
        port_is_free(host, port)


def test_a_block_of_ports_is_free_and_below_those_the_system_gives_out() -> None:
    block, guard = free_block()
    with guard:
        assert (len(block), guard.getsockname()[1]) == (BLOCK - 1, block[-1] + 1)
        assert block[0] % BLOCK == 0
        assert BLOCKS[0] <= block[0] < block[-1] < BLOCKS[1] - 1
        assert all(port_is_free("127.0.0.1", port) for port in block)


@pytest.mark.parametrize("place", [0, 1, BLOCK - 2, BLOCK - 1])
def test_a_block_in_which_one_port_is_held_is_nobodys(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, guard = free_block()
    guard.close()
    monkeypatch.setattr(ports, "BLOCKS", (block[0], block[0] + BLOCK))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", block[0] + place))
        with pytest.raises(NoCapacity, match="neighbouring"):
            free_block()


def test_of_two_starts_at_once_each_has_a_block_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block, guard = free_block()
    with guard:
        monkeypatch.setattr(ports, "BLOCKS", (block[0], block[0] + BLOCK))
        with pytest.raises(NoCapacity):
            free_block()
