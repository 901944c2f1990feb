"""What a request asks for beside its frame: the query string, read with all its faults at once."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from manybeam.errors import InvalidInput

MAPS = ("mean", "std", "mi")  # one value a pixel: probability, spread, mutual information
WANTS = ("atoms", *MAPS, "members", "votes")
MAX_DEADLINE_MS = 600_000

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@-]{0,199}")


@dataclass(frozen=True)
class RequestQuery:
    """What a request asks for beside the frame itself.

    Args:
        pixel_size_pm: edge of a pixel, in pm; None if the caller does not know it.
        want: which arrays the answer holds, of `WANTS`: `atoms` (one row each), the maps `mean`,
            `std` and `mi` (mutual information in nats), `members` (what each one found), `votes`.
        deadline_ms: how long the caller waits, in ms; None for as long as it takes.
        instrument: name of the instrument, repeated in the answer.
        frame_id: the caller's name of the frame, repeated in the answer. A prediction changes
            nothing, so the same frame may be sent any number of times.
        false_atoms: bound on the share of an answer's atoms that may be false; 0 for none.
        ensemble: REF to select from, or `auto`; only `select` reads it from the query.
        members: indices of the members of REF that answer; all if left out.
        condition: id of a condition of the facility: what is known of the recording.
    """

    pixel_size_pm: float | None = None
    want: tuple[str, ...] = ("atoms",)
    deadline_ms: int | None = None
    instrument: str = ""
    frame_id: str = ""
    false_atoms: float = 0.0
    ensemble: str = "auto"
    members: tuple[int, ...] = ()
    condition: str = ""


PREDICT_NAMES = (
    "pixel_size_pm",
    "want",
    "deadline_ms",
    "instrument",
    "frame_id",
    "false_atoms",
    "members",
    "condition",
)
SELECT_NAMES = (
    "pixel_size_pm",
    "deadline_ms",
    "instrument",
    "frame_id",
    "ensemble",
    "condition",
)


def read_query(pairs: Sequence[tuple[str, str]], allowed: Sequence[str]) -> RequestQuery:
    """Return the question a query string asks; all its faults are reported at once.

    Args:
        pairs: (name, value) as they stand in the query, in order.
        allowed: names this path takes.

    Raises:
        InvalidInput: a name is unknown or given twice, or a value cannot be used.

    Example:
        >>> read_query([("want", "atoms,std"), ("pixel_size_pm", "7.8")], PREDICT_NAMES).want
        ('atoms', 'std')
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in allowed:
            faults.append(_unknown_name(name, allowed))
        elif name in values:
            faults.append(f"{name}: given twice; give it once")
        else:
            try:
                values[name] = _READERS[name](text)
            except ValueError as error:
                faults.append(f"{name}: {error}")
    if faults:
        raise InvalidInput("; ".join(faults), f"allowed: {', '.join(allowed)}", "mend the query")
    return RequestQuery(**values)


def _unknown_name(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"{name[:80]!r}: no such name" + (f"; did you mean {near[0]!r}?" if near else "")


def _pixel_size(text: str) -> float:
    value = _number(text)
    if not 1 <= value <= 500:
        raise ValueError(
            f"{text[:40]!r} is not from 1 to 500 pm; give the edge of a pixel in picometres "
            "(a 1024 px frame 8 nm wide has 7.8)"
        )
    return value


def _deadline(text: str) -> int:
    value = _number(text)
    if not 1 <= value <= MAX_DEADLINE_MS:
        raise ValueError(f"{text[:40]!r} is not from 1 to {MAX_DEADLINE_MS} ms")
    return round(value)


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise ValueError(f"{text[:40]!r} is not a share between 0 and 1, such as 0.05")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} is not finite")
    return value


def _wanted(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in WANTS:
            near = difflib.get_close_matches(name, WANTS, n=1, cutoff=0.4)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name[:40]!r} is none of {', '.join(WANTS)}{advice}")
    return names


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{text[:40]!r} is not a name; 1 to 200 letters, digits, spaces and . _ : / @ -"
        )
    return text


def _members(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"{text[:40]!r} are no members; give indices with commas, as 03,05")
    return tuple(dict.fromkeys(int(word) for word in words))


_READERS: dict[str, Callable[[str], Any]] = {
    "pixel_size_pm": _pixel_size,
    "false_atoms": _share,
    "want": _wanted,
    "deadline_ms": _deadline,
    "instrument": _label,
    "frame_id": _label,
    "ensemble": _label,
    "members": _members,
    "condition": _label,
}
