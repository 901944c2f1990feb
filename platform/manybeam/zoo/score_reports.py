"""Score reports: all results of one measurement, stored with the measured version.

A report is one JSON document that never changes. It holds every score of every row with the counts
of each test frame, so that two versions can be compared frame by frame. The metrics of MLflow hold
only the main scores, for people who use the pages of MLflow.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from manybeam import __version__
from manybeam.errors import Corrupt
from manybeam.zoo.checks import LARGEST_PM, check_test_set, is_digest
from manybeam.zoo.matrix import BIN_COUNT, Bin, FrameSetUse, Score, TestSet

REPORT_FORMAT = "manybeam-scores-1"
REPORT_FILE = "scores.json"
HEADLINE = ("f1", "rmse_pm", "ece")
# Bounds of `learn.scoring.classical.Blob`, so that a frame is analysed within seconds.
DETECTOR = {
    "sigma_pm": (1.0, LARGEST_PM),
    "ratio": (1.001, 10.0),
    "threshold": (0.0, 1e6),
    "min_distance_pm": (0.0, LARGEST_PM),
    "local_pm": (0.0, LARGEST_PM),
}


def write_report(rows: Sequence[Score], now: datetime | None = None) -> bytes:
    """Return the report of some scores as UTF-8 JSON.

    Rows without a time or a scorer get the present time and the present version of Manybeam.
    """
    moment = now or datetime.now(UTC)
    content = {"format": REPORT_FORMAT, "rows": [_row(score, moment) for score in rows]}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def read_report(content: bytes) -> list[Score]:
    """Return the scores of a report, in their order.

    Raises:
        Corrupt: the bytes are no report of this format.
    """
    try:
        report = json.loads(content)
        if report["format"] != REPORT_FORMAT:
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
            f"a score report cannot be read: {error}",
            f"this version of Manybeam reads {REPORT_FORMAT}",
            "update Manybeam if a newer version measured it; otherwise measure again",
        ) from error


def in_order(reports: Iterable[tuple[int, Sequence[Score]]]) -> list[Score]:
    """Return the scores of the reports of one version, in the order in which they were recorded.

    Args:
        reports: number of each report, and its scores. Reports of older versions of Manybeam have
            the number 0; only for them, the dates of the scores decide.
    """

    def key(report: tuple[int, Sequence[Score]]) -> tuple[int, float]:
        return report[0], max(map(_seconds, report[1]), default=0.0)

    ordered = sorted(reports, key=key)
    old = [row for number, rows in ordered for row in rows if not number]
    return sorted(old, key=_seconds) + [row for number, rows in ordered for row in rows if number]


def _seconds(score: Score) -> float:
    return score.taken.timestamp() if score.taken else 0.0


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
        **({"calibration": score.calibration} if score.calibration else {}),
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
        calibration=_digest(row.get("calibration", "")),
    )


def _digest(text: str) -> str:
    """Return the digest of a calibration set; scores of versions without one have none."""
    if text and not is_digest(text):
        raise ValueError(f"the digest of the calibration set is {text[:80]!r}")
    return text


def _moment(text: str) -> datetime:
    """Read a date with its time zone, between the years 2000 and 2200."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not 2000 <= moment.year <= 2200:
        raise ValueError(f"it was taken {text!r}")
    return moment


def _bins(rows: list[list[Any]]) -> tuple[Bin, ...]:
    """Return the bins of a curve; old reports have none."""
    found = tuple((float(p), float(share), int(count)) for p, share, count in rows)
    is_sound = all(0 <= p <= 1 and 0 <= share <= 1 and count >= 0 for p, share, count in found)
    if not is_sound or len(found) not in (0, BIN_COUNT):
        raise ValueError(f"reliability must be {BIN_COUNT} bins of two shares and a count")
    return found


def _test_set(row: dict[str, Any]) -> TestSet:
    """Return the test set of a row: a seed, or FrameSets."""
    radius_pm = row.get("match_radius_pm")
    sets = tuple(FrameSetUse(**one) for one in row.get("frame_sets", []))
    found = TestSet(row.get("seed"), sets, None if radius_pm is None else float(radius_pm))
    check_test_set(found)
    return found


def _detector(row: dict[str, Any]) -> dict[str, float]:
    """Return the parameters of the classical detector; they are checked against bounds."""
    found = {str(name): float(value) for name, value in row.items()}
    if set(found) != set(DETECTOR):
        raise ValueError(f"a detector needs the values {', '.join(DETECTOR)}")
    for name, (low, high) in DETECTOR.items():
        if not low <= found[name] <= high:
            raise ValueError(f"{name} of a detector is {found[name]}, not from {low:g} to {high:g}")
    return found
