"""The results of /predict on this machine: bounded, each written whole, the oldest deleted first.

Any web process of the home can show them, after a restart too. Their ids cannot be guessed.
"""

import io
import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manybeam.data.disk import write_files
from manybeam.errors import NotFound

MOST_KEPT = 200
MOST_BYTES = 4_000_000_000
FACTS, FRAME, ANSWER, SOURCE, RANKING, ANALYSED = (
    "facts.json",
    "frame.npy",
    "answer.npz",
    "source",
    "ranking.json",
    "analysed",
)


@dataclass(frozen=True)
class Facts:
    """What is known of a result beside its arrays.

    Attributes:
        name: of the file, or the path of the FrameSet.
        is_stored: whether the frame comes from a FrameSet.
        frame: number of the frame; None if the file holds one.
        frame_count: frames in the file or FrameSet.
        shape: rows and columns of the frame.
        ref: who was asked.
        file_size_pm: edge of a pixel according to the source; None if it does not say.
        stated_pm: the pixel size that the person gave; None if none.
        is_size_trusted: whether it was to be taken in any case.
        condition: id of the condition that was sent; "" for none.
        format: of the file.
        recorded: values that the file gives, by quantity.
        notes: what was chosen or converted when it was read.
        is_sent_whole: whether the file was sent to the service as it is.
        is_quick: whether the answer is one without frame analysis.
        error: why there is no answer: type, what, why, hint, status, retry_s; empty if there is.
        seconds: how long reading and the service took.
        created: seconds since 1970.
    """

    name: str
    is_stored: bool
    frame: int | None
    frame_count: int
    shape: tuple[int, int]
    ref: str
    file_size_pm: float | None = None
    stated_pm: float | None = None
    is_size_trusted: bool = False
    condition: str = ""
    format: str = ""
    recorded: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_sent_whole: bool = False
    is_quick: bool = False
    error: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    created: float = 0.0


@dataclass(frozen=True)
class Result:
    """One result on the disk."""

    id: str
    folder: Path
    facts: Facts

    @property
    def frame_yx(self) -> NDArray[np.float32]:
        """The frame."""
        found: NDArray[np.float32] = np.load(self.read(FRAME), allow_pickle=False)
        return found

    @property
    def source(self) -> bytes:
        """The file as it was sent; nothing for a stored frame."""
        path = self.folder / SOURCE
        return path.read_bytes() if path.exists() else b""

    def arrays(self, *names: str) -> dict[str, NDArray[Any]]:
        """Return arrays of the answer, as the service sent them."""
        with np.load(self.read(ANSWER), allow_pickle=False) as found:
            return {name: found[name] for name in names}

    @property
    def meta(self) -> dict[str, Any]:
        """What the service says of its answer."""
        return dict(json.loads(self.arrays("meta")["meta"].tobytes()))

    @property
    def ranking(self) -> dict[str, Any] | None:
        """The ranking of the members; None if it was not asked for."""
        path = self.folder / RANKING
        return dict(json.loads(path.read_text())) if path.exists() else None

    def keep_ranking(self, ranking: Mapping[str, Any]) -> None:
        """Keep the ranking beside the answer."""
        write_files({self.folder / RANKING: json.dumps(ranking).encode()})

    def read(self, name: str) -> io.BytesIO:
        """Return the bytes of a file; raises NotFound if it was deleted meanwhile."""
        try:
            return io.BytesIO((self.folder / name).read_bytes())
        except FileNotFoundError:
            raise gone() from None


class Results:
    """The results below one folder.

    Args:
        folder: where they lie.
        most: how many are kept.
        most_bytes: how many bytes they may take.
    """

    def __init__(self, folder: Path, most: int = MOST_KEPT, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most, self._most_bytes = folder, most, most_bytes

    def keep(
        self, facts: Facts, frame_yx: NDArray[np.float32], source: bytes, answer: bytes
    ) -> Result:
        """Keep a result, and delete the oldest ones that are too many.

        Raises:
            WriteFailed: the disk does not take it.
        """
        identity = secrets.token_urlsafe(16)
        folder, array = self._folder / identity, io.BytesIO()
        np.save(array, frame_yx, allow_pickle=False)
        files = {SOURCE: source, FRAME: array.getvalue(), ANSWER: answer}
        files = {name: content for name, content in files.items() if content}
        text = json.dumps(asdict(facts) | {"created": time.time()})
        try:
            write_files(
                {folder / name: one for name, one in (files | {FACTS: text.encode()}).items()}
            )
        except BaseException:  # a part of a result is none
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._tidy(keep=identity)
        return self.look(identity)

    def look(self, identity: str) -> Result:
        """Return a result; raises NotFound if it is gone."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{22}", identity):
            raise gone()
        folder = self._folder / identity
        try:
            told = json.loads((folder / FACTS).read_text())
        except FileNotFoundError:
            raise gone() from None
        made = {"shape": tuple(told["shape"]), "notes": tuple(told["notes"])}
        return Result(identity, folder, Facts(**told | made))

    def follow(self, quick: str, analysed: str) -> None:
        """Let the result with frame analysis take the place of the quick one before it."""
        write_files({self.look(quick).folder / ANALYSED: analysed.encode()})

    def newest(self, identity: str) -> Result:
        """Return a result, or the one that took its place; raises NotFound if it is gone."""
        result = self.look(identity)
        with suppress(FileNotFoundError, NotFound):
            return self.look((result.folder / ANALYSED).read_text())
        return result

    def _tidy(self, keep: str) -> None:
        """Delete the oldest; another process may delete the same at the same time."""
        sizes: list[tuple[float, int, Path]] = []
        for folder in self._folder.iterdir():
            with suppress(OSError):
                bytes_ = sum(one.stat().st_size for one in folder.iterdir())
                sizes.append((folder.stat().st_mtime, bytes_, folder))
        sizes.sort(key=lambda one: (one[2].name == keep, one[0]), reverse=True)
        total = 0
        for place, (_, bytes_, folder) in enumerate(sizes):
            total += bytes_
            if folder.name != keep and (place >= self._most or total > self._most_bytes):
                shutil.rmtree(folder, ignore_errors=True)


def gone() -> NotFound:
    """Return the error for a result that is not there, or not any more."""
    return NotFound(
        "this result is gone",
        f"the newest {MOST_KEPT} results are kept on the server, older ones are deleted",
        "open /predict and drop the file again",
    )
