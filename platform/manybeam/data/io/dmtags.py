"""The tree of tags in a DigitalMicrograph file (DM3, DM4), without its pixels.

Each length is compared with the end of the file and the depth with a limit. So a damaged tree
causes a FileFault after at most one pass over the file.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manybeam.data.io.limits import FileFault

DEPTH = 64  # the deepest tree seen has 12 levels
TEXT_CHARS = 20_000  # longer arrays of 16-bit numbers are not text

# Code of a number -> struct's letter.
_NUMBERS = {
    2: "h",
    3: "i",
    4: "H",
    5: "I",
    6: "f",
    7: "d",
    8: "B",
    9: "b",
    10: "b",
    11: "q",
    12: "Q",
}
_STRUCT, _STRING, _ARRAY = 15, 18, 20
_GROUP, _DATA = 20, 21

Order = Literal["<", ">"]  # little or big end first


@dataclass(frozen=True)
class TagArray:
    """An array in the file: offset, number of bytes, number of items, byte order."""

    offset: int
    byte_count: int
    count: int
    order: Order


def read_tags(path: Path) -> dict[str, Any]:
    """Return the tree: a group is a dict, an unnamed entry has its number as name.

    Raises:
        FileFault: it is not a DM3 or DM4 file, or it is cut short or damaged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        return _Reader(memory).tree()


class _Reader:
    """One pass over the tags; `at` is the current byte."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory, self.at = memory, 0
        self.order: Order = ">"
        self.version = self._take(">I")
        if self.version not in (3, 4):
            raise FileFault("it does not start like a DM3 or DM4 file")
        self.wide = ">Q" if self.version == 4 else ">I"

    def tree(self) -> dict[str, Any]:
        self._take(self.wide)  # size of the tree, which is often wrong
        self.order = "<" if self._take(">I") == 1 else ">"
        return self._group(0)

    def _take(self, form: str) -> Any:
        """Return the next number."""
        try:
            (value,) = struct.unpack_from(form, self.memory, self.at)
        except struct.error as error:
            raise FileFault(
                "its tags run past the end of the file: the file is cut short"
            ) from error
        self.at += struct.calcsize(form)
        return value

    def _skip(self, byte_count: int) -> bytes | None:
        """Skip some bytes that must exist; return them if they may be text."""
        if byte_count > len(self.memory) - self.at:
            raise FileFault("a tag is longer than what is left of the file: cut short")
        start, self.at = self.at, self.at + byte_count
        return self.memory[start : self.at] if byte_count <= 2 * TEXT_CHARS else None

    def _group(self, depth: int) -> dict[str, Any]:
        if depth > DEPTH:
            raise FileFault(f"its tags are nested deeper than {DEPTH}: damaged")
        self.at += 2  # sorted, open
        found: dict[str, Any] = {}
        for number in range(1, self._take(self.wide) + 1):
            kind, length = self._take(">B"), self._take(">H")
            name = (self._skip(length) or b"").decode("latin-1")
            if self.version == 4:
                self._take(self.wide)  # bytes in this entry
            if kind not in (_GROUP, _DATA):
                raise FileFault(f"a tag of kind {kind}, where 20 or 21 is known: damaged")
            value = self._group(depth + 1) if kind == _GROUP else self._data(name)
            found[name or str(number)] = value
        return found

    def _data(self, name: str) -> Any:
        """Return the value of one entry, according to its list of codes."""
        if self._take(">4s") != b"%%%%":
            raise FileFault("a tag does not start with its mark: damaged")
        count = self._take(self.wide)
        if not 0 < count <= 2_000:
            raise FileFault(f"a tag described by {count} numbers: damaged")
        codes = [self._take(self.wide) for _ in range(count)]
        if codes[0] in _NUMBERS and count == 1:
            return self._take(self.order + _NUMBERS[codes[0]])
        if codes[0] == _STRUCT:
            return [self._take(self.order + letter) for letter in self._letters(codes)]
        if codes[0] == _STRING and count == 2:
            return self._text(codes[1])
        if codes[0] == _ARRAY and count > 2:
            return self._array(name, codes[1:-1], codes[-1])
        raise FileFault(f"a tag of unknown type {codes[0]}: damaged")

    def _letters(self, codes: list[int]) -> str:
        """Return the types of the fields; codes are 15, 0, fields, (0, type) of each."""
        if any(code not in _NUMBERS for code in codes[4::2]) or len(codes) < 5:
            raise FileFault("a struct of unknown fields: damaged")
        return "".join(_NUMBERS[code] for code in codes[4::2])

    def _array(self, name: str, item: list[int], count: int) -> Any:
        """Return text, or the place of an array; the name distinguishes 16-bit pixels and text."""
        if item[0] != _STRUCT and item[0] not in _NUMBERS:
            raise FileFault(f"an array of unknown type {item[0]}: damaged")
        letters = self._letters(item) if item[0] == _STRUCT else _NUMBERS[item[0]]
        if letters == "H" and name != "Data" and count <= TEXT_CHARS:
            return self._text(count)
        byte_count = count * struct.calcsize("=" + letters)
        block = TagArray(self.at, byte_count, count, self.order)
        self._skip(byte_count)
        return block

    def _text(self, count: int) -> str:
        content = self._skip(2 * count) or b""
        return content.decode("utf-16-le" if self.order == "<" else "utf-16-be", "replace")
