"""The parts of the control plane that its routes share."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.web.auth import Gatekeeper
from manybeam.web.framesets import FrameSets
from manybeam.web.keeper import Keeper
from manybeam.web.render import Pages
from manybeam.web.shelf import Shelf

if TYPE_CHECKING:
    from manybeam.spec import Condition, Library
    from manybeam.zoo.catalogue import Catalogue
    from manybeam.zoo.registry import Zoo


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plane:
    """What routes are made of.

    Attributes:
        zoo: asked only to change or test something, and for files not on this machine yet.
        catalogue: what lists are read from.
        shelf: what pages of one version are read from.
        keeper: keeps both up to date.
        framesets: of the store.
        library: where conditions are described.
        gatekeeper: knows who may change something.
        pages: renders.
    """

    zoo: "Zoo"
    catalogue: "Catalogue"
    shelf: Shelf
    keeper: Keeper
    framesets: FrameSets
    library: "Library"
    gatekeeper: Gatekeeper
    pages: Pages

    def described(self) -> "dict[str, Condition]":
        """Return the library's conditions by id as its files are now; none if one is wrong."""
        folder = self.library.folder / "conditions"
        files = tuple(
            (str(one), (known := one.stat()).st_mtime_ns, known.st_size)
            for one in sorted(folder.glob("*.yaml"))
        )
        return _described(self.library.folder, files)


@lru_cache(maxsize=2)
def _described(folder: Path, files: tuple[tuple[str, int, int], ...]) -> "dict[str, Condition]":
    """Read the conditions of a folder once for each state of its files: it takes 70 ms."""
    from manybeam.errors import InvalidSpec
    from manybeam.spec import Library

    try:
        found = Library(folder).conditions
    except InvalidSpec as error:
        logger.warning("conditions could not be read: %s", error)
        return {}
    logger.debug("conditions read", extra={"files": len(files)})
    return found
