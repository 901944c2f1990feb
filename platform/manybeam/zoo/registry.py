"""The registry: ensembles and their members are registered, found by reference, and loaded.

A registered version is complete, or it does not exist: members are written first, then the
manifest that names them, then their scores, and the version last. A crash before the end leaves
LoggedModels without a version; `manybeam zoo gc` removes them.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.addresses import without_password
from manybeam.errors import Corrupt, InvalidInput, InvalidSetting, NotFound, ZooUnreachable
from manybeam.settings import settings
from manybeam.zoo.backend.known_entries import KnownEntries
from manybeam.zoo.cache import Cache, sha256_of
from manybeam.zoo.checks import (
    check_alias,
    check_folder,
    check_members,
    check_name,
    check_scores,
    check_tracking_uri,
)
from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.selftest import SELF_TEST_FILE, SelfTest, run_self_test
from manybeam.zoo.matrix import FrameSetUse, Matrix, Score
from manybeam.zoo.records import (
    ALIASES,
    MANIFEST_TAG,
    MemberRecord,
    Record,
    Ref,
    VersionEntry,
    read_manifest,
)
from manybeam.zoo.registration import (
    ATTACHED_TAG,
    CARD_FILE,
    EXPERIMENT_TAG,
    MANIFEST_FILE,
    ORDER_TAG,
    SCORES_TAG,
    SHA256_TAG,
    SIGNATURE_TAG,
    WEIGHTS_FILE,
    Attachment,
    Registration,
    VersionPlace,
    add_attachment,
    add_scores,
    next_number,
    report_number,
)
from manybeam.zoo.score_reports import REPORT_FILE, in_order, read_report
from manybeam.zoo.selected_scores import digest_of, is_current

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.nets.member import Member
    from manybeam.zoo.backend.tracking import Tracking

logger = logging.getLogger(__name__)

ARCHIVED_TAG = "manybeam.archived"  # value: the time, in UTC


class Zoo:
    """The versioned zoo of one deployment.

    Args:
        tracking_uri: server or database of MLflow; if left out, from the settings.
        artifacts: store of weights if MLflow has no server; if left out, from the settings.
        cache: folder for weights on this machine; if left out, in the home of the settings.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        artifacts: str | None = None,
        cache: Path | None = None,
    ) -> None:
        self.address = tracking_uri or settings().tracking_url
        check_tracking_uri(self.address)
        self._artifacts = artifacts or settings().artifacts_url
        folder = cache or settings().cache / "zoo"
        self._cache, self._known = Cache(folder), KnownEntries(self.address, folder)

    def __reduce__(self) -> tuple[type["Zoo"], tuple[str, str, Path]]:
        """Pickle what it was made from: its connections stay in this process."""
        return type(self), (self.address, self._artifacts, self._cache.folder)

    def read_last(self) -> "Zoo":
        """Return this zoo as this machine read it last; it asks nobody.

        What was not read here raises ZooUnreachable; of a zoo without a server nothing is kept.
        """
        return _ZooReadLast(self.address, self._artifacts, self._cache.folder)

    @cached_property
    def tracking(self) -> "Tracking":
        """The MLflow of this zoo."""
        from manybeam.zoo.backend.tracking import Tracking

        return Tracking(self.address, self._artifacts)

    def register(
        self,
        name: str,
        members: Sequence["Member"],
        *,
        job: dict[str, Any],
        alias: str | None = None,
        scores: Iterable[Score] | None = None,
        failed: Sequence[str] = (),
        parent: str = "",
        inputs: Iterable[FrameSetUse] = (),
        sign: bool = True,
        attachments: Sequence[Attachment] = (),
    ) -> Record:
        """Register trained members as the next version of an ensemble, all or nothing.

        Args:
            name: name of the ensemble; created if it is new.
            members: at least one, each with a different index.
            job: the job that made them, with all defaults, as plain data.
            alias: `serving` or `candidate`, moved to the new version at the end, without gates
                and without the audit log; `zoo.lifecycle.life.settle` uses both.
            scores: scores measured already; `record_scores` adds more.
            failed: members that failed in training, each with the reason.
            parent: reference of the version these were adapted from.
            inputs: FrameSets of the training.
            sign: sign the version, if the settings name a key; False for imported members.
            attachments: bytes to attach, as `attach` does.

        Raises:
            InvalidInput: a name, alias, index or score is not allowed.
            MemberCountError: there are no members.
            MemberDiverged: weights are NaN or infinite.
            ZooUnreachable: MLflow or its artifact store does not answer.
        """
        rows = list(scores or ())
        check_name(name)
        check_alias(alias)
        check_members(members)
        check_scores(rows, {member.index for member in members})
        used = tuple(inputs)
        asked = Registration(name, members, job, rows, failed, parent, used, sign, attachments)
        version = asked.write(self.tracking, self._cache.keep)
        if alias is not None:
            self.tracking.set_alias(name, alias, version)
        logger.info("ensemble registered", extra={"ensemble": name, "version": version})
        return self.resolve(f"{name}@{version}")

    def check_writable(self, name: str, byte_count: int = 0) -> None:
        """Refuse now what a registration under this name would be refused for later.

        Args:
            name: name of the ensemble.
            byte_count: size of its files at least.

        Raises:
            InvalidInput: the name is not allowed, or the signing key cannot be read.
            WriteFailed, NotAllowed: a disk is full, or the right to write is missing.
            Unreachable: MLflow, its store or the database does not answer.
        """
        from manybeam.db.deployment import open_database

        check_name(name)
        trust.sign("check", sha256_of(b""))
        check_folder(settings().home, byte_count)
        self.tracking.check_writable(name, byte_count)
        with open_database().writing():
            pass  # the audit log can be written

    def resolve(self, ref: str) -> Record:
        """Return the record of a reference, from its manifest.

        Raises:
            UnknownRef: no such ensemble, version, alias or member; the hint gives similar names.
            Corrupt: the manifest is not the one that was registered.
        """
        return self._resolved(ref)[1]

    def ls(self, name: str | None = None) -> list[Record]:
        """Return all versions, or those of one ensemble, by name and newest first.

        Raises:
            Corrupt: one of them cannot be read. What deletes files must know all that are used.
        """
        return [self.record(entry) for entry in self.listing(name)]

    def listing(self, name: str | None = None) -> list[VersionEntry]:
        """Return the entries of all versions in MLflow, without manifests; it needs two calls."""
        return self._known.all(
            f"all of {name}", lambda: self.tracking.versions(name), is_whole=name is None
        )

    def entry(self, ref: str) -> VersionEntry:
        """Return the entry of one version in MLflow; raises UnknownRef."""
        return self._entry(Ref.parse(ref))

    def read_anew(self, model_id: str, path: str) -> bytes:
        """Return a file from the store, without cache and without check; raises Corrupt."""
        return self.tracking.read_file(model_id, path)

    def record(self, entry: VersionEntry) -> Record:
        """Return the record of an entry of the listing; raises Corrupt as `resolve` does."""
        manifest_id, sha256 = entry.tag(MANIFEST_TAG), entry.tag(SHA256_TAG)
        what = f"manifest of {entry.ref}"
        content = self._file(manifest_id, MANIFEST_FILE, sha256, what)
        archived, found = _moment(entry, ARCHIVED_TAG), read_manifest(content)
        if found.name != entry.name:
            raise Corrupt(
                f"the {what} belongs to {found.name!r}",
                "the database of the zoo was changed by hand",
                "restore the database from its backup",
            )
        return dataclasses.replace(
            found,
            version=entry.version,
            aliases=entry.aliases,
            archived=archived,
            signature=entry.tags.get(SIGNATURE_TAG, ""),
            model_id=manifest_id,
            run_id=entry.run_id,
            experiment_id=entry.tag(EXPERIMENT_TAG),
            sha256=sha256,
        )

    def manifest(self, ref: str) -> bytes:
        """Return the manifest of a version as it was registered; raises as `resolve` does."""
        one = self.resolve(ref)
        return self._file(one.model_id, MANIFEST_FILE, one.sha256, f"manifest of {one.ref}")

    def members(self, ref: str) -> list["Member"]:
        """Return the trained members of a version; weights are checked against their digests.

        Raises:
            UnknownRef: there is no such version.
            Corrupt: bytes differ from those registered, or are missing.
            NotAllowed: the settings name trusted keys, and none of them signed the version.
        """
        record = self.resolve(ref)
        trust.check(f"manifest of {record.name}", record.sha256, record.signature)
        return [self._load(member) for member in record.members]

    def ensemble(self, ref: str) -> "Ensemble":
        """Return the ensemble of a reference, ready to predict; raises as `members` does."""
        from manybeam.learn.nets.ensemble import Ensemble
        from manybeam.learn.nets.inference.graphs import Graphs

        graphs = Graphs.here()
        if settings().reduced_precision and self._may_reduce(ref):
            graphs = graphs.reduced()
        return Ensemble(self.members(ref), graphs=graphs)

    def _may_reduce(self, ref: str) -> bool:
        from manybeam.learn.analysis.precision import KIND, PrecisionGate

        content = self.attached(ref, KIND)
        return content is not None and PrecisionGate.from_bytes(content).is_passed

    def record_scores(self, ref: str, rows: Iterable[Score]) -> None:
        """Add scores to a version; they replace earlier scores of the same pairs.

        Raises:
            InvalidInput: a score belongs to a member that the version does not have.
        """
        rows = list(rows)
        entry, record = self._resolved(ref)
        check_scores(rows, {member.index for member in record.members})
        if record.selected is not None and any(row.member != record.selected for row in rows):
            raise InvalidInput(
                f"some scores belong to other members than {record.ref}",
                "a reference to one member accepts only the scores of this member",
                f"use the reference of the version: {record.version_ref}",
            )
        if rows:
            number = next_number(entry)
            tags = add_scores(
                self.tracking, _place(record), record.members, rows, self._cache.keep, number=number
            )
            for key, value in tags.items():
                self.tracking.tag_version(record.name, record.version, key, value)

    def scores(self, entry: VersionEntry) -> list[Score]:
        """Return all scores of a version, in the order in which they were recorded.

        If the settings name trusted keys, score reports that none of them signed are ignored, and
        this is logged. Scores of members selected with an earlier calibration set are left out.

        Raises:
            Corrupt: a score report is not the one that was registered.
        """
        reports: list[tuple[int, list[Score]]] = []
        for key, value in entry.tags.items():
            if key.startswith(SCORES_TAG):
                what = f"scores of {entry.ref}"
                model_id, (sha256, _, signature) = (
                    key.removeprefix(SCORES_TAG),
                    value.partition(" "),
                )
                if not trust.may_count(f"scores of {entry.tag(SHA256_TAG)}", sha256, signature):
                    logger.warning("unsigned scores are ignored", extra={"of": what})
                    continue
                number = report_number(entry, ORDER_TAG + model_id)
                rows = read_report(self._file(model_id, REPORT_FILE, sha256, what))
                reports.append((number, rows))
        calibration = digest_of(entry)
        return [one for one in in_order(reports) if is_current(one, calibration)]

    def matrix(self, ref: str) -> Matrix:
        """Return the matrix of a version; a pair that was not measured is None in it."""
        entry, record = self._resolved(ref)
        rows = self.scores(entry)
        if record.selected is not None:
            rows = [row for row in rows if row.member == record.selected]
        return Matrix(rows, [member.index for member in record.members])

    def set_alias(self, name: str, alias: str, version: int) -> Record:
        """Point `serving` or `candidate` to an existing version, and return it."""
        check_alias(alias)
        record = self.resolve(f"{name}@{version}")
        self.tracking.set_alias(name, alias, version)
        return dataclasses.replace(record, aliases=tuple(sorted({*record.aliases, alias})))

    def tag(self, ref: str, key: str, value: str) -> None:
        """Set or replace a tag of a version; a listing shows it."""
        record = self.resolve(ref)
        self.tracking.tag_version(record.name, record.version, key, value)

    def untag(self, ref: str, key: str) -> None:
        """Remove a tag of a version, if it has it."""
        record = self.resolve(ref)
        self.tracking.untag_version(record.name, record.version, key)

    def test(self, ref: str) -> list[SelfTest]:
        """Load every member and return whether it gives the same answer as at registration.

        Raises:
            NotFound: the version was registered without a self-test.
            Corrupt: weights or self-test are not those that were registered.
        """
        record = self.resolve(ref)
        if not record.self_test:
            raise NotFound(
                f"{record.ref} has no self-test",
                "an older version of Manybeam registered it",
                "register its members again: manybeam zoo export, then zoo import",
            )
        what = f"self-test of {record.ref}"
        kept = self._file(record.model_id, SELF_TEST_FILE, record.self_test, what)
        return run_self_test(self.members(ref), kept)

    def sign(self, ref: str) -> Record:
        """Sign the manifest, scores and attachments of a version with the key in the settings.

        Raises:
            InvalidSetting: the settings name no key, or the key cannot be read.
        """
        entry, record = self._resolved(ref)
        for key, value in _signatures(entry, record).items():
            self.tracking.tag_version(entry.name, entry.version, key, value)
        return self.resolve(ref)

    def attach(self, ref: str, kind: str, content: bytes, params: Mapping[str, str]) -> str:
        """Attach bytes to a version and return their digest; the last of a kind is valid.

        Earlier attachments stay in MLflow, each as a separate LoggedModel.

        Args:
            ref: the version.
            kind: name of the kind of attachment.
            content: the bytes.
            params: how the bytes were made, as text.
        """
        record = self.resolve(ref)
        one = Attachment(kind, content, params)
        for key, value in add_attachment(self.tracking, _place(record), record.name, one).items():
            self.tag(record.ref, key, value)
        return sha256_of(content)

    def attached(self, ref: str, kind: str) -> bytes | None:
        """Return the last attachment of a kind, or None.

        Raises:
            Corrupt: the bytes are not those that were attached.
            NotAllowed: the settings name trusted keys, and none of them signed it.
        """
        entry, record = self._resolved(ref)
        if ATTACHED_TAG + kind not in entry.tags:
            return None
        try:
            model_id, sha256, *signature = entry.tags[ATTACHED_TAG + kind].split()
        except ValueError:
            raise entry.damaged(f"its tag {ATTACHED_TAG}{kind} has no id and digest") from None
        trust.check(f"{kind} of {record.sha256}", sha256, "".join(signature))
        return self._file(model_id, kind, sha256, f"{kind} of {record.ref}")

    def _resolved(self, ref: str) -> tuple[VersionEntry, Record]:
        """Return the entry and the record of a reference; the record may be of one member."""
        asked = Ref.parse(ref)
        entry = self._entry(asked)
        record = self.record(entry)
        return entry, record if asked.member is None else record.only(asked.member)

    def _entry(self, asked: Ref) -> VersionEntry:
        """Return the entry of a reference; one call if it exists."""
        if asked.alias is not None and asked.alias not in ALIASES:
            # MLflow has a built-in alias `latest`, which we do not use.
            raise asked.unknown(self.tracking.versions(), without_password(self.address))
        try:
            entry = self._known.one(
                f"{asked.name}@{asked.alias or asked.version}", lambda: self._read_entry(asked)
            )
        except (NotFound, InvalidInput) as error:
            raise asked.unknown(self.tracking.versions(), without_password(self.address)) from error
        if not entry.is_ours:
            raise asked.unknown(self.tracking.versions(), without_password(self.address))
        return entry

    def _read_entry(self, asked: Ref) -> VersionEntry:
        if asked.version is None and asked.alias is not None:
            return self.tracking.version_by_alias(asked.name, asked.alias)
        return self.tracking.version(asked.name, asked.version or 0)

    def _load(self, record: MemberRecord) -> "Member":
        from manybeam.learn.nets.card import MemberCard
        from manybeam.learn.nets.member import StoredWeights

        who, model_id = f"member {record.index:02d}", record.model_id
        weights = self._file(model_id, WEIGHTS_FILE, record.sha256, f"weights of {who}")
        card = self._file(model_id, CARD_FILE, record.card_sha256, f"recipe of {who}")
        return MemberCard.read(card).to_member(StoredWeights(weights))

    def _file(self, model_id: str, path: str, sha256: str, what: str) -> bytes:
        """Return a file from the cache or the store; it is checked in both cases."""
        return self._cache.get(sha256, lambda: self.tracking.read_file(model_id, path), what)


class _ZooReadLast(Zoo):
    """A zoo whose MLflow is not asked: its entries and files are those in the cache."""

    def __init__(self, tracking_uri: str, artifacts: str, cache: Path) -> None:
        super().__init__(tracking_uri, artifacts, cache)
        self._known = dataclasses.replace(self._known, is_away=True)

    @property
    def tracking(self) -> "Tracking":
        """Raise ZooUnreachable: something is asked for that is not in the cache."""
        raise ZooUnreachable(
            "the zoo does not answer",
            "this machine has not all files of this version in its cache",
            "start MLflow again; manybeam status",
        )


def _moment(entry: VersionEntry, key: str) -> datetime | None:
    """Return the date in a tag; None if there is no such tag. Raises Corrupt."""
    try:
        return datetime.fromisoformat(entry.tags[key]) if key in entry.tags else None
    except ValueError as error:
        raise entry.damaged(f"its tag {key} is no date: {error}") from error


def _place(record: Record) -> VersionPlace:
    return VersionPlace(record.experiment_id, record.run_id, record.model_id, record.sha256)


def _signatures(entry: VersionEntry, record: Record) -> dict[str, str]:
    """Return all tags of a version that contain signatures, with new signatures."""
    if not settings().signing_key:
        raise InvalidSetting(
            "there is no key to sign with",
            "MANYBEAM_SIGNING_KEY must name an Ed25519 private key",
            "manybeam zoo keygen FOLDER makes a pair of keys",
        )
    tags = {SIGNATURE_TAG: trust.sign(f"manifest of {record.name}", record.sha256)}
    for key, value in entry.tags.items():
        if key.startswith(SCORES_TAG):
            digest = value.partition(" ")[0]
            tags[key] = f"{digest} {trust.sign(f'scores of {record.sha256}', digest)}"
        elif key.startswith(ATTACHED_TAG):
            kind, (model_id, _, rest) = key.removeprefix(ATTACHED_TAG), value.partition(" ")
            digest = rest.partition(" ")[0]
            tags[key] = f"{model_id} {digest} {trust.sign(f'{kind} of {record.sha256}', digest)}"
    return tags
