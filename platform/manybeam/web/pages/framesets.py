"""The FrameSets of the store, with a small picture of the first frame of each."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from manybeam.data.frames import FrameSet, list_framesets
from manybeam.data.markup import small_png
from manybeam.data.store import open_store
from manybeam.errors import ManybeamError, NotFound, TooLarge

PAGE_SIZE = 50
LIST_S = 5.0  # for so long a listing of the store is used again
PREVIEW_PX = 160
MOST_PX = 20_000_000  # of a frame that is shown as a small picture
_READERS = 8


@dataclass(frozen=True)
class FrameSetRow:
    """One FrameSet in the list.

    Attributes:
        path: path below the root of the store.
        fault: why it cannot be read; "" if it can be read. The other fields are empty then.
    """

    path: str
    url: str
    frame_count: int = 0
    shape: tuple[int, int] = (0, 0)
    condition: str = ""
    digest: str = ""
    has_truth: bool = False
    fault: str = ""


@dataclass(frozen=True)
class FrameSetPage:
    """One page of FrameSets; `total` counts those of all pages."""

    rows: tuple[FrameSetRow, ...]
    total: int
    page: int
    page_count: int
    seconds: float


class FrameSets:
    """The FrameSets in one store.

    Args:
        url: URL of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._listed: tuple[float, list[str]] = (-LIST_S, [])
        self._turn = threading.Lock()

    def find(self, text: str = "", page: int = 1) -> FrameSetPage:
        """Return one page of the FrameSets whose path contains a text.

        Raises:
            StoreUnreachable: the store does not answer.
            NotFound: there is no such page.
        """
        begun = time.monotonic()
        paths = [path for path in self.paths() if text.casefold() in path.casefold()]
        page_count = max(-(-len(paths) // PAGE_SIZE), 1)
        if page > page_count:
            raise NotFound(
                f"there is no page {page}", f"the last page is {page_count}", "go to /datasets"
            )
        shown = paths[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        with ThreadPoolExecutor(_READERS) as readers:
            rows = tuple(readers.map(self._row, shown))
        return FrameSetPage(rows, len(paths), page, page_count, time.monotonic() - begun)

    def paths(self) -> list[str]:
        """Return the paths of all FrameSets, from a listing of the last seconds."""
        with self._turn:
            when, found = self._listed
            if time.monotonic() - when > LIST_S:
                root = open_store(self.url).url.rstrip("/") + "/"
                found = [url.removeprefix(root) for url in list_framesets(self.url)]
                self._listed = (time.monotonic(), found)
            return found

    def here(self, url: str, digest: str = "") -> str:
        """Return the URL at which a recorded FrameSet lies in this store; "" if it does not.

        A record keeps the address of its time. If the store was moved since then, the FrameSet has
        the same path below the new place. Another store may hold other frames at that path, so the
        digest must be the same.

        Args:
            url: the recorded address.
            digest: the recorded digest; without it only the recorded address is taken.
        """
        root = open_store(self.url).url.rstrip("/") + "/"
        if url.startswith(root):
            return url
        if not digest:
            return ""
        named = [path for path in self.paths() if url.rstrip("/").endswith(f"/{path}")]
        rows = map(self._row, sorted(named, key=len, reverse=True))
        return next((row.url for row in rows if row.digest == digest), "")

    def preview(self, path: str) -> bytes:
        """Return a small PNG of the first frame.

        Raises:
            NotFound: there is no FrameSet at this path, or it is empty.
            TooLarge: its frames are too large for a preview.
        """
        frames = self.open(path)
        if not len(frames):
            raise NotFound(f"{path} holds no frame", "a preview shows the first frame", "/datasets")
        if frames.shape[0] * frames.shape[1] > MOST_PX:
            raise TooLarge(
                f"frames of {path} have {frames.shape} px",
                f"previews show frames of at most {MOST_PX} px",
                "/datasets",
            )
        return small_png(frames.frame(0), PREVIEW_PX)

    def open(self, path: str) -> FrameSet:
        """Return a FrameSet of the store; raises NotFound if there is none at this path."""
        if path not in self.paths():
            raise NotFound(
                f"there is no FrameSet at {path!r}",
                "a path below the store is needed",
                "/datasets lists all",
            )
        return self._open(path)

    def _open(self, path: str) -> FrameSet:
        return FrameSet.open(f"{self.url.rstrip('/')}/{path}")

    def _row(self, path: str) -> FrameSetRow:
        try:
            found = self._open(path)
        except ManybeamError as error:
            return FrameSetRow(path, "", fault=str(error))
        return FrameSetRow(
            path,
            found.url,
            len(found),
            found.shape,
            found.condition.id,
            found.digest,
            found.has_truth,
        )
