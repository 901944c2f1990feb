"""The content of one append to a FrameSet: checked, in its stored form, with its digest.

Axis letters: n frame, y row, x column; K atoms of one frame.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from manybeam.data.commits import Commit
from manybeam.errors import InvalidFrame, InvalidInput
from manybeam.spec import Condition, Policy

LARGEST_COUNT = 2**24  # the frame number of a row of truth is a float32


class Batch:
    """The content of one append, checked and in its stored form."""

    def __init__(
        self,
        head: Commit,
        frames_nyx: ndarray,
        truth: Sequence[ndarray] | None,
        pixel_size_pm: float | ndarray | None,
    ) -> None:
        self.frames_nyx = _checked_frames(head, np.asarray(frames_nyx))
        count = len(self.frames_nyx)
        self.sizes_n = _checked_sizes(pixel_size_pm, count)
        self.truth = _checked_truth(truth, count)
        if count and head.count and (head.truth_rows is None) != (self.truth is None):
            has = "no truth" if head.truth_rows is None else "truth"
            raise InvalidInput(
                f"the FrameSet has {has}, and these frames differ",
                "a FrameSet has truth for all frames or for none",
                "put them into another FrameSet",
            )
        self.rows = None if self.truth is None else _rows(self.truth, head.count)

    def commit_after(self, head: Commit) -> Commit:
        """Return the record of the set after this batch."""
        count, sizes = head.count + len(self.frames_nyx), set(self.sizes_n.tolist())
        if head.count:
            sizes.add(head.pixel_size_pm)
        shared = sizes.pop() if len(sizes) == 1 else None
        return head.following(
            count=count,
            truth_rows=None if self.rows is None else (head.truth_rows or 0) + len(self.rows),
            digest=chain(head.digest, self.frames_nyx, self.truth, self.sizes_n),
            pixel_size_pm=shared if shared is not None and np.isfinite(shared) else None,
        )


def _checked_frames(head: Commit, frames_nyx: ndarray) -> ndarray:
    if frames_nyx.ndim != 3 or frames_nyx.shape[1:] != head.shape:
        raise InvalidFrame(
            f"frames of shape {frames_nyx.shape} do not fit into this FrameSet",
            f"(n, {head.shape[0]}, {head.shape[1]})",
            "put frames of another size into another FrameSet",
        )
    if frames_nyx.dtype.kind not in "biuf" or not np.isfinite(frames_nyx).all():
        raise InvalidFrame(
            "frames have values that are not finite numbers",
            "",
            "fill these pixels, or leave the frames out",
        )
    if head.count + len(frames_nyx) > LARGEST_COUNT:
        raise InvalidFrame(f"more than {LARGEST_COUNT} frames", "", "begin another FrameSet")
    with np.errstate(over="ignore", invalid="ignore"):
        stored_nyx = np.ascontiguousarray(frames_nyx, dtype=np.dtype(head.dtype))
    is_equal = (
        np.isfinite(stored_nyx).all()
        if stored_nyx.dtype.kind == "f"
        else (stored_nyx == frames_nyx).all()
    )
    if not is_equal:
        hint = "make the FrameSet with dtype='float32'"
        raise InvalidFrame(
            f"frames lose values as {head.dtype}", f"the FrameSet stores {head.dtype}", hint
        )
    return stored_nyx


def _checked_sizes(pixel_size_pm: float | ndarray | None, count: int) -> ndarray:
    """Return one size for each frame, NaN if unknown."""
    given = np.asarray(np.nan if pixel_size_pm is None else pixel_size_pm, dtype=np.float64)
    if given.shape not in ((), (count,)):
        raise InvalidInput(
            f"pixel sizes of shape {given.shape} for {count} frames",
            "one, or one for each frame",
            "",
        )
    if not (np.isnan(given) | (np.isfinite(given) & (given > 0))).all():
        raise InvalidInput(f"pixel_size_pm: {pixel_size_pm!r} is not > 0", "picometres", "")
    return np.array(np.broadcast_to(given, (count,)))


def _checked_truth(truth: Sequence[ndarray] | None, count: int) -> list[ndarray] | None:
    if truth is None:
        return None
    checked = [np.ascontiguousarray(atoms, dtype=np.float32) for atoms in truth]
    checked = [atoms.reshape(0, 3) if atoms.size == 0 else atoms for atoms in checked]
    if len(checked) != count:
        raise InvalidInput(
            f"truth of {len(checked)} frames for {count} frames", "one for each frame", ""
        )
    for i, atoms in enumerate(checked):
        if atoms.ndim != 2 or atoms.shape[1] != 3 or not np.isfinite(atoms).all():
            raise InvalidInput(
                f"truth[{i}] of shape {atoms.shape} is not a list of atoms",
                "(K, 3) = y, x, class, all finite",
                "give class 0 if it is unknown",
            )
    return checked


def _rows(truth: list[ndarray], start: int) -> ndarray:
    """Return the truth of all frames as one table; its first column is the number of the frame."""
    numbers = np.repeat(np.arange(start, start + len(truth)), [len(atoms) for atoms in truth])
    return np.column_stack([numbers.astype(np.float32), np.concatenate([np.zeros((0, 3)), *truth])])


def seed(dtype: str, shape: tuple[int, int], condition: Condition | Policy) -> str:
    """Return the digest of a set without frames."""
    text = f"manybeam frames 1 {dtype} {shape[0]} {shape[1]} {condition.digest}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def chain(
    digest: str,
    frames_nyx: ndarray,
    truth: list[ndarray] | None,
    sizes_n: ndarray,
) -> str:
    """Return the digest after more frames; it does not depend on the number of appends."""
    for i, frame_yx in enumerate(frames_nyx):
        link = hashlib.sha256(digest.encode())
        link.update(b"no truth" if truth is None else b"%d atoms" % len(truth[i]))
        link.update(b"" if truth is None else truth[i].tobytes())
        link.update(sizes_n[i].tobytes())
        link.update(np.ascontiguousarray(frame_yx).data)
        digest = link.hexdigest()[:32]
    return digest
