"""Checks of the registry: names, aliases, members and scores that it refuses."""

import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.addresses import without_password
from manybeam.errors import (
    InvalidInput,
    InvalidSetting,
    MemberCountError,
    MemberDiverged,
    WriteFailed,
)
from manybeam.spec.imaging import ID_PATTERN
from manybeam.zoo.matrix import (
    CLASSICAL,
    ENSEMBLE,
    SELECTED,
    FrameSetUse,
    Score,
    TestSet,
    member_label,
)
from manybeam.zoo.records import ALIASES, RESERVED_NAMES

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member

DIGEST_LIMIT = 36  # of a dataset's digest in MLflow
_SHARES = ("f1", "f1_low", "f1_high", "precision", "recall", "ece")
LARGEST_SEED = 2**63 - 1
LARGEST_PM = 1000.0  # of a match radius, or a width of the detector
LONGEST_URL = 2000
_TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")
SPARE_BYTES = 64_000_000  # for records, logs and the database
_DIGEST = re.compile(r"[0-9a-f]{1,64}")
_KEY = re.compile(r"[a-z0-9][a-z0-9_]{0,99}")


def check_tracking_uri(uri: str) -> None:
    """Refuse a text that is no URL of MLflow."""
    scheme, mark, _ = uri.partition("://")
    if not mark or scheme.lower().partition("+")[0] not in _TRACKING_SCHEMES:
        raise InvalidSetting(
            f"tracking_uri: {without_password(uri)!r} is no URL of MLflow",
            "allowed: http://host:port of a server, sqlite:///file, postgresql+psycopg://...",
            "correct MANYBEAM_TRACKING_URI, or remove it to use the embedded zoo",
        )


def check_name(name: str) -> None:
    """Refuse a name that is not allowed for an ensemble."""
    if not re.fullmatch(ID_PATTERN, name) or name in RESERVED_NAMES:
        raise InvalidInput(
            f"{name!r} cannot name an ensemble",
            "allowed: lower-case letters, digits, dot, dash, underscore; not 'auto'",
            "give another name: --name of an import, or the field name of a job",
        )


def check_alias(alias: str | None) -> None:
    """Refuse an alias that does not exist."""
    if alias is not None and alias not in ALIASES:
        raise InvalidInput(
            f"there is no alias {alias!r}", f"allowed: {', '.join(ALIASES)}", "use one of these"
        )


def check_folder(folder: Path, byte_count: int = 0) -> None:
    """Refuse a folder that cannot be written to, or whose disk has too little space.

    Args:
        folder: it is made if it does not exist.
        byte_count: size of the files that will be written at least.

    Raises:
        WriteFailed: the folder, the right to write and the space are named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise WriteFailed(
            f"{folder} cannot be written to: {error.strerror or error}",
            "the result of the work could not be stored",
            "choose another folder, or correct its owner and its mode",
        ) from error
    if free < byte_count + SPARE_BYTES:
        raise WriteFailed(
            f"the disk of {folder} has {free / 1e6:,.0f} MB free",
            f"the result needs at least {(byte_count + SPARE_BYTES) / 1e6:,.0f} MB",
            "free space on this disk, or choose another folder",
        )


def check_members(members: Sequence["Member"]) -> None:
    """Refuse an empty list, equal indices, and weights that are not finite."""
    if not members:
        raise MemberCountError(
            "an ensemble of no members",
            "at least one trained member is needed",
            "see why all members failed",
        )
    indices = [member.index for member in members]
    if len(set(indices)) < len(indices) or min(indices) < 0:
        raise InvalidInput(
            f"member indices {indices} are not allowed",
            "each index is 0 or more, and occurs once",
            "number the members again",
        )
    for member in members:
        bad = [name for name, tensor in member.weights.items() if not tensor.isfinite().all()]
        if bad or (member.losses and not math.isfinite(member.losses[-1])):
            raise MemberDiverged(
                f"member {member.index:02d} is not finite: {', '.join(bad[:3]) or 'its loss'}",
                "a member that diverged cannot be registered",
                "remove the member and list it in failed",
            )


def check_test_set(test_set: TestSet) -> None:
    """Refuse a test set that has both a seed and FrameSets, or neither."""
    seed, sets, radius_pm = test_set.seed, test_set.frame_sets, test_set.match_radius_pm
    is_seed = type(seed) is int and 0 <= seed <= LARGEST_SEED
    if not (is_seed and not sets) and not (seed is None and sets):
        raise InvalidInput(
            f"test frames of seed {seed!r} and of {len(sets)} FrameSets",
            f"either a seed from 0 to {LARGEST_SEED}, or FrameSets, is needed",
            "measure again with manybeam evaluate",
        )
    if radius_pm is not None and not 0 < radius_pm <= LARGEST_PM:
        raise InvalidInput(
            f"a match radius of {radius_pm!r} pm is not allowed",
            f"above 0, at most {LARGEST_PM:g} pm",
            "change measure.match_radius_pm",
        )
    for use in sets:
        check_frame_set(use)


def check_frame_set(use: FrameSetUse) -> None:
    """Refuse a FrameSet with a wrong URL or digest."""
    texts = isinstance(use.url, str) and isinstance(use.digest, str)
    if not texts or not 0 < len(use.url) <= LONGEST_URL or not use.url.isprintable():
        raise InvalidInput(
            f"{str(use.url)[:100]!r} is no URL of a FrameSet",
            f"1 to {LONGEST_URL} printable characters",
            "give the URL of a FrameSet",
        )
    if not is_digest(use.digest):
        raise InvalidInput(
            f"{use.digest[:100]!r} is no digest of a FrameSet",
            "32 hex digits",
            "take the digest from the FrameSet",
        )


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in hexadecimal digits, or the beginning of one."""
    return bool(_DIGEST.fullmatch(text))


def check_scores(rows: Sequence[Score], members: set[int]) -> None:
    """Refuse scores that cannot be stored; all mistakes are listed at once."""
    faults = []
    for i, row in enumerate(rows):
        if row.member not in members | {ENSEMBLE, CLASSICAL, SELECTED}:
            faults.append(f"scores[{i}]: no member {member_label(row.member)}")
        if not re.fullmatch(ID_PATTERN, row.condition):
            faults.append(f"scores[{i}]: {row.condition!r} is no id of a condition")
        if not 0 < len(row.condition_digest) <= DIGEST_LIMIT:
            faults.append(f"scores[{i}]: condition_digest {row.condition_digest!r}")
        faults += [f"scores[{i}]: {key!r}" for key in row.values if not _KEY.fullmatch(key)]
        faults += [
            f"scores[{i}]: {key} is {row.values[key]}, not from 0 to 1"
            for key in _SHARES
            if not 0 <= row.values.get(key, 0.0) <= 1
        ]
        if any(count < 0 for frame in row.counts for count in frame):
            faults.append(f"scores[{i}]: negative counts")
        faults += [f"scores[{i}]: {fault}" for fault in _faults_of_test_set(row.test_set)]
        if row.calibration and not is_digest(row.calibration):
            faults.append(f"scores[{i}]: calibration {row.calibration!r}")
        if row.taken is not None and not 2000 <= row.taken.year <= 2200:
            faults.append(f"scores[{i}]: taken in the year {row.taken.year}")
    if faults:
        raise InvalidInput(
            "\n".join([*faults[:20], *([f"and {len(faults) - 20} more"] if faults[20:] else [])]),
            "allowed: members of the version, condition digests of 1 to "
            f"{DIGEST_LIMIT} characters, names of scores in snake_case",
            "correct these scores",
        )


def _faults_of_test_set(test_set: TestSet | None) -> list[str]:
    try:
        if test_set is not None:
            check_test_set(test_set)
    except InvalidInput as error:
        return [error.what]
    return []
