"""The parts of the control plane that its routes share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manybeam.web.auth import Gatekeeper
from manybeam.web.pages.framesets import FrameSets
from manybeam.web.refresher import Refresher
from manybeam.web.render import Pages
from manybeam.web.version_cache import VersionCache
from manybeam.zoo.catalogue import Catalogue, conditions_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manybeam.spec import Condition, Library
    from manybeam.zoo.registry import Zoo


@dataclass(frozen=True)
class AppState:
    """What routes are made of.

    Attributes:
        zoo: asked only to change or test something, and for files not on this machine yet.
        catalogue: what lists are read from.
        shelf: what pages of one version are read from.
        refresher: keeps both up to date.
        framesets: of the store.
        library: where conditions are described.
        gatekeeper: knows who may change something.
        pages: renders.
    """

    zoo: "Zoo"
    catalogue: Catalogue
    version_cache: VersionCache
    refresher: Refresher
    framesets: FrameSets
    library: "Library"
    gatekeeper: Gatekeeper
    pages: Pages

    def described(self) -> "Mapping[str, Condition]":
        """Return the library's conditions by id as its files are now; none if one is wrong."""
        return conditions_of(self.library)
