"""Up to eight versions or members in one table, with differences from the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manybeam.errors import InvalidInput
from manybeam.web.pages.version import choosable
from manybeam.web.version_cache import CachedVersion, VersionCache
from manybeam.zoo.compare import NOT_MEASURED, NUMBERS_CHANGED, Difference, Tally, compare, tally

MOST = 8


@dataclass(frozen=True)
class Side:
    """The score of one version or member on one condition.

    Attributes:
        value, low, high: the score and its interval; None if it was not measured.
        frame_count: number of test frames; None if it is unknown.
        difference: difference from the first; None for the first itself.
    """

    value: float | None
    low: float | None
    high: float | None
    frame_count: int | None
    difference: Difference | None

    @property
    def mark(self) -> str:
        """A class of the style sheet: `better` or `worse` if significant, else ""."""
        if self.difference is None or self.difference.is_better is None:
            return ""
        return "better" if self.difference.is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """A table of conditions by versions.

    Attributes:
        key: the compared score.
        keys: scores that can be compared.
        refs: references of the versions; the first is the baseline.
        aliases: aliases of each version.
        rows: condition -> one side for each reference.
        tallies: tallies of all versions except the first.
        hidden_count: conditions that are hidden because they have no clear difference.
    """

    key: str
    keys: tuple[str, ...]
    refs: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    rows: Mapping[str, Sequence[Side]]
    tallies: tuple[Tally, ...]
    hidden_count: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "score": self.key,
            "refs": list(self.refs),
            "conditions": {name: [_plain(side) for side in row] for name, row in self.rows.items()},
            "summary": [one.words for one in self.tallies],
            "hidden": self.hidden_count,
        }


def read_ids(values: Sequence[str]) -> list[str]:
    """Return the references of an address, given as `ids=a,b` or `ids=a&ids=b`, each once.

    Raises:
        InvalidInput: there are more than eight.
    """
    refs = [ref.strip() for value in values for ref in value.split(",")]
    found = list(dict.fromkeys(ref for ref in refs if ref))
    if len(found) > MOST:
        raise InvalidInput(
            f"{len(found)} versions are too many to compare",
            f"at most {MOST}",
            "select fewer in the list",
        )
    return found


def make_comparison(
    version_cache: VersionCache,
    refs: Sequence[str],
    key: str = "f1",
    *,
    only_differences: bool = False,
) -> Comparison:
    """Return the comparison of versions or members.

    Raises:
        UnknownRef: one of them does not exist.
        InvalidInput: none of them has this score.
    """
    cached_versions = [version_cache.look(ref) for ref in refs]
    keys = choosable(sorted({key for cached in cached_versions for key in cached.matrix.keys}))
    if keys and key not in keys:
        raise InvalidInput(
            f"there is no score {key!r}", f"recorded: {', '.join(keys)}", "choose one of these"
        )
    first = cached_versions[0]
    found = [
        compare(
            first.matrix,
            one.matrix,
            key=key,
            member=first.record.subject,
            new_member=one.record.subject,
        )
        for one in cached_versions[1:]
    ]
    differences = [{one.condition: one for one in column} for column in found]
    names = sorted({name for cached in cached_versions for name in cached.matrix.conditions})
    rows = {name: _row(cached_versions, differences, name, key) for name in names}
    shown = {name: row for name, row in rows.items() if not only_differences or _differs(row)}
    return Comparison(
        key,
        keys,
        tuple(cached.record.ref for cached in cached_versions),
        tuple(cached.record.aliases for cached in cached_versions),
        shown,
        tuple(tally(column) for column in found),
        len(rows) - len(shown),
    )


def _row(
    cached_versions: Sequence[CachedVersion],
    differences: Sequence[Mapping[str, Difference]],
    name: str,
    key: str,
) -> list[Side]:
    found = [None, *(column.get(name) for column in differences)]
    return [
        _side(cached, name, key, one) for cached, one in zip(cached_versions, found, strict=True)
    ]


def _side(cached: CachedVersion, name: str, key: str, difference: Difference | None) -> Side:
    values = cached.matrix.values(cached.record.subject, name)
    frames = values.get("frames")
    count = None if frames is None else int(frames)
    return Side(
        values.get(key), values.get(f"{key}_low"), values.get(f"{key}_high"), count, difference
    )


def _differs(row: Sequence[Side]) -> bool:
    """Return whether a version of a row differs from the first, or cannot be compared with it."""
    found = [side.difference for side in row if side.difference is not None]
    return any(
        one.is_significant
        or one.reason == NUMBERS_CHANGED
        or (one.reason == NOT_MEASURED and (one.old is None) != (one.new is None))
        for one in found
    )


def _plain(side: Side) -> dict[str, Any]:
    one = side.difference
    plain: dict[str, Any] = {"value": side.value, "low": side.low, "high": side.high}
    plain["frame_count"] = side.frame_count
    if one is not None:
        plain |= {"difference": one.difference, "difference_low": one.low}
        plain |= {"difference_high": one.high, "is_significant": one.is_significant}
        plain["words"] = one.words
    return plain
