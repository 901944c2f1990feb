"""The Tango device: a server really started, and driven by a Tango client."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tango

from manybeam_client import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]


@contextmanager
def device(url: str) -> Iterator[Any]:
    """Start a device server without a database; give a client of its device."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    name = "lab/manybeam/stem-1"
    words = ["-nodb", "-host", "127.0.0.1", "-port", str(port), "-dlist", name]
    server = subprocess.Popen(
        [sys.executable, "-m", "manybeam_client.tango_device", "test", *words],
        env={**os.environ, "MANYBEAM_URL": url},
    )
    try:
        yield _ready(f"tango://127.0.0.1:{port}/{name}#dbase=no", server)
    finally:
        server.terminate()
        server.wait(30)


def _ready(address: str, server: "subprocess.Popen[bytes]") -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            client = tango.DeviceProxy(address)
            client.ping()
            return client
        except tango.DevFailed:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)  # a server of Tango does not say when it is ready


def test_a_frame_that_is_written_is_answered_and_told(url: str, frame: Any) -> None:
    told, are_told = list[int](), threading.Event()

    def hear(event: Any) -> None:
        told.append(event.attr_value.value)
        if told[-1] == 2:
            are_told.set()

    with device(url) as client:
        client.subscribe_event("answered", tango.EventType.CHANGE_EVENT, hear)
        client.pixel_size_pm = 16
        client.frame = frame
        client.frame = frame
        assert are_told.wait(30)
        with Session(url, instrument="stem-1") as session:  # that of the device
            own = session.predict(frame, pixel_size_pm=16)
        assert np.array_equal(client.atoms, own.atoms.astype(float), equal_nan=True)
        assert client.atom_count == len(own.atoms) > 0
        assert (client.ref, client.error, client.answered) == ("graphene@2", "", 2)
        assert client.state() == tango.DevState.ON
        assert "64 px there and back" in client.Check()


def test_what_cannot_be_answered_is_told_in_words(url: str) -> None:
    with device(url) as client:
        client.frame = np.zeros((48, 48), np.float32)
        assert "needs contrast" in client.error
        assert (client.failed, client.atom_count) == (1, 0)
        assert client.state() == tango.DevState.ALARM
        with pytest.raises(tango.DevFailed, match="neither 0 nor from 1 to 500"):
            client.pixel_size_pm = 900


def test_without_a_service_the_device_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with device(f"http://127.0.0.1:{port}") as client:
        client.frame = np.ones((48, 48), np.float32)
        assert client.error
        assert client.state() == tango.DevState.ALARM
