"""Finished steps of a job, kept in a folder below MANYBEAM_HOME until the job is done."""

import logging
import shutil
from collections.abc import Callable

from manybeam.data.store import open_store
from manybeam.errors import Corrupt, NotFound
from manybeam.learn.nets.member import load_weights
from manybeam.settings import settings

logger = logging.getLogger(__name__)


class Scratch:
    """Finished steps of one adaptation or calibration, by name.

    It is a `learn.adaptation.step_checkpoint.StepStore`.

    Two processes that do the same work can share it: they write the same bytes.

    Args:
        digest: digest of all inputs that decide the result; another job gets another folder.
        kind: name of the folder for all jobs of one kind.
        check: raises Corrupt if the bytes of a step are damaged.
    """

    def __init__(
        self, digest: str, kind: str = "rounds", check: Callable[[bytes], object] = load_weights
    ) -> None:
        self.folder = settings().home / kind / digest
        self._store, self._check = open_store(str(self.folder.resolve())), check

    def get(self, key: str) -> bytes | None:
        """Return a finished step; None if there is none, or if it is damaged."""
        try:
            data = self._store.get(_name(key))
            self._check(data)
        except NotFound:
            return None
        except Corrupt as error:
            logger.warning("stored step was damaged; it is done again", extra={"why": str(error)})
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store a finished step, as a whole or not at all."""
        self._store.put(_name(key), data)

    def clear(self) -> None:
        """Delete all steps, after the job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name(key: str) -> str:
    return f"{key}.safetensors"
