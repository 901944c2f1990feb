"""A Zarr store that can be shut: after that no write begins, and none is still under way."""

import time
from typing import Any

from zarr.core.buffer import Buffer
from zarr.storage import ObjectStore

from manybeam.errors import StoreUnreachable, WriteFailed


class GatedStore(ObjectStore[Any]):
    """Zarr's store over obstore, counting the writes under way.

    All writes run on Zarr's one event loop, so the count needs no lock.

    Args:
        store: the obstore store.
        read_only: as Zarr has it.
    """

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self._pending, self._is_shut = 0, False

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object; raises WriteFailed once the gate is shut."""
        if self._is_shut:
            raise WriteFailed(f"{key} was not written", "the write it belongs to was given up", "")
        self._pending += 1
        try:
            await super().set(key, value)
        finally:
            self._pending -= 1

    def shut(self, timeout_s: float) -> None:
        """Begin no more writes and wait for those under way.

        Raises:
            StoreUnreachable: some are still under way after `timeout_s`.
        """
        self._is_shut = True
        deadline = time.monotonic() + timeout_s
        while self._pending and time.monotonic() < deadline:
            time.sleep(0.001)  # Zarr's loop gives no event when its writes have ended
        if self._pending:
            raise StoreUnreachable(
                f"{self._pending} writes did not end within {timeout_s:g} s",
                "the store does not answer",
                "try again once it does",
            )
