"""Send frames of a microscope to a Manybeam service and read where the atoms are.

from manybeam_client import Session

with Session("https://manybeam.lab", instrument="STEM-1") as stem:
answer = stem.predict(frame, pixel_size_pm=7.8)
"""

from typing import TYPE_CHECKING, Any

from manybeam_client.answer import Answer
from manybeam_client.errors import Problem, Unanswered
from manybeam_client.session import Session
from manybeam_client.stream.event import Event
from manybeam_client.version import __version__

if TYPE_CHECKING:
    from manybeam_client.checking import check

__all__ = ["Answer", "Event", "Problem", "Session", "Unanswered", "__version__", "check"]


def __getattr__(name: str) -> Any:
    """Load `check` when it is used: a control program starts without it."""
    if name == "check":
        from manybeam_client.checking import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
