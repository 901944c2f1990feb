"""Writing one version into MLflow: members, self-test, manifest, scores, and the version last.

No reference leads to these data until the version is added. This is the last call, and one
transaction.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from manybeam import __version__
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.selftest import SELF_TEST_FILE, write_self_test
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, SELECTED, FrameSetUse, Matrix, Score
from manybeam.zoo.records import (
    EXPERIMENT_PREFIX,
    KIND_TAG,
    MANIFEST_TAG,
    MEMBER_TAG,
    MemberRecord,
    VersionEntry,
    write_manifest,
)
from manybeam.zoo.score_reports import HEADLINE, REPORT_FILE, write_report

if TYPE_CHECKING:
    from manybeam.learn.nets.member import Member
    from manybeam.zoo.backend.tracking import Tracking

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "member.json"
MANIFEST_FILE = "manifest.json"
SHA256_TAG = "manybeam.sha256"
EXPERIMENT_TAG = "manybeam.experiment"
CODE_TAG = "manybeam.code_version"
SIGNATURE_TAG = "manybeam.seal"
PARENT_TAG = "manybeam.parent"
INPUT_TAG = "manybeam.input."  # + digest of a FrameSet; value: its URL
MEASURED_TAG = "manybeam.measured."  # + digest and cut hash of the URL of a FrameSet; its URL
ATTACHED_TAG = "manybeam.attached."  # + kind; id of its LoggedModel, SHA-256 and signature
CALIBRATION_KIND = "reference-table"  # of calibration sets: an old name that zoos hold
SCORES_TAG = "manybeam.scores."  # + id of the LoggedModel of a score report; SHA-256, signature
ORDER_TAG = "manybeam.scores_order."  # + the same id; number of the report, from 1

Keep = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Registration:
    """The content of the next version of an ensemble; see `Zoo.register`."""

    name: str
    members: Sequence["Member"]
    job: dict[str, Any]
    rows: Sequence[Score] = ()
    failed: Sequence[str] = ()
    parent: str = ""
    inputs: Sequence[FrameSetUse] = ()
    sign: bool = True
    attachments: Sequence["Attachment"] = ()

    def write(self, tracking: "Tracking", keep: Keep) -> int:
        """Write everything and return the number of the version; no version remains on an error.

        Args:
            tracking: the MLflow to write to.
            keep: called with files that this machine will read again, and their SHA-256.
        """
        experiment_id = tracking.experiment(f"{EXPERIMENT_PREFIX}{self.name}")
        run_id = tracking.start_run(experiment_id, self.name, {CODE_TAG: __version__})
        try:
            kept = [add_member(tracking, experiment_id, run_id, one) for one in self.members]
            self_test = write_self_test(self.members)
            manifest = self._manifest(kept, self_test)
            digest = sha256_of(manifest)
            manifest_id = tracking.add_model(
                experiment_id,
                run_id,
                self.name,
                kind="manybeam-ensemble",
                params={"members": str(len(kept))},
                tags={SHA256_TAG: digest, CODE_TAG: __version__},
                files={MANIFEST_FILE: manifest, SELF_TEST_FILE: self_test},
            )
            place = VersionPlace(experiment_id, run_id, manifest_id, digest)
            tags = self._tags(place)
            if self.rows:
                tags |= add_scores(tracking, place, kept, self.rows, keep, number=1, sign=self.sign)
            for one in self.attachments:
                tags |= add_attachment(tracking, place, self.name, one, sign=self.sign)
            tracking.end_run(run_id)
            return tracking.add_version(self.name, manifest_id, run_id, tags)
        except BaseException:
            tracking.abandon_run(run_id)
            raise

    def _manifest(self, kept: Sequence[MemberRecord], self_test: bytes) -> bytes:
        return write_manifest(
            self.name,
            kept,
            job=self.job,
            failed=self.failed,
            parent=self.parent,
            code_version=__version__,
            environment=environment(),
            inputs=self.inputs,
            self_test=sha256_of(self_test),
        )

    def _tags(self, place: "VersionPlace") -> dict[str, str]:
        """Return the tags of the version, which a listing shows without reading the manifest."""
        what = f"manifest of {self.name}"
        tags = {
            MANIFEST_TAG: place.manifest_id,
            SHA256_TAG: place.sha256,
            EXPERIMENT_TAG: place.experiment_id,
            CODE_TAG: __version__,
            SIGNATURE_TAG: trust.sign(what, place.sha256) if self.sign else "",
            PARENT_TAG: self.parent,
            **{f"{INPUT_TAG}{one.digest}": one.url for one in self.inputs},
        }
        return {key: value for key, value in tags.items() if value}


@dataclass(frozen=True)
class VersionPlace:
    """The ids of a version in MLflow, and the SHA-256 of its manifest."""

    experiment_id: str
    run_id: str
    manifest_id: str
    sha256: str


@dataclass(frozen=True)
class Attachment:
    """Bytes that are attached to a version.

    Attributes:
        kind: name of the kind of attachment.
        content: the bytes.
        params: how the bytes were made, as text.
    """

    kind: str
    content: bytes
    params: Mapping[str, str]


def add_member(
    tracking: "Tracking", experiment_id: str, run_id: str, member: "Member"
) -> MemberRecord:
    """Write one member as a LoggedModel and return its record."""
    from manybeam.learn.nets.card import MemberCard
    from manybeam.learn.nets.member import save_weights

    weights, card = save_weights(member.weights), MemberCard.of(member)
    document = card.to_json()
    record = dataclasses.replace(
        MemberRecord.of(card),
        sha256=sha256_of(weights),
        byte_count=len(weights),
        card_sha256=sha256_of(document),
    )
    params = {key: str(getattr(record, key)) for key in ("seed", "policy", "recipe", "parent")}
    model_id = tracking.add_model(
        experiment_id,
        run_id,
        f"member-{member.index:02d}",
        kind="manybeam-member",
        params={**params, "network": json.dumps(record.network)},
        tags={
            MEMBER_TAG: str(member.index),
            "manybeam.data_digest": member.data_digest,
            SHA256_TAG: record.sha256,
            CODE_TAG: __version__,
        },
        files={WEIGHTS_FILE: weights, CARD_FILE: document},
    )
    return dataclasses.replace(record, model_id=model_id)


def add_scores(
    tracking: "Tracking",
    place: VersionPlace,
    members: Iterable[MemberRecord],
    rows: Sequence[Score],
    keep: Keep,
    *,
    number: int,
    sign: bool = True,
) -> dict[str, str]:
    """Write a score report and its main scores for MLflow; return the tags for the version.

    The last tag makes the report valid. The other tags name the FrameSets of the measurement, and
    the number of the report. Reports of one version are ordered by this number, not by the clocks
    of the machines that measured: one that is a day fast would hide all later scores.
    """
    report = write_report(rows)
    digest = sha256_of(report)
    model_id = tracking.add_model(
        place.experiment_id,
        place.run_id,
        "scores",
        kind="manybeam-scores",
        params={"rows": str(len(rows))},
        tags={SHA256_TAG: digest, CODE_TAG: __version__, KIND_TAG: "scores"},
        files={REPORT_FILE: report},
    )
    ids = {member.index: member.model_id for member in members}
    ids |= dict.fromkeys((ENSEMBLE, CLASSICAL, SELECTED), place.manifest_id)
    tracking.log_scores(place.run_id, ids, [_headline(row) for row in rows], number)
    keep(digest, report)
    signature = trust.sign(f"scores of {place.sha256}", digest) if sign else ""
    return {
        **_measured(rows),
        f"{ORDER_TAG}{model_id}": str(number),
        f"{SCORES_TAG}{model_id}": f"{digest} {signature}".strip(),
    }


def next_number(entry: VersionEntry) -> int:
    """Return the number of the next score report of a version; raises Corrupt.

    Two reports that are written at the same time may get one number: neither is the later one.
    """
    numbers = [report_number(entry, key) for key in entry.tags if key.startswith(ORDER_TAG)]
    return max(numbers, default=0) + 1


def report_number(entry: VersionEntry, key: str) -> int:
    """Return the number in a tag of `ORDER_TAG`; 0 if there is no such tag, as in old versions.

    Raises:
        Corrupt: the tag is no number.
    """
    text = entry.tags.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        raise entry.damaged(f"its tag {key} is no number: {text[:40]!r}")
    return int(text)


def add_attachment(
    tracking: "Tracking", place: VersionPlace, name: str, one: Attachment, *, sign: bool = True
) -> dict[str, str]:
    """Write an attachment as a LoggedModel; return the tag that makes it valid."""
    sha256 = sha256_of(one.content)
    model_id = tracking.add_model(
        place.experiment_id,
        place.run_id,
        f"{name}-{one.kind}",
        kind=f"manybeam-{one.kind}",
        params=one.params,
        tags={SHA256_TAG: sha256, CODE_TAG: __version__, KIND_TAG: one.kind},
        files={one.kind: one.content},
    )
    signature = trust.sign(f"{one.kind} of {place.sha256}", sha256) if sign else ""
    return {ATTACHED_TAG + one.kind: f"{model_id} {sha256} {signature}".strip()}


def _measured(rows: Sequence[Score]) -> dict[str, str]:
    """Return a tag for each FrameSet of the scores; two copies of a FrameSet have two tags."""
    uses = Matrix(rows).frame_sets
    return {f"{MEASURED_TAG}{x.digest}.{sha256_of(x.url.encode())[:8]}": x.url for x in uses}


@lru_cache(maxsize=1)
def environment() -> Mapping[str, str]:
    """Return all installed packages with their versions, so that a version can be made again."""
    found = ((one.metadata["Name"], one.version) for one in importlib.metadata.distributions())
    return dict(sorted((name.lower(), version) for name, version in found if name))


def _headline(row: Score) -> Score:
    """Return the scores that the pages of MLflow show; the report holds all scores."""
    kept = {key: row.values[key] for key in HEADLINE if key in row.values}
    return dataclasses.replace(row, values=kept)
