"""Pictures of example frames, and their cache on this machine."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.data.disk import write_files
from manybeam.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manybeam.jobs.examples import Example
    from manybeam.spec import Condition
    from manybeam.zoo.matrix import Score
    from manybeam.zoo.registry import Zoo

logger = logging.getLogger(__name__)

DPI = 110
MOST_KEPT = 400  # pictures of 0.3 MB each, of large frames 1 MB


@dataclass(frozen=True)
class Drawn:
    """The description of a picture.

    Attributes:
        digest: name of the picture in the cache.
        counts: right, false and missed atoms.
        is_measured, is_recorded: see `jobs.examples.Example`.
        shape: rows and columns of the frame.
        size: width and height of the picture.
        pixel_size_pm: edge of a pixel of the frame, in pm; None if unknown.
        is_simulated: simulated again from its seed; else read from a FrameSet.
    """

    digest: str
    counts: tuple[int, int, int]
    is_measured: bool
    is_recorded: bool | None
    shape: tuple[int, int]
    size: tuple[int, int]
    pixel_size_pm: float | None
    is_simulated: bool


def make_drawn(
    digest: str,
    zoo: "Zoo",
    version_ref: str,
    score: "Score",
    number: int,
    conditions: "Mapping[str, Condition]",
    frame_urls: "Sequence[str]",
) -> Drawn:
    """Make an example, draw it into the cache under its digest, and return its description.

    Raises:
        ManybeamError: as `jobs.examples.make_example` raises.
    """
    from manybeam.jobs.examples import make_example

    if (known := kept(digest)) is not None:  # drawn after the request had looked
        return known
    return keep(digest, make_example(zoo, version_ref, score, number, conditions, frame_urls))


def keep(digest: str, made: "Example") -> Drawn:
    """Draw an example, store the picture in the cache, and return its description."""
    from manybeam.zoo.reports.error_overlay import errors_figure
    from manybeam.zoo.reports.plots import png

    frame = made.frame
    figure = errors_figure(
        frame.frame_yx, made.found, frame.truth, made.matched, frame.pixel_size_pm
    )
    width, height = (round(side * DPI) for side in figure.get_size_inches())
    rows, columns = frame.frame_yx.shape
    drawn = Drawn(
        digest,
        made.matched.counts,
        made.is_measured,
        made.is_recorded,
        (rows, columns),
        (width, height),
        frame.pixel_size_pm,
        made.is_simulated,
    )
    picture, text = folder() / f"{digest}.png", folder() / f"{digest}.json"
    # The description is written last: if it exists, the picture does too.
    write_files({picture: png(figure, DPI), text: json.dumps(asdict(drawn)).encode()})
    prune()
    return drawn


def kept(digest: str) -> Drawn | None:
    """Return the description of a picture in the cache; None if there is none."""
    path = folder() / f"{digest}.json"
    try:
        stored = json.loads(path.read_bytes())
        lists = {name: tuple(stored[name]) for name in ("counts", "shape", "size")}
        return Drawn(**{**stored, **lists}) if path.with_suffix(".png").is_file() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("a stored example cannot be read: %s", error)
        return None


def folder() -> Path:
    """Return the folder of the pictures."""
    return settings().cache / "examples"


def prune(most: int = MOST_KEPT) -> None:
    """Delete the oldest pictures if there are too many; a quarter becomes free."""
    if len(list(folder().glob("*.json"))) <= most:
        return
    with suppress(FileNotFoundError):  # another process may delete them too
        oldest = sorted(folder().glob("*.json"), key=lambda one: one.stat().st_mtime)
        for path in oldest[: len(oldest) - 3 * most // 4]:
            path.unlink()
            path.with_suffix(".png").unlink(missing_ok=True)
