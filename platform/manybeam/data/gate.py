"""A Zarr store that can be shut: after that no write begins, and none is in progress."""

import time
from typing import Any

from zarr.core.buffer import Buffer
from zarr.storage import ObjectStore

from manybeam.errors import StoreUnreachable, WriteFailed


class GatedStore(ObjectStore[Any]):
    """The store of Zarr over obstore, with a count of the writes in progress.

    All writes run in the one event loop of Zarr, so the count needs no lock.

    Args:
        store: the obstore store.
        read_only: as in Zarr.
    """

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self._pending, self._is_shut = 0, False

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object; raises WriteFailed once the gate is shut."""
        if self._is_shut:
            raise WriteFailed(
                f"{key} was not written", "the append that it belongs to was stopped", ""
            )
        self._pending += 1
        try:
            await super().set(key, value)
        finally:
            self._pending -= 1

    def shut(self, timeout_s: float) -> None:
        """Begin no more writes and wait for those in progress.

        Raises:
            StoreUnreachable: some are still in progress after `timeout_s`.
        """
        self._is_shut = True
        deadline = time.monotonic() + timeout_s
        while self._pending and time.monotonic() < deadline:
            time.sleep(0.001)  # the loop of Zarr has no event for the end of its writes
        if self._pending:
            raise StoreUnreachable(
                f"{self._pending} writes did not end within {timeout_s:g} s",
                "the store does not answer",
                "try again when it does",
            )
