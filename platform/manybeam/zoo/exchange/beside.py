"""What travels beside the members of a package: their rehearsal, and who signed the original.

A rehearsal is worth something only with the very weights that were rehearsed, so a package says
which those are. It comes from a stranger: nothing of it is read before its size and form are known.
Axis letters: n frame, m member, s number of a summary, k atom, as in
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
from manybeam.zoo.exchange.unpack import Limits, names_in
from manybeam.zoo.records import Record, read_manifest

if TYPE_CHECKING:
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.registration import Attachment
    from manybeam.zoo.registry import Zoo

TABLE_FILE = "reference-table.npz"
ORIGINAL_FILE = "original.json"  # the version's manifest as it was registered: what was signed
_LIMITS = Limits(total_bytes=1_000_000_000, entries=64)
_FAULTS = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, SyntaxError)


def table_of(zoo: "Zoo", record: Record) -> bytes | None:
    """Return the rehearsal of a version, cut to the members the record holds; None if it has none.

    Raises:
        Corrupt: the table is not the one that was kept.
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
    path: Path, said: Mapping[str, str], weights: Mapping[int, str]
) -> "tuple[Attachment | None, str]":
    """Return the rehearsal of a package to be kept beside its members, or why it is left out.

    Args:
        path: the table, its digest checked.
        said: index of each member it was made with -> SHA-256 of its weights.
        weights: the same of the members of the package.
    """
    from manybeam.learn.analysis.calibration_set import CalibrationSet
    from manybeam.zoo.calibration_sets import attachment_of

    if dict(said) != {str(index): digest for index, digest in weights.items()}:
        return None, "it is of other weights"
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
    """Tell whether a version's manifest is of a digest, and names these very weights."""
    if sha256_of(original) != digest:
        return False
    try:
        known = {one.index: one.sha256 for one in read_manifest(original).members}
    except Corrupt:
        return False
    return all(known.get(index) == sha256 for index, sha256 in weights.items())


def _check_arrays(content: bytes) -> None:
    """Refuse arrays that say they are larger than they are, before memory is taken for them."""
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
                    told = file.tell() + math.prod(shape) * dtype.itemsize
                if dtype.hasobject or told != entry.file_size or min(shape, default=0) < 0:
                    raise ValueError(f"{entry.filename} is not the array it says")
    except _FAULTS as error:
        raise Corrupt("a reference table cannot be read", str(error)) from error


_HEADERS = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)


def _faults(table: "CalibrationSet", members: set[int]) -> Iterator[str]:
    """Yield what makes a table one that nothing can be learnt from."""
    from manybeam.learn.analysis.fitness import SCORES

    n, m, k = table.source_n.size, len(table.members), table.frame_k.size
    wanted = {
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
        yield f"it has {n} frames of members {', '.join(map(str, table.members[:20]))}"
    wrong = [
        name
        for name, (kind, shape) in wanted.items()
        if (found := getattr(table, name)).dtype.kind != kind or found.shape != shape
    ]
    yield from (f"its {name} has another form" for name in wrong)
    if not wrong:
        yield from _impossible(table)


def _impossible(table: "CalibrationSet") -> Iterator[str]:
    """Yield what no rehearsal gives, in a table of the right form."""
    frame_k, belief_km = table.frame_k, table.belief_km
    if frame_k.size and not (0 <= frame_k.min() <= frame_k.max() < len(table)):
        yield "it has atoms of frames that it does not have"
    if belief_km.size and not (0 <= belief_km.min() <= belief_km.max() <= 1):
        yield "its probabilities are not from 0 to 1"
    if np.isinf(table.summary_ns).any() or np.isinf(table.score_nmf).any():
        yield "its summaries or scores are infinite"
    if min(table.count_nm3.min(initial=0), table.truth_n.min(initial=0)) < 0:
        yield "its counts are below 0"
    if not all(re.fullmatch(ID_PATTERN, str(one)) for one in np.unique(table.source_n)):
        yield "its policies have names that none can have"
    if table.structure and not re.fullmatch(ID_PATTERN, table.structure):
        yield "its structure has a name that none can have"


def _summary_count() -> int:
    """Return how many numbers a summary is, by making one."""
    from manybeam.learn.analysis.summaries import summaries

    return int(summaries(np.random.default_rng(0).random((1, 64, 64)), 20.0).shape[1])
