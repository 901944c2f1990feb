"""What the registry refuses to keep: names, aliases, members and scores that are not right."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manybeam.errors import InvalidInput, MemberCountError, MemberDiverged
from manybeam.spec.imaging import ID_PATTERN
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, FrameSetUse, Score, TestSet, member_label
from manybeam.zoo.records import ALIASES, RESERVED_NAMES

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member

DIGEST_LIMIT = 36  # of a dataset's digest in MLflow
_SHARES = ("f1", "f1_low", "f1_high", "precision", "recall", "ece")
LARGEST_SEED = 2**63 - 1
LARGEST_PM = 1000.0  # of a match radius, or a width of the detector
LONGEST_URL = 2000
_DIGEST = re.compile(r"[0-9a-f]{1,64}")
_KEY = re.compile(r"[a-z0-9][a-z0-9_]{0,99}")


def check_name(name: str) -> None:
    """Refuse a name no ensemble can have."""
    if not re.fullmatch(ID_PATTERN, name) or name in RESERVED_NAMES:
        raise InvalidInput(
            f"{name!r} cannot name an ensemble",
            "lower-case letters, digits, dot, dash, underscore; not 'auto'",
            "set name: in the job",
        )


def check_alias(alias: str | None) -> None:
    """Refuse an alias that is not one of ours."""
    if alias is not None and alias not in ALIASES:
        raise InvalidInput(f"no alias {alias!r}", f"allowed: {', '.join(ALIASES)}", "")


def check_members(members: Sequence["Member"]) -> None:
    """Refuse members that are none, share an index or are not finite."""
    if not members:
        raise MemberCountError(
            "an ensemble of no members", "at least one has to be trained", "see why all failed"
        )
    indices = [member.index for member in members]
    if len(set(indices)) < len(indices) or min(indices) < 0:
        raise InvalidInput(
            f"member indices {indices}", "each 0 or more and given once", "number them anew"
        )
    for member in members:
        bad = [name for name, tensor in member.weights.items() if not tensor.isfinite().all()]
        if bad or (member.losses and not math.isfinite(member.losses[-1])):
            raise MemberDiverged(
                f"member {member.index:02d} is not finite: {', '.join(bad[:3]) or 'its loss'}",
                "a member that diverged is not registered",
                "leave it out and name it in failed",
            )


def check_test_set(test_set: TestSet) -> None:
    """Refuse test frames that cannot be told: of one seed or of FrameSets, never both or none."""
    seed, sets, radius_pm = test_set.seed, test_set.frame_sets, test_set.match_radius_pm
    is_seed = type(seed) is int and 0 <= seed <= LARGEST_SEED
    if not (is_seed and not sets) and not (seed is None and sets):
        raise InvalidInput(
            f"test frames of seed {seed!r} and of {len(sets)} FrameSets",
            f"a seed from 0 to {LARGEST_SEED}, or FrameSets",
        )
    if radius_pm is not None and not 0 < radius_pm <= LARGEST_PM:
        raise InvalidInput(f"a match radius of {radius_pm!r} pm", f"at most {LARGEST_PM:g}")
    for use in sets:
        check_frame_set(use)


def check_frame_set(use: FrameSetUse) -> None:
    """Refuse a FrameSet whose address or digest no listing can tell."""
    texts = isinstance(use.url, str) and isinstance(use.digest, str)
    if not texts or not 0 < len(use.url) <= LONGEST_URL or not use.url.isprintable():
        raise InvalidInput(
            f"{str(use.url)[:100]!r} is no address of a FrameSet", f"1 to {LONGEST_URL} characters"
        )
    if not _DIGEST.fullmatch(use.digest):
        raise InvalidInput(f"{use.digest[:100]!r} is no digest of a FrameSet", "32 hex digits")


def check_scores(rows: Sequence[Score], members: set[int]) -> None:
    """Tell every score that cannot be kept, at once."""
    faults = []
    for i, row in enumerate(rows):
        if row.member not in members | {ENSEMBLE, CLASSICAL}:
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
        if row.taken is not None and not 2000 <= row.taken.year <= 2200:
            faults.append(f"scores[{i}]: taken in the year {row.taken.year}")
    if faults:
        raise InvalidInput(
            "\n".join([*faults[:20], *([f"and {len(faults) - 20} more"] if faults[20:] else [])]),
            f"members of the version, digests of 1 to {DIGEST_LIMIT} characters, snake_case names",
            "give condition.digest",
        )


def _faults_of_test_set(test_set: TestSet | None) -> list[str]:
    try:
        if test_set is not None:
            check_test_set(test_set)
    except InvalidInput as error:
        return [error.what]
    return []
