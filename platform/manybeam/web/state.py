"""The parts of the control plane that its routes share."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manybeam.web.auth import Gatekeeper
from manybeam.web.pages.drawing import Drawing
from manybeam.web.pages.framesets import FrameSets
from manybeam.web.predict.asking import Predicting
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
    """The parts that routes use.

    Attributes:
        zoo: used only for changes and tests, and for files that are not on this machine yet.
        catalogue: the source of lists.
        version_cache: the source of pages of one version.
        refresher: keeps both up to date.
        framesets: the FrameSets of the store.
        library: the descriptions of conditions.
        gatekeeper: knows who may make changes.
        pages: renders templates.
        drawing: draws example frames, in a process of its own.
        predicting: reads frames, asks the prediction service, and keeps the results.
    """

    zoo: "Zoo"
    catalogue: Catalogue
    version_cache: VersionCache
    refresher: Refresher
    framesets: FrameSets
    library: "Library"
    gatekeeper: Gatekeeper
    pages: Pages
    drawing: Drawing = field(default_factory=Drawing)
    predicting: Predicting = field(default_factory=Predicting)

    def described(self) -> "Mapping[str, Condition]":
        """Return the present conditions of the library by id; none if a file is wrong."""
        return conditions_of(self.library)
