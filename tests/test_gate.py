"""The gate between Zarr and the store: once shut, no write begins and none is under way."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from obstore.store import MemoryStore
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import ObjectStore, StorePath

from manybeam.data.gate import GatedStore
from manybeam.data.store import open_store
from manybeam.errors import StoreUnreachable, WriteFailed


def _slow(seconds: float, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let writes to the store take some time; return what tells that one has begun."""
    real, has_begun = ObjectStore.set, threading.Event()

    async def set_slowly(self: ObjectStore, key: str, value: Buffer) -> None:
        has_begun.set()
        await asyncio.sleep(seconds)
        await real(self, key, value)

    monkeypatch.setattr(ObjectStore, "set", set_slowly)
    return has_begun


def test_a_shut_gate_lets_no_write_begin() -> None:
    gate = GatedStore(MemoryStore())
    gate.shut(1.0)
    data = default_buffer_prototype().buffer.from_bytes(b"1")
    with pytest.raises(WriteFailed, match="was stopped"):
        asyncio.run(gate.set("a", data))


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_shutting_waits_for_the_writes_under_way(
    monkeypatch: pytest.MonkeyPatch, background: ThreadPoolExecutor
) -> None:
    has_begun = _slow(0.3, monkeypatch)
    memory = MemoryStore()
    gate = GatedStore(memory)
    writing = background.submit(zarr.save_array, StorePath(gate), np.ones(3))
    assert has_begun.wait(30)
    gate.shut(5.0)
    assert [meta["path"] for meta in memory.list().collect()] == ["zarr.json"]
    with pytest.raises(WriteFailed, match="was stopped"):
        writing.result()


def test_a_write_that_does_not_end_is_told(
    monkeypatch: pytest.MonkeyPatch, background: ThreadPoolExecutor
) -> None:
    has_begun = _slow(0.5, monkeypatch)
    gate = GatedStore(MemoryStore())
    writing = background.submit(zarr.save_array, StorePath(gate), np.ones(3))
    assert has_begun.wait(30)
    with pytest.raises(StoreUnreachable, match=r"did not end within 0\.1 s"):
        gate.shut(0.1)
    with pytest.raises(WriteFailed):
        writing.result()


def test_no_chunk_is_written_after_the_block_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = open_store(tmp_path), ObjectStore.set

    async def set_or_fail(self: ObjectStore, key: str, value: Buffer) -> None:
        if key.endswith("c/3"):
            raise OSError("no space")
        await asyncio.sleep(0.02)
        await real(self, key, value)

    monkeypatch.setattr(ObjectStore, "set", set_or_fail)
    with pytest.raises(OSError, match="no space"), store.writing() as place:
        zarr.create_array(place, data=np.ones(200), chunks=(1,))
    written = store.list()
    time.sleep(0.2)
    assert store.list() == written
    assert len(written) < 100
