"""Addresses of this machine: free or held, and by whom."""

import socket

import pytest

from manybeam.errors import InvalidInput
from manybeam.serve.ports import port_in_use, port_is_free


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
