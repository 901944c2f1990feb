"""The command `manybeam-watch`: sends each new file of a folder and writes its atoms beside it.

The folder is looked at again and again, because network drives tell of no changes. A file is taken
when its size and time were the same in two looks, so half-written files are left alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

from manybeam_client.answer import ATOM_COLUMNS
from manybeam_client.frame import FrameRequest
from manybeam_client.link import Link
from manybeam_client.network.place import find_place

if TYPE_CHECKING:
    from manybeam_client.answer import Answer
    from manybeam_client.errors import Problem

logger = logging.getLogger("manybeam_client")

PATTERN = "*.npy,*.tif,*.tiff,*.dm3,*.dm4,*.emd,*.ser,*.mrc"
LOOK_S = 2.0
SAVE_S = 5.0  # between two writes of what is done, in a look at many files
MOST_BYTES = 2**29
STATE = "manybeam-watch.json"
NPY = "application/x-npy"
ANY = "application/octet-stream"
# The file stays as it is, so the answer will be the same next time. All else is tried again.
_FINAL = ("refused", "conflict")
_UNITS = {"y": "y_px", "x": "x_px"}


@dataclass(frozen=True)
class Taken:
    """What became of one file."""

    name: str
    atom_count: int = 0
    problem: Problem | None = None


class FolderWatch:
    """Sends the files of a folder, each version of a file once; also after a restart.

    Args:
        link: to the service.
        folder: where files appear.
        out: where results go.
        patterns: names of the files that are taken, as `*.dm4`.
        instrument: id of the instrument; empty for none.
        ensemble: REF that answers.
        pixel_size_pm: for files that do not state it [pm].

    Attributes:
        missed_count: files of the last look that still grow, or could not be read, or whose result
            could not be written.
    """

    def __init__(
        self,
        link: Link,
        folder: Path,
        out: Path,
        patterns: Sequence[str],
        instrument: str = "",
        ensemble: str = "auto",
        pixel_size_pm: float | None = None,
    ) -> None:
        self._link, self._folder, self._out, self._patterns = link, folder, out, patterns
        self._ref = "auto" if instrument else ensemble
        self._query = {"instrument": instrument} if instrument else {}
        if pixel_size_pm is not None:
            self._query["pixel_size_pm"] = f"{pixel_size_pm:.10g}"
        out.mkdir(parents=True, exist_ok=True)
        self._state = out / STATE
        self._done = _read_state(self._state)
        self._seen: dict[str, list[int]] = {}
        self.missed_count, self._is_saved = 0, True

    def look(self, progress: Callable[[Taken], None] = lambda _: None) -> list[Taken]:
        """Look once: send the files that no longer grow; return what became of them.

        Args:
            progress: is told of each file at once.
        """
        now = {path.name: _mark(path) for path in self._files()}
        new = [name for name, mark in sorted(now.items()) if mark and self._done.get(name) != mark]
        stable = [name for name in new if self._seen.get(name) == now[name]]
        self._seen, self.missed_count = now, len(new) - len(stable)
        taken: list[Taken] = []
        try:
            for one in self._take_all(stable):
                taken.append(one)
                progress(one)
        finally:
            self._save()
        return taken

    def _take_all(self, names: Sequence[str]) -> Iterator[Taken]:
        saved_s = time.monotonic()
        for name in names:
            if time.monotonic() > saved_s + SAVE_S:
                self._save()
                saved_s = time.monotonic()
            try:
                found = self._take(name, self._seen[name])
            except OSError as error:  # it is open in another program, or the disk is full
                logger.warning("%s is tried again: %s", name, error)
                self.missed_count += 1
                continue
            kind = found.problem.kind if found.problem is not None else ""
            if not kind or kind in _FINAL:
                self._done[name], self._is_saved = self._seen[name], False
            yield found
            if kind and kind not in (*_FINAL, "failed"):  # the service may fail at one file only
                return  # the next ones would meet the same

    def _save(self) -> None:
        """Write what is done, not for each file: it grows with the folder."""
        if self._is_saved:
            return
        try:
            _write(self._state, json.dumps(self._done, indent=0, sort_keys=True))
            self._is_saved = True
        except OSError as error:  # the next look writes it
            logger.warning("%s is written later: %s", self._state, error)
            self.missed_count += 1

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if self._is_wanted(path)]
        except OSError as error:  # a network drive that is away comes back
            logger.warning("%s cannot be read: %s", self._folder, error)
            return []

    def _is_wanted(self, path: Path) -> bool:
        name = path.name.lower()
        return any(fnmatch.fnmatch(name, one.lower()) for one in self._patterns)

    def _take(self, name: str, mark: list[int]) -> Taken:
        """Send a file and write its result.

        Raises:
            OSError: it cannot be read, or the result cannot be written, now.
        """
        answer = self._answer(name, mark, (self._folder / name).read_bytes())
        problem = answer.error
        if problem is None:
            _write(self._out / (name + ".atoms.csv"), _csv(answer))
            _remove(self._out / (name + ".error.txt"))
        elif problem.kind in _FINAL:
            _write(self._out / (name + ".error.txt"), f"{problem}\n")
        return Taken(name, len(answer.atoms), problem)

    def _answer(self, name: str, mark: list[int], body: bytes) -> Answer:
        is_npy = name.lower().endswith(".npy")
        # An older service refuses a name in the query, and an .npy needs none.
        query = self._query if is_npy else {**self._query, "filename": name}
        # The same for this version of the file after a restart, so that it counts once.
        version = f"{self._folder.absolute()} {name} {mark}"
        frame_id = "watch-" + hashlib.blake2b(version.encode(), digest_size=12).hexdigest()
        media = NPY if is_npy else ANY
        request = FrameRequest(self._ref, frame_id, body, media, query=query)
        return self._link.answer(request, time.monotonic(), None)


def _read_state(path: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mark(path: Path) -> list[int]:
    """Return size [bytes] and time of the last change [ns]; nothing if it is no file now."""
    try:
        found = path.stat()
    except OSError:
        return []
    is_good = path.is_file() and 0 < found.st_size <= MOST_BYTES
    return [found.st_size, found.st_mtime_ns] if is_good else []


def _csv(answer: Answer) -> str:
    """Return the atoms as a table; positions and spread in pixels, and in pm if that is known."""
    columns = ["y_px", "x_px", *ATOM_COLUMNS[2:4], "spread_px"]
    size_pm = answer.pixel_size_pm
    more = [] if size_pm is None else ["y_pm", "x_pm", "spread_pm"]
    lines = [",".join([*columns, *more])]
    for row, spread in zip(answer.atoms.tolist(), answer.spread.tolist()):
        values = ["{:.3f}", "{:.3f}", "{:.0f}", "{:.4f}", "{:.4f}"]
        texts = [one.format(value) for one, value in zip(values, [*row[:4], spread])]
        if size_pm is not None:
            texts += [f"{one * size_pm:.1f}" for one in (row[0], row[1], spread)]
        lines.append(",".join(texts))
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:  # it was not there
        return


def watch_command(words: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C; with --once return 0, 1 (a file is left) or 3 (no service)."""
    known = _parser().parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr, level=logging.INFO)
    if not known.folder.is_dir():
        sys.stderr.write(f"error: {known.folder} is no folder\n")
        return 2
    try:
        link = Link(find_place(known.url, known.token, known.ca), known.instrument, known.ensemble)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    watch = FolderWatch(
        link,
        known.folder,
        known.out or known.folder,
        known.pattern.split(","),
        known.instrument,
        known.ensemble,
        known.pixel_size_pm,
    )
    try:
        link.open()
        return _once(watch, known.every_s) if known.once else _forever(watch, known.every_s)
    except KeyboardInterrupt:
        return 130
    finally:
        link.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="manybeam-watch",
        description="Send each new file of a folder to Manybeam; write NAME.atoms.csv.",
        epilog="example: manybeam-watch D:\\frames --url https://manybeam.lab --instrument STEM-1",
    )
    parser.add_argument("folder", type=Path, help="where files appear")
    parser.add_argument("--url", help="of the service; MANYBEAM_URL if left out")
    parser.add_argument("--token", help="MANYBEAM_TOKEN if left out")
    parser.add_argument("--ca", help="file of a private certificate authority; MANYBEAM_CA")
    parser.add_argument("--instrument", default="", help="id of the instrument")
    parser.add_argument("--ensemble", default="auto", help="REF that answers")
    parser.add_argument("--pattern", default=PATTERN, help="names that are taken (%(default)s)")
    parser.add_argument("--out", type=Path, help="where results go; the folder if left out")
    parser.add_argument("--pixel-size-pm", type=float, help="for files that do not state it")
    parser.add_argument("--every-s", type=float, default=LOOK_S, help="between two looks")
    parser.add_argument("--once", action="store_true", help="end after the files that are there")
    return parser


def _once(watch: FolderWatch, every_s: float) -> int:
    watch.look(_show)
    time.sleep(every_s)  # a file that grows shows it by then
    taken = watch.look(_show)
    problems = [one.problem for one in taken if one.problem is not None]
    if any(problem.kind not in _FINAL for problem in problems):
        return 3
    return 1 if problems or watch.missed_count else 0


def _forever(watch: FolderWatch, every_s: float) -> int:
    while True:
        watch.look(_show)
        time.sleep(every_s)


def _show(one: Taken) -> None:
    said = f"{one.atom_count} atoms" if one.problem is None else str(one.problem)
    sys.stdout.write(f"{one.name}: {said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(watch_command())
