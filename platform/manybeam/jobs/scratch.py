"""Where finished steps of a job lie until the job is done: a folder below MANYBEAM_HOME."""

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

    Two processes that do the same work share it without harm: they write the same bytes.

    Args:
        digest: names all that decides the outcome; another job gets another folder.
        kind: of the jobs whose folders lie together.
        check: raises Corrupt for the bytes of a step that are not whole.
    """

    def __init__(
        self, digest: str, kind: str = "rounds", check: Callable[[bytes], object] = load_weights
    ) -> None:
        self.folder = settings().home / kind / digest
        self._store, self._check = open_store(str(self.folder.resolve())), check

    def get(self, key: str) -> bytes | None:
        """Return a finished step, or None if there is none or it is damaged."""
        try:
            data = self._store.get(_name(key))
            self._check(data)
        except NotFound:
            return None
        except Corrupt as error:
            logger.warning("kept step was damaged; done anew", extra={"why": str(error)})
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a finished step, whole or not at all."""
        self._store.put(_name(key), data)

    def clear(self) -> None:
        """Forget all of it: the job is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name(key: str) -> str:
    return f"{key}.safetensors"
