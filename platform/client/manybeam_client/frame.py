"""A frame as the body of a request.

Axis letters: y row, x column.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Mapping
from urllib.parse import quote, urlencode

from manybeam_client.answer import NPZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

RAW = "application/octet-stream"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@-]{0,199}")  # names that the service takes


@dataclass(frozen=True, eq=False)
class FrameRequest:
    """One frame, ready to be sent as often as needed.

    Attributes:
        ref: REF that answers, or `auto`.
        frame_id: name of the frame; the same if it is sent again.
        body: the values in C order, or the bytes of a file.
        content_type: what they are.
        dtype: type of the values, as `<f4`; empty for a file.
        shape: (rows, columns), as `512,512`; empty for a file.
        query: what else the service is told.
    """

    ref: str
    frame_id: str
    body: Any
    content_type: str = RAW
    dtype: str = ""
    shape: str = ""
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def byte_count(self) -> int:
        """Size of the body."""
        return len(self.body)

    def headers(self) -> dict[str, str]:
        """Return the headers that describe the body."""
        found = {"Content-Type": self.content_type, "Accept": NPZ}
        if self.dtype:
            found.update({"X-Dtype": self.dtype, "X-Shape": self.shape})
        return found

    def path(self, deadline_ms: int) -> str:
        """Return path and query of a request that may take so long."""
        query = {**self.query, "frame_id": self.frame_id, "deadline_ms": str(deadline_ms)}
        return "/v1/predict/{}?{}".format(quote(self.ref, safe="/@"), urlencode(query))

    def head(self, deadline_ms: int | None) -> str:
        """Return the head of the frame in a stream, as JSON."""
        # The path of the stream says the instrument; a head that says it too is refused.
        query = {name: value for name, value in self.query.items() if name != "instrument"}
        if deadline_ms is not None:
            query["deadline_ms"] = str(deadline_ms)
        said = {
            "type": "frame",
            "frame_id": self.frame_id,
            "content_type": self.content_type,
            "dtype": self.dtype,
            "shape": [int(side) for side in self.shape.split(",") if side],
            "accept": NPZ,
            "bytes": self.byte_count,
            "query": query,
        }
        return json.dumps({name: value for name, value in said.items() if value not in ("", [])})


def checked_frame(frame: Any) -> NDArray[Any]:
    """Return an array that the service can take: two axes, real numbers, C order.

    A contiguous array of such numbers is not copied, whatever its byte order.

    Raises:
        TypeError: its values are no real numbers.
        ValueError: it has not two axes, or no pixels.
    """
    import numpy as np

    found = np.asarray(frame)
    if found.dtype.kind not in "biuf":
        advice = "send the modulus or the phase" if found.dtype.kind == "c" else "give numbers"
        raise TypeError(
            f"values of type {found.dtype} are not those of a frame; "
            f"bool, integers and real numbers are; {advice}"
        )
    if found.ndim != 2 or not found.size:
        raise ValueError(
            f"shape {found.shape} is not that of a frame; give (rows, columns), one frame at a time"
        )
    if found.dtype.itemsize > 8:  # long double, which has another layout on each machine
        found = found.astype("float64")
    return np.ascontiguousarray(found)


def raw_body(frame_yx: NDArray[Any]) -> tuple[memoryview, str, str]:
    """Return the values of a checked frame without a copy, its type and its shape."""
    values = frame_yx.reshape(-1).view("uint8").data
    return values, frame_yx.dtype.str, ",".join(str(side) for side in frame_yx.shape)


def checked_label(text: str, what: str) -> str:
    """Return a name that the service takes.

    Raises:
        ValueError: it does not take this one.
    """
    if not LABEL.fullmatch(text):
        raise ValueError(
            f"{what}: {text[:80]!r} is not a name; 1 to 200 letters, digits, spaces and . _ : / @ -"
        )
    return text
