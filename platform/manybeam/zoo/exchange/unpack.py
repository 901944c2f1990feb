"""Safe unpacking of archives: the declared sizes of files are checked before they are read.

All imports use this module, from a disk and from the web.
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
RATIO_COUNTS_FROM = 10_000_000  # bytes; smaller files may have any ratio
DIRECTORY_BYTES_PER_ENTRY = 1024  # a name and times need about a tenth of it
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
_END = b"PK\x05\x06"
_END_SIZE = 22
_END64 = b"PK\x06\x06"  # the same record in Zip64, with larger numbers
_END64_SIZE = 56
_LOCATOR = b"PK\x06\x07"
_LOCATOR_SIZE = 20
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError)


@dataclass(frozen=True)
class UnpackLimits:
    """Limits of an archive.

    Attributes:
        total_bytes: largest size of all files together, unpacked.
        entries: largest number of files and folders.
        ratio: largest ratio of unpacked to packed bytes; weights have about 1, JSON about 20.
    """

    total_bytes: int = 2_000_000_000
    entries: int = 10_000
    ratio: float = 200.0


def unpack(path: Path, into: Path, limits: UnpackLimits | None = None) -> list[str]:
    """Unpack a .zip into an empty folder and return the names of its files.

    All names, sizes and flags are checked before a file is read.

    Raises:
        TooLarge: there are too many entries or too many bytes.
        UnreadableFile: it is no .zip, cut short or encrypted; or it contains links, equal names,
            names that lead out of the folder, or files that may be pickles.
        WriteFailed: the disk cannot be written to.
    """
    limits = limits or UnpackLimits()
    with _opened(path, limits) as archive:
        entries = _checked(path, archive, limits)
        refuse_pickles(path.name, [entry.filename for entry in entries])
        left = limits.total_bytes
        for entry in entries:
            left -= _copy(path, archive, entry, into / entry.filename, left)
    return [entry.filename for entry in entries]


def names_in(path: Path, limits: UnpackLimits | None = None) -> list[str]:
    """Return the names of the files in a .zip within the limits; raises as `unpack` does.

    Pickles are listed too, because the caller uses the names to recognise the kind of file.
    """
    limits = limits or UnpackLimits()
    with _opened(path, limits) as archive:
        return [entry.filename for entry in _checked(path, archive, limits)]


def files_of(folder: Path, limits: UnpackLimits | None = None) -> list[str]:
    """Return the sorted names of all files in a folder within the limits.

    Raises:
        TooLarge: there are too many entries or bytes.
        UnreadableFile: there is a link, a device, or a file that may be a pickle.
    """
    limits, found, total = limits or UnpackLimits(), [], 0
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
    """Yield all paths below a folder one by one, so that an endless tree can be stopped."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as items:
            for item in items:
                yield Path(item.path)
                if item.is_dir(follow_symlinks=False):
                    waiting.append(Path(item.path))


def refuse_pickles(source: str, names: Iterable[str]) -> None:
    """Refuse files that may be pickles, because opening a pickle can run any program."""
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise UnreadableFile(
            f"{source} holds {', '.join(pickles[:5])}, which may be pickles",
            "a pickle is never opened, because it can run any program",
            "ask for the weights as .safetensors",
        )


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path, limits: UnpackLimits) -> zipfile.ZipFile:
    try:
        if path.stat().st_size > limits.total_bytes:
            raise _too_large(path, f"{path.stat().st_size:,} bytes", limits)
        _keep_directory(path, limits)
        return zipfile.ZipFile(path)
    except ManybeamError:
        raise
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no file {path}", "an import needs a package", "give the path of a package"
        ) from error
    except _FAULTS as error:
        raise _refused(path.name, f"it is no .zip, or cut short: {error}") from error


def _keep_directory(path: Path, limits: UnpackLimits) -> None:
    """Refuse a list of contents that is too long, because reading it needs memory."""
    with path.open("rb") as file:
        length = max(_directory_sizes(file))
    if length > limits.entries * DIRECTORY_BYTES_PER_ENTRY:
        raise _too_large(path, f"a list of contents of {length:,} bytes", limits)


def _directory_sizes(file: BinaryIO) -> list[int]:
    """Return the length of the list of contents, from all records that a reader may use."""
    whole = _END_SIZE + (1 << 16) + _LOCATOR_SIZE + _END64_SIZE
    file.seek(-min(file.seek(0, 2), whole), 2)
    tail = file.read()
    last = tail[-_END_SIZE:]
    place = len(tail) - _END_SIZE if last.startswith(_END) else tail.rfind(_END)
    if place < 0 or len(tail) - place < _END_SIZE:
        raise zipfile.BadZipFile("it has no list of contents at its end")
    sizes: list[int] = [struct.unpack_from("<I", tail, place + 12)[0]]
    before = tail[max(place - _LOCATOR_SIZE - _END64_SIZE, 0) : place]
    near, locator = before[:-_LOCATOR_SIZE], before[-_LOCATOR_SIZE:]
    if not locator.startswith(_LOCATOR) or len(locator) < _LOCATOR_SIZE:
        return sizes
    # Python's reader reads the record before the locator; newer ones first follow the locator.
    file.seek(min(struct.unpack_from("<Q", locator, 8)[0], file.seek(0, 2)))
    far = file.read(_END64_SIZE)
    large = [struct.unpack_from("<Q", one, 40)[0] for one in (near, far) if _is_end64(one)]
    return large if _is_end64(near) else sizes + large


def _is_end64(record: bytes) -> bool:
    return record.startswith(_END64) and len(record) == _END64_SIZE


def _checked(path: Path, archive: zipfile.ZipFile, limits: UnpackLimits) -> list[zipfile.ZipInfo]:
    """Return the entries that are files, after all checks."""
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
            raise _too_large(path, f"{entry.filename!r} with too high a compression", limits)
    return files


def _fault(entry: zipfile.ZipInfo) -> str:
    """Return what is wrong with one entry; "" if nothing is."""
    name = entry.orig_filename
    if not _is_safe(name):
        return f"the name {name[:80]!r} leads out of the folder or is not allowed"
    if entry.flag_bits & 0x1:
        return f"{name!r} is encrypted"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{name!r} is a link or a device"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{name!r} has a compression that is not supported"
    return ""


def _is_safe(name: str) -> bool:
    """Return whether a name stays inside the folder on every operating system."""
    parts = name.removesuffix("/").split("/")
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(parts) <= 16
        and all(part not in ("", ".", "..") and len(part.encode()) <= 200 for part in parts)
    )


def is_safe_path(name: str) -> bool:
    """Return whether a path in a document is that of a file inside the folder."""
    return _is_safe(name) and not name.endswith("/")


def _clashes(names: Sequence[str]) -> list[str]:
    """Return names that occur twice, also if they are equal only on some operating systems."""
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
            faults.append(f"{name!r} has a file as its folder")
    return faults


def _copy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, to: Path, left: int) -> int:
    """Write one file and return the number of its bytes."""
    count = 0
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, to.open("xb") as target:
            while chunk := source.read(CHUNK):
                count += len(chunk)
                if count > min(left, entry.file_size):
                    raise _refused(path.name, f"{entry.filename!r} is longer than declared")
                target.write(chunk)
    except ManybeamError:
        raise
    except (*_FAULTS, RuntimeError) as error:
        raise _refused(path.name, f"{entry.filename!r} cannot be unpacked: {error}") from error
    except OSError as error:
        raise WriteFailed(
            f"{to} cannot be written: {error}",
            "the archive needs space to be unpacked",
            "free space there",
        ) from error
    if count != entry.file_size:
        raise _refused(path.name, f"{entry.filename!r} is shorter than declared")
    return count


def _keep_count(path: Path, count: int, limits: UnpackLimits) -> None:
    if count > limits.entries:
        raise TooLarge(
            f"{path.name} holds more than {limits.entries} entries",
            "an ensemble has three entries for each member",
            "import the ensembles in it one by one",
        )


def _keep_total(path: Path, total: int, limits: UnpackLimits) -> None:
    if total > limits.total_bytes:
        raise _too_large(path, f"{total:,} bytes", limits)


def _too_large(path: Path, seen: str, limits: UnpackLimits) -> TooLarge:
    return TooLarge(
        f"{path.name} holds {seen}",
        f"at most {limits.total_bytes:,} bytes unpacked, and {limits.ratio:g} for each packed byte",
        "import the members in smaller ensembles",
    )


def _refused(source: str, why: str) -> UnreadableFile:
    return UnreadableFile(
        f"{source}: {why}",
        "a package is a plain .zip; all names differ and stay inside the package",
        "ask its author for the file again",
    )
