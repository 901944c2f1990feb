"""Archives of strangers, unpacked within bounds: what a file claims is checked before it is read.

Everything that is imported goes through here, from a disk or through the web.
"""

import hashlib
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from manybeam.errors import ManybeamError, NotFound, TooLarge, UnreadableFile, WriteFailed

CHUNK = 1 << 20
RATIO_COUNTS_FROM = 10_000_000  # bytes; what unpacks to less harms nobody
DIRECTORY_BYTES_PER_ENTRY = 1024  # a name and some stamps need a tenth of it
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
_END = b"PK\x05\x06"
_END_SIZE = 22
_END64 = b"PK\x06\x06"  # of Zip64: the same with larger numbers, and where that stands
_END64_SIZE = 56
_LOCATOR = b"PK\x06\x07"
_LOCATOR_SIZE = 20
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError)


@dataclass(frozen=True)
class Limits:
    """What an import may be made of.

    Attributes:
        total_bytes: of all files together, unpacked.
        entries: files and folders.
        ratio: bytes unpacked for each byte packed; weights have about 1, JSON about 20.
    """

    total_bytes: int = 2_000_000_000
    entries: int = 10_000
    ratio: float = 200.0


def unpack(path: Path, into: Path, limits: Limits | None = None) -> list[str]:
    """Unpack a .zip into an empty folder and return the names of its files.

    Nothing is read before every name, size and flag was found good.

    Raises:
        TooLarge: too many entries, or more bytes than the limit, declared or met.
        UnreadableFile: no .zip, cut short, encrypted, or names that leave the folder, are links,
            come twice or may hold a pickle.
        WriteFailed: the disk refused.
    """
    limits = limits or Limits()
    with _opened(path, limits) as archive:
        entries = _checked(path, archive, limits)
        refuse_pickles(path.name, [entry.filename for entry in entries])
        left = limits.total_bytes
        for entry in entries:
            left -= _copy(path, archive, entry, into / entry.filename, left)
    return [entry.filename for entry in entries]


def names_in(path: Path, limits: Limits | None = None) -> list[str]:
    """Return the names of the files in a .zip that keeps the limits; raises as `unpack` does.

    Pickles are listed: who asks has to know what kind of file it is.
    """
    limits = limits or Limits()
    with _opened(path, limits) as archive:
        return [entry.filename for entry in _checked(path, archive, limits)]


def files_of(folder: Path, limits: Limits | None = None) -> list[str]:
    """Return the names of the files in a folder that keeps the limits, below it, in order.

    Raises:
        TooLarge: too many entries or bytes.
        UnreadableFile: a link, something that is no file, or a file that may hold a pickle.
    """
    limits, found, total = limits or Limits(), [], 0
    for count, item in enumerate(below(folder)):
        _keep_count(folder, count + 1, limits)
        if item.is_symlink() or not (item.is_file() or item.is_dir()):
            raise _refused(folder.name, f"{item.relative_to(folder)} is a link or a device")
        if item.is_file():
            total += item.stat().st_size
            found.append(item.relative_to(folder).as_posix())
    _keep_total(folder, total, limits)
    refuse_pickles(folder.name, found)
    return sorted(found)


def below(folder: Path) -> Iterator[Path]:
    """Yield what lies below a folder as it is met: a tree without end is never read whole."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as items:
            for item in items:
                yield Path(item.path)
                if item.is_dir(follow_symlinks=False):
                    waiting.append(Path(item.path))


def refuse_pickles(source: str, names: Iterable[str]) -> None:
    """Refuse files that pickles are kept in: opening one can run any program."""
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise UnreadableFile(
            f"{source} holds {', '.join(pickles[:5])}, which may be pickles",
            "a pickle is never opened: it can run any program; weights come as .safetensors",
            "ask for the weights in that form",
        )


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path, limits: Limits) -> zipfile.ZipFile:
    try:
        if path.stat().st_size > limits.total_bytes:
            raise _too_large(path, f"{path.stat().st_size:,} bytes", limits)
        _keep_directory(path, limits)
        return zipfile.ZipFile(path)
    except ManybeamError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}", "", "give the path of a package") from error
    except _FAULTS as error:
        raise _refused(path.name, f"it is no .zip, or cut short: {error}") from error


def _keep_directory(path: Path, limits: Limits) -> None:
    """Refuse a list of contents longer than our entries need: reading it takes memory already."""
    with path.open("rb") as file:
        length = max(_directory_sizes(file))
    if length > limits.entries * DIRECTORY_BYTES_PER_ENTRY:
        raise _too_large(path, f"a list of contents of {length:,} bytes", limits)


def _directory_sizes(file: BinaryIO) -> list[int]:
    """Return how long the list of contents is, by each record that a reader may go by."""
    whole = _END_SIZE + (1 << 16) + _LOCATOR_SIZE + _END64_SIZE
    file.seek(-min(file.seek(0, 2), whole), 2)
    tail = file.read()
    last = tail[-_END_SIZE:]
    place = len(tail) - _END_SIZE if last.startswith(_END) else tail.rfind(_END)
    if place < 0 or len(tail) - place < _END_SIZE:
        raise zipfile.BadZipFile("it has no list of contents at its end")
    sizes: list[int] = [struct.unpack_from("<I", tail, place + 12)[0]]
    before = tail[max(place - _LOCATOR_SIZE - _END64_SIZE, 0) : place]
    beside, locator = before[:-_LOCATOR_SIZE], before[-_LOCATOR_SIZE:]
    if not locator.startswith(_LOCATOR) or len(locator) < _LOCATOR_SIZE:
        return sizes
    # Python's reader looks beside the locator; newer ones look first where the locator points.
    file.seek(min(struct.unpack_from("<Q", locator, 8)[0], file.seek(0, 2)))
    far = file.read(_END64_SIZE)
    large = [struct.unpack_from("<Q", one, 40)[0] for one in (beside, far) if _is_end64(one)]
    return large if _is_end64(beside) else sizes + large


def _is_end64(record: bytes) -> bool:
    return record.startswith(_END64) and len(record) == _END64_SIZE


def _checked(path: Path, archive: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    """Return the entries that are files, all of them checked."""
    entries = archive.infolist()
    _keep_count(path, len(entries), limits)
    faults = [fault for entry in entries if (fault := _fault(entry))]
    files = [entry for entry in entries if not entry.is_dir()]
    faults += _clashes([entry.filename for entry in files])
    if sum(entry.compress_size for entry in files) > path.stat().st_size:
        faults.append("its entries overlap")
    if faults:
        raise _refused(path.name, "; ".join(faults[:5]))
    _keep_total(path, sum(entry.file_size for entry in files), limits)
    for entry in files:
        if entry.file_size > max(RATIO_COUNTS_FROM, limits.ratio * entry.compress_size):
            raise _too_large(path, f"{entry.filename!r}, packed too tightly to be weights", limits)
    return files


def _fault(entry: zipfile.ZipInfo) -> str:
    """Return what is wrong with one entry, or nothing."""
    name = entry.orig_filename
    if not _is_safe(name):
        return f"the name {name[:80]!r} leaves the folder or is none"
    if entry.flag_bits & 0x1:
        return f"{name!r} is encrypted"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{name!r} is a link or a device"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{name!r} is packed in a way we do not read"
    return ""


def _is_safe(name: str) -> bool:
    """Tell whether a name stays inside the folder on every system."""
    parts = name.removesuffix("/").split("/")
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(parts) <= 16
        and all(part not in ("", ".", "..") and len(part.encode()) <= 200 for part in parts)
    )


def is_safe_path(name: str) -> bool:
    """Tell whether a path a document names is that of a file inside its own folder."""
    return _is_safe(name) and not name.endswith("/")


def _clashes(names: Sequence[str]) -> list[str]:
    """Return what is said twice, also where a system would not tell two names apart."""
    seen: set[str] = set()
    faults = []
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    for name in folded:
        if name in seen:
            faults.append(f"{name!r} is in it twice")
        seen.add(name)
    for name in seen:
        above = {str(parent) for parent in PurePosixPath(name).parents}
        if above & seen:
            faults.append(f"{name!r} lies in what is itself a file")
    return faults


def _copy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, to: Path, left: int) -> int:
    """Write one file and return its bytes, counted as they come."""
    count = 0
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, to.open("xb") as target:
            while chunk := source.read(CHUNK):
                count += len(chunk)
                if count > min(left, entry.file_size):
                    raise _refused(path.name, f"{entry.filename!r} is longer than it says")
                target.write(chunk)
    except ManybeamError:
        raise
    except (*_FAULTS, RuntimeError) as error:
        raise _refused(path.name, f"{entry.filename!r} cannot be unpacked: {error}") from error
    except OSError as error:
        raise WriteFailed(f"{to} cannot be written: {error}", "", "make room there") from error
    if count != entry.file_size:
        raise _refused(path.name, f"{entry.filename!r} is shorter than it says")
    return count


def _keep_count(path: Path, count: int, limits: Limits) -> None:
    if count > limits.entries:
        raise TooLarge(
            f"{path.name} holds more than {limits.entries} entries",
            "an ensemble has three for each member",
            "import the ensembles in it one by one",
        )


def _keep_total(path: Path, total: int, limits: Limits) -> None:
    if total > limits.total_bytes:
        raise _too_large(path, f"{total:,} bytes", limits)


def _too_large(path: Path, seen: str, limits: Limits) -> TooLarge:
    return TooLarge(
        f"{path.name} holds {seen}",
        f"at most {limits.total_bytes:,} bytes unpacked, {limits.ratio:g} for each packed",
        "import the members in smaller ensembles",
    )


def _refused(source: str, why: str) -> UnreadableFile:
    return UnreadableFile(
        f"{source}: {why}",
        "a package is a plain .zip of files, each named once, below its own root",
        "ask its maker for the file again",
    )
