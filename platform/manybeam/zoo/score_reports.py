"""Sheets of scores: what one measurement found, kept whole beside the version it measured.

A sheet is one JSON document that never changes. It holds every score of every row with the counts
of each test frame, so that two versions can be compared frame by frame; MLflow's own metrics hold
only the headline of it, for people who look there.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from manybeam import __version__
from manybeam.errors import Corrupt
from manybeam.zoo.checks import LARGEST_PM, check_test_set
from manybeam.zoo.matrix import BIN_COUNT, Bin, FrameSetUse, Score, TestSet

SHEET_FORMAT = "manybeam-scores-1"
SHEET_FILE = "scores.json"
HEADLINE = ("f1", "rmse_pm", "ece")
# Of `learn.scoring.classical.Blob`, within what a frame can be answered with in seconds.
DETECTOR = {
    "sigma_pm": (1.0, LARGEST_PM),
    "ratio": (1.001, 10.0),
    "threshold": (0.0, 1e6),
    "min_distance_pm": (0.0, LARGEST_PM),
    "local_pm": (0.0, LARGEST_PM),
}


def write_report(rows: Sequence[Score], now: datetime | None = None) -> bytes:
    """Return the sheet of some scores as UTF-8 JSON.

    Rows that do not say when they were taken, or by which scorer, were taken now and by us.
    """
    moment = now or datetime.now(UTC)
    content = {"format": SHEET_FORMAT, "rows": [_row(score, moment) for score in rows]}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def read_report(content: bytes) -> list[Score]:
    """Return the scores of a sheet, in the order they were given.

    Raises:
        Corrupt: the bytes are no sheet of this form.
    """
    try:
        report = json.loads(content)
        if report["format"] != SHEET_FORMAT:
            raise ValueError(f"its format is {report['format']!r}")
        return [_score(row) for row in report["rows"]]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise Corrupt(
            f"a sheet of scores cannot be read: {error}",
            f"{SHEET_FORMAT} is what this Manybeam reads",
            "update Manybeam if a newer one measured; otherwise measure again",
        ) from error


def _row(score: Score, now: datetime) -> dict[str, Any]:
    return {
        "member": score.member,
        "condition": score.condition,
        "digest": score.condition_digest,
        "taken": (score.taken or now).isoformat(timespec="milliseconds"),
        "scorer": score.scorer or __version__,
        "values": dict(score.values),
        "counts": [list(frame) for frame in score.counts],
        **({"reliability": [list(one) for one in score.reliability]} if score.reliability else {}),
        **({"trial": _test_set_row(score.test_set)} if score.test_set else {}),
        **({"detector": [dict(one) for one in score.detector]} if score.detector else {}),
    }


def _test_set_row(test_set: TestSet) -> dict[str, Any]:
    sets = [dataclasses.asdict(one) for one in test_set.frame_sets]
    radius = {"match_radius_pm": test_set.match_radius_pm} if test_set.match_radius_pm else {}
    return {
        **({"seed": test_set.seed} if test_set.seed is not None else {"frame_sets": sets}),
        **radius,
    }


def _score(row: dict[str, Any]) -> Score:
    return Score(
        member=int(row["member"]),
        condition=row["condition"],
        condition_digest=row["digest"],
        values=row["values"],
        counts=tuple((int(tp), int(fp), int(fn)) for tp, fp, fn in row["counts"]),
        taken=_moment(row["taken"]),
        scorer=row["scorer"],
        reliability=_bins(row.get("reliability", [])),
        test_set=_test_set(row["trial"]) if "trial" in row else None,
        detector=tuple(_detector(one) for one in row.get("detector", [])),
    )


def _moment(text: str) -> datetime:
    """Read a date with its zone, near enough to ours that any zone can show it."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not 2000 <= moment.year <= 2200:
        raise ValueError(f"it was taken {text!r}")
    return moment


def _bins(rows: list[list[Any]]) -> tuple[Bin, ...]:
    """Return the bins of a curve; none from a sheet of before they were kept."""
    found = tuple((float(claimed), float(so), int(count)) for claimed, so, count in rows)
    is_sound = all(0 <= p <= 1 and 0 <= so <= 1 and count >= 0 for p, so, count in found)
    if not is_sound or len(found) not in (0, BIN_COUNT):
        raise ValueError(f"reliability must be {BIN_COUNT} bins of two shares and a count")
    return found


def _test_set(row: dict[str, Any]) -> TestSet:
    """Return the test frames that a row names: of one seed, or of FrameSets."""
    radius_pm = row.get("match_radius_pm")
    sets = tuple(FrameSetUse(**one) for one in row.get("frame_sets", []))
    found = TestSet(row.get("seed"), sets, None if radius_pm is None else float(radius_pm))
    check_test_set(found)
    return found


def _detector(row: dict[str, Any]) -> dict[str, float]:
    """Return what the classical detector was tuned to, bounded: frames are answered with it."""
    found = {str(name): float(value) for name, value in row.items()}
    if set(found) != set(DETECTOR):
        raise ValueError(f"a detector is told by {', '.join(DETECTOR)}")
    for name, (low, high) in DETECTOR.items():
        if not low <= found[name] <= high:
            raise ValueError(f"a detector's {name} is {found[name]}, not from {low:g} to {high:g}")
    return found
