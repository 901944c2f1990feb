"""Extras of a package: the calibration set of the members, and the signed manifest.

A calibration set is valid only for the weights it was measured with, so the package names their
digests. The package may come from an unknown person, so its size and format are checked before it
is read. Axis letters: n frame, m member, s number of a summary, k atom, as in
`learn.analysis.calibration_set`.
"""

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manybeam.errors import Corrupt, ManybeamError
from manybeam.spec.imaging import ID_PATTERN
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.exchange.unpack import UnpackLimits, names_in
from manybeam.zoo.records import Record, read_manifest

if TYPE_CHECKING:
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.registration import Attachment
    from manybeam.zoo.registry import Zoo

TABLE_FILE = "reference-table.npz"
ORIGINAL_FILE = "original.json"  # the manifest of the version; its signature is of these bytes
_LIMITS = UnpackLimits(total_bytes=1_000_000_000, entries=64)
_FAULTS = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, SyntaxError)


def table_of(zoo: "Zoo", record: Record) -> bytes | None:
    """Return the calibration set of a version, for the members of the record; None if none.

    Raises:
        Corrupt: the calibration set is not the one that was attached.
        NotAllowed: the settings name trusted keys, and none of them signed it.
    """
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.calibration_sets import KIND

    content = zoo.attached(record.ref, KIND)
    if content is None:
        return None
    table, indices = CalibrationSet.from_bytes(content), {one.index for one in record.members}
    if record.selected in table.members:
        return table.only(record.selected).to_bytes()
    return content if set(table.members) == indices else None


def read_table(
    path: Path, measured_with: Mapping[str, str], weights: Mapping[int, str]
) -> "tuple[Attachment | None, str]":
    """Return the calibration set of a package as an attachment, or why it is not imported.

    Args:
        path: file of the calibration set; its digest is checked already.
        measured_with: index of each member of the calibration set -> SHA-256 of its weights.
        weights: the same for the members of the package.
    """
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.calibration_sets import attachment_of

    if dict(measured_with) != {str(index): digest for index, digest in weights.items()}:
        return None, "it was measured with other weights"
    try:
        names_in(path, _LIMITS)
        content = path.read_bytes()
        _check_arrays(content)
        table = CalibrationSet.from_bytes(content)
    except ManybeamError as error:
        return None, "; ".join(filter(None, (error.what, error.why)))
    if faults := list(_faults(table, set(weights))):
        return None, "; ".join(faults)
    policies = dict.fromkeys(str(one) for one in table.source_n)
    return attachment_of(table, tuple(policies)[:20]), ""


def is_signed_with(original: bytes, digest: str, weights: Mapping[int, str]) -> bool:
    """Return whether a manifest has a certain digest and names exactly these weights."""
    if sha256_of(original) != digest:
        return False
    try:
        known = {one.index: one.sha256 for one in read_manifest(original).members}
    except Corrupt:
        return False
    return all(known.get(index) == sha256 for index, sha256 in weights.items())


def _check_arrays(content: bytes) -> None:
    """Refuse arrays whose declared size is wrong, before memory is used for them."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    version = np.lib.format.read_magic(file)
                    if version not in ((1, 0), (2, 0)):
                        raise ValueError(f"{entry.filename} is of version {version}")
                    long = version == (2, 0)
                    read = _HEADERS[long]
                    shape, _, dtype = read(file)
                    declared = file.tell() + math.prod(shape) * dtype.itemsize
                if dtype.hasobject or declared != entry.file_size or min(shape, default=0) < 0:
                    raise ValueError(f"{entry.filename} has another size than declared")
    except _FAULTS as error:
        raise Corrupt(
            "the calibration set cannot be read", str(error), "manybeam calibrate makes a new one"
        ) from error


_HEADERS = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)


def _faults(table: "CalibrationSet", members: set[int]) -> Iterator[str]:
    """Yield the faults of a calibration set that cannot be used."""
    from manybeam.learn.analysis.fitness import SCORES

    n, m, k = table.source_n.size, len(table.members), table.frame_k.size
    expected = {
        "source_n": ("U", (n,)),
        "summary_ns": ("f", (n, _summary_count())),
        "score_nmf": ("f", (n, m, len(SCORES))),
        "count_nm3": ("i", (n, m, 3)),
        "truth_n": ("i", (n,)),
        "frame_k": ("i", (k,)),
        "belief_km": ("f", (k, m)),
        "is_true_k": ("b", (k,)),
        "counts_k": ("b", (k,)),
        "error_k": ("f", (k,)),
    }
    if n == 0 or len(members) != m or set(table.members) != members:
        yield f"it has {n} frames with the members {', '.join(map(str, table.members[:20]))}"
    wrong = [
        name
        for name, (kind, shape) in expected.items()
        if (found := getattr(table, name)).dtype.kind != kind or found.shape != shape
    ]
    yield from (f"its array {name} has another shape or type" for name in wrong)
    if not wrong:
        yield from _impossible(table)


def _impossible(table: "CalibrationSet") -> Iterator[str]:
    """Yield impossible values in a calibration set of the right shape."""
    frame_k, belief_km = table.frame_k, table.belief_km
    if frame_k.size and not (0 <= frame_k.min() <= frame_k.max() < len(table)):
        yield "it has atoms of frames that do not exist"
    if belief_km.size and not (0 <= belief_km.min() <= belief_km.max() <= 1):
        yield "its probabilities are not from 0 to 1"
    if np.isinf(table.summary_ns).any() or np.isinf(table.score_nmf).any():
        yield "its summaries or scores are infinite"
    if min(table.count_nm3.min(initial=0), table.truth_n.min(initial=0)) < 0:
        yield "its counts are below 0"
    if not all(re.fullmatch(ID_PATTERN, str(one)) for one in np.unique(table.source_n)):
        yield "its policies have names that are not allowed"
    if table.structure and not re.fullmatch(ID_PATTERN, table.structure):
        yield "its structure has a name that is not allowed"


def _summary_count() -> int:
    """Return the number of values in a summary, from an example."""
    from manybeam.learn.analysis.summaries import summaries

    return int(summaries(np.random.default_rng(0).random((1, 64, 64)), 20.0).shape[1])
