"""What one append adds to a FrameSet: checked, in the form it is stored in, with its digest.

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
    """What one append adds, checked and in the form it is stored in."""

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
                f"the set has {has} and these frames differ",
                "truth on all frames or on none",
                "put them in a set of their own",
            )
        self.rows = None if self.truth is None else _rows(self.truth, head.count)

    def commit_after(self, head: Commit) -> Commit:
        """Return the record of the set with this batch added."""
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
            f"frames of shape {frames_nyx.shape} do not fit",
            f"(n, {head.shape[0]}, {head.shape[1]})",
            "put frames of another size in a set of their own",
        )
    if frames_nyx.dtype.kind not in "biuf" or not np.isfinite(frames_nyx).all():
        raise InvalidFrame(
            "frames hold values that are not finite numbers", "", "fill or drop them"
        )
    if head.count + len(frames_nyx) > LARGEST_COUNT:
        raise InvalidFrame(f"more than {LARGEST_COUNT} frames", "", "begin another set")
    with np.errstate(over="ignore", invalid="ignore"):
        kept_nyx = np.ascontiguousarray(frames_nyx, dtype=np.dtype(head.dtype))
    is_kept = (
        np.isfinite(kept_nyx).all()
        if kept_nyx.dtype.kind == "f"
        else (kept_nyx == frames_nyx).all()
    )
    if not is_kept:
        hint = "make the set with dtype='float32'"
        raise InvalidFrame(
            f"frames lose value as {head.dtype}", f"the set keeps {head.dtype}", hint
        )
    return kept_nyx


def _checked_sizes(pixel_size_pm: float | ndarray | None, count: int) -> ndarray:
    """Return one size a frame, NaN where unknown."""
    given = np.asarray(np.nan if pixel_size_pm is None else pixel_size_pm, dtype=np.float64)
    if given.shape not in ((), (count,)):
        raise InvalidInput(f"{given.shape} pixel sizes for {count} frames", "one, or one each", "")
    if not (np.isnan(given) | (np.isfinite(given) & (given > 0))).all():
        raise InvalidInput(f"pixel_size_pm: {pixel_size_pm!r} is not > 0", "picometres", "")
    return np.array(np.broadcast_to(given, (count,)))


def _checked_truth(truth: Sequence[ndarray] | None, count: int) -> list[ndarray] | None:
    if truth is None:
        return None
    kept = [np.ascontiguousarray(atoms, dtype=np.float32) for atoms in truth]
    kept = [atoms.reshape(0, 3) if atoms.size == 0 else atoms for atoms in kept]
    if len(kept) != count:
        raise InvalidInput(f"truth of {len(kept)} frames for {count} frames", "one each", "")
    for i, atoms in enumerate(kept):
        if atoms.ndim != 2 or atoms.shape[1] != 3 or not np.isfinite(atoms).all():
            raise InvalidInput(
                f"truth[{i}] of shape {atoms.shape} is no list of atoms",
                "(K, 3) = y, x, class, all finite",
                "class 0 where it is not known",
            )
    return kept


def _rows(truth: list[ndarray], start: int) -> ndarray:
    """Return the truth of all frames as one table whose first column is the frame's number."""
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
    """Return the digest with frames added one by one, so that it does not tell appends apart."""
    for i, frame_yx in enumerate(frames_nyx):
        link = hashlib.sha256(digest.encode())
        link.update(b"no truth" if truth is None else b"%d atoms" % len(truth[i]))
        link.update(b"" if truth is None else truth[i].tobytes())
        link.update(sizes_n[i].tobytes())
        link.update(np.ascontiguousarray(frame_yx).data)
        digest = link.hexdigest()[:32]
    return digest
