"""The answer for one frame: atoms, how sure they are, and who said so.

A field that an older service does not send is None; what a newer one adds is in `meta`.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Mapping

from manybeam_client.errors import Problem, Unanswered

if TYPE_CHECKING:  # numpy is half of the time of an import; it is loaded with the first frame
    import numpy as np
    from numpy.typing import NDArray

ATOM_COLUMNS = ("y", "x", "class", "probability", "spread_y_px", "spread_x_px", "votes")
NPZ = "application/x-npz"
_NO_MAPS = ("atoms", "members", "votes", "meta")


@dataclass(frozen=True, eq=False)
class Answer:
    """What the service says of one frame. It is false if there is no answer.

    Attributes:
        frame_id: name of the frame.
        atoms: float32 (atom, 7): y [px], x [px], class, probability, spread_y [px],
            spread_x [px], votes. No rows if there is no answer.
        maps: maps (y, x) that were asked for by `want`: `mean`, `std`, `mi`.
        arrays: all arrays of the answer, by name.
        meta: all facts of the answer, as the service sent them.
        error: why there is no answer; None if there is one.
        took_ms: time from the call to the answer.
    """

    frame_id: str = ""
    atoms: NDArray[np.float32] = field(default_factory=lambda: _no_atoms())
    maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    error: Problem | None = None
    took_ms: float = 0.0

    def __bool__(self) -> bool:
        """Return whether the frame was answered."""
        return self.error is None

    def raise_for_error(self) -> None:
        """Raise `Unanswered` if there is no answer."""
        if self.error is not None:
            raise Unanswered(self.error)

    @property
    def spread(self) -> NDArray[np.float32]:
        """Disagreement of the members on the position of each atom [px]: sqrt(var_y + var_x)."""
        import numpy as np

        return np.asarray(np.hypot(self.atoms[:, 4], self.atoms[:, 5]), np.float32)

    @property
    def spread_pm(self) -> NDArray[np.float32] | None:
        """`spread` in pm; None if the pixel size is not known."""
        size_pm = self.pixel_size_pm
        return None if size_pm is None else self.spread * self.spread.dtype.type(size_pm)

    @property
    def pixel_size_pm(self) -> float | None:
        """Edge of a pixel as the service used it [pm]; None if it is not known."""
        value = self.meta.get("pixel_size_pm")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def drifted(self) -> bool | None:
        """Whether the frame is out of distribution; None if that is not known."""
        drift = self.meta.get("drift")
        flag = drift.get("flag") if isinstance(drift, dict) else None
        return None if flag is None else bool(flag)

    @property
    def members(self) -> list[int] | None:
        """Indices of the members that answered."""
        return self.meta.get("members")

    @property
    def version(self) -> int | None:
        """Version of the ensemble that answered."""
        return self.meta.get("version")

    @property
    def ensemble(self) -> str | None:
        """Name of the ensemble that answered."""
        return self.meta.get("ensemble")

    @property
    def why(self) -> str | None:
        """Why these members answered, in words."""
        return self.meta.get("why")


def read_answer(data: bytes, frame_id: str = "", took_ms: float = 0.0) -> Answer:
    """Return the answer of a body; its `error` says why if it cannot be read.

    Args:
        data: the npz of the service.
        frame_id: name of the frame.
        took_ms: time that it took.
    """
    import numpy as np

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as parts:
            arrays = {name: parts[name] for name in parts.files}
        meta = json.loads(arrays["meta"].tobytes().decode("utf-8"))
        atoms = _atoms(arrays.get("atoms"))
        if not isinstance(meta, dict):
            raise ValueError("meta is no object")
    except Exception as error:  # noqa: BLE001 - a damaged or foreign body raises anything
        cause = f"{type(error).__name__}: {str(error)[:120]}"
        problem = Problem(
            "unreadable",
            "the answer cannot be read",
            why=cause,
            hint="something between here and the service may have changed it; run manybeam-check",
            status=200,
        )
        return Answer(frame_id, error=problem, took_ms=took_ms)
    maps = {
        name: array
        for name, array in arrays.items()
        if name not in _NO_MAPS and not name.endswith("_frame")
    }
    return Answer(frame_id, atoms, maps, arrays, meta, took_ms=took_ms)


def _atoms(found: NDArray[Any] | None) -> NDArray[np.float32]:
    """Return the atoms with the columns that are known here; a newer service may add some."""
    count = len(ATOM_COLUMNS)
    if found is None:
        return _no_atoms()
    if found.ndim != 2 or found.shape[1] < count:
        raise ValueError(f"atoms have shape {found.shape}")
    return found[:, :count].astype("float32", copy=False)


def _no_atoms() -> NDArray[np.float32]:
    import numpy as np

    return np.empty((0, len(ATOM_COLUMNS)), np.float32)
