"""The registry: members and ensembles kept for good, found by reference, loaded and scored.

A registered version is complete or not there: members first, then the manifest that names them,
then their scores, and the version last. A crash before that leaves LoggedModels nobody can name.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam.errors import Corrupt, InvalidInput, InvalidSetting, NotFound
from manybeam.settings import settings
from manybeam.zoo.cache import Cache, sha256_of
from manybeam.zoo.checks import check_alias, check_members, check_name, check_scores
from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.selftest import SELF_TEST_FILE, SelfTest, run_self_test
from manybeam.zoo.matrix import FrameSetUse, Matrix, Score
from manybeam.zoo.records import ALIASES, MemberRecord, Record, Ref, VersionEntry, read_manifest
from manybeam.zoo.registration import (
    ATTACHED_TAG,
    CARD_FILE,
    EXPERIMENT_TAG,
    MANIFEST_FILE,
    SCORES_TAG,
    SEAL_TAG,
    SHA256_TAG,
    WEIGHTS_FILE,
    Attachment,
    Place,
    Registration,
    add_attachment,
    add_scores,
    read_card,
)
from manybeam.zoo.score_reports import SHEET_FILE, read_report
from manybeam.zoo.tracking import MANIFEST_TAG, Tracking

if TYPE_CHECKING:
    from manybeam.learn.nets.ensemble import Ensemble
    from manybeam.learn.nets.member import Member

logger = logging.getLogger(__name__)

ARCHIVED_TAG = "manybeam.archived"  # when, in UTC


class Zoo:
    """The versioned zoo of one deployment.

    Args:
        tracking_uri: MLflow's server or database; the settings' if left out.
        artifacts: where weights go if MLflow has no server; the settings' if left out.
        cache: folder that keeps weights on this machine; in the settings' home if left out.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        artifacts: str | None = None,
        cache: Path | None = None,
    ) -> None:
        self.tracking = Tracking(
            tracking_uri or settings().tracking_url, artifacts or settings().artifacts_url
        )
        self._cache = Cache(cache or settings().home / "cache" / "zoo")

    @property
    def address(self) -> str:
        """URL of the MLflow that keeps it."""
        return self.tracking.uri

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
        vouch: bool = True,
        attachments: Sequence[Attachment] = (),
    ) -> Record:
        """Register trained members as the next version of an ensemble, all or nothing.

        Args:
            name: name of the ensemble; made if it is new.
            members: at least one, each with its own index.
            job: the job that made them, resolved, as plain data.
            alias: `serving` or `candidate`, moved to the new version at the very end, past every
                gate and the audit log; `zoo.lifecycle.life.settle` asks them.
            scores: what is already measured; more may follow through `record_scores`.
            failed: members that were planned but failed, each with its reason.
            parent: reference of the version these were adapted from.
            inputs: FrameSets they were trained on.
            vouch: sign the version, if the settings name a key; not what a stranger made.
            attachments: bytes to keep beside it, as `attach` does.

        Raises:
            InvalidInput: a name, alias, index or score that cannot be kept.
            MemberCountError: no members.
            MemberDiverged: weights that are NaN or infinite.
            ZooUnreachable: MLflow or its artifact store does not answer.
        """
        rows = list(scores or ())
        check_name(name)
        check_alias(alias)
        check_members(members)
        check_scores(rows, {member.index for member in members})
        used = tuple(inputs)
        asked = Registration(name, members, job, rows, failed, parent, used, vouch, attachments)
        version = asked.write(self.tracking, self._cache.keep)
        if alias is not None:
            self.tracking.set_alias(name, alias, version)
        logger.info("ensemble registered", extra={"ensemble": name, "version": version})
        return self.resolve(f"{name}@{version}")

    def resolve(self, ref: str) -> Record:
        """Return the version a reference means, as its manifest says.

        Raises:
            UnknownRef: no such ensemble, version, alias or member; the nearest are in the hint.
            Corrupt: the manifest is not the one that was registered.
        """
        return self._resolved(ref)[1]

    def ls(self, name: str | None = None) -> list[Record]:
        """Return every version, by name and newest first; of one ensemble if named."""
        return [self.record(entry) for entry in self.listing(name)]

    def listing(self, name: str | None = None) -> list[VersionEntry]:
        """Return what MLflow lists of every version, without a manifest read: two calls."""
        return self.tracking.versions(name)

    def entry(self, ref: str) -> VersionEntry:
        """Return what MLflow lists of one version; raises UnknownRef."""
        return self._entry(Ref.parse(ref))

    def read_anew(self, model_id: str, path: str) -> bytes:
        """Return a file of the zoo as it lies in the store now, unchecked; raises Corrupt."""
        return self.tracking.read_file(model_id, path)

    def record(self, entry: VersionEntry) -> Record:
        """Return the version an entry of a listing is of; raises Corrupt as `resolve` does."""
        manifest_id, sha256 = entry.tags[MANIFEST_TAG], entry.tags[SHA256_TAG]
        what = f"manifest of {entry.ref}"
        content = self._file(manifest_id, MANIFEST_FILE, sha256, what)
        archived, found = entry.tags.get(ARCHIVED_TAG), read_manifest(content)
        if found.name != entry.name:
            raise Corrupt(
                f"the {what} is that of {found.name!r}",
                "somebody changed the zoo's database by hand",
                "restore it from its backup",
            )
        return dataclasses.replace(
            found,
            version=entry.version,
            aliases=entry.aliases,
            archived=datetime.fromisoformat(archived) if archived else None,
            signature=entry.tags.get(SEAL_TAG, ""),
            model_id=manifest_id,
            run_id=entry.run_id,
            experiment_id=entry.tags[EXPERIMENT_TAG],
            sha256=sha256,
        )

    def manifest(self, ref: str) -> bytes:
        """Return the manifest of a version as it was registered; raises as `resolve` does."""
        one = self.resolve(ref)
        return self._file(one.model_id, MANIFEST_FILE, one.sha256, f"manifest of {one.ref}")

    def members(self, ref: str) -> list["Member"]:
        """Return the trained members of a version, weights checked against their digests.

        Raises:
            UnknownRef: nothing is called that.
            Corrupt: bytes differ from those registered, or are gone.
            NotAllowed: the settings name trusted keys, and none of them signed the version.
        """
        record = self.resolve(ref)
        trust.check(f"manifest of {record.name}", record.sha256, record.signature)
        return [self._load(member) for member in record.members]

    def ensemble(self, ref: str) -> "Ensemble":
        """Return the ensemble of a reference, ready to predict; raises as `members` does."""
        from manybeam.learn.nets.ensemble import Ensemble

        return Ensemble(self.members(ref))

    def record_scores(self, ref: str, rows: Iterable[Score]) -> None:
        """Add scores to a version; a later score of the same pair replaces the earlier one.

        Raises:
            InvalidInput: a score of a member that the version does not have.
        """
        record, rows = self.resolve(ref), list(rows)
        check_scores(rows, {member.index for member in record.members})
        if record.selected is not None and any(row.member != record.selected for row in rows):
            raise InvalidInput(
                f"scores of others than {record.ref}",
                "a reference to one member takes its scores only",
                f"name the version: {record.version_ref}",
            )
        if rows:
            place = _place(record)
            tags = add_scores(self.tracking, place, record.members, rows, self._cache.keep)
            for key, value in tags.items():
                self.tracking.tag_version(record.name, record.version, key, value)

    def scores(self, entry: VersionEntry) -> list[Score]:
        """Return every score of a version, oldest first.

        Where the settings name trusted keys, sheets that none of them signed do not count; one
        such sheet takes no version away, but it is logged.

        Raises:
            Corrupt: a sheet of them is not the one that was kept.
        """
        found: list[Score] = []
        for key, value in entry.tags.items():
            if key.startswith(SCORES_TAG):
                what = f"scores of {entry.ref}"
                model_id, (sha256, _, signature) = (
                    key.removeprefix(SCORES_TAG),
                    value.partition(" "),
                )
                if not trust.may_count(f"scores of {entry.tags[SHA256_TAG]}", sha256, signature):
                    logger.warning("unsigned scores do not count", extra={"of": what})
                    continue
                found += read_report(self._file(model_id, SHEET_FILE, sha256, what))
        return sorted(found, key=lambda row: row.taken.timestamp() if row.taken else 0.0)

    def matrix(self, ref: str) -> Matrix:
        """Return members x conditions of a version; a pair not measured is None there."""
        entry, record = self._resolved(ref)
        rows = self.scores(entry)
        if record.selected is not None:
            rows = [row for row in rows if row.member == record.selected]
        return Matrix(rows, [member.index for member in record.members])

    def set_alias(self, name: str, alias: str, version: int) -> Record:
        """Point `serving` or `candidate` at a version that exists, and return it."""
        check_alias(alias)
        record = self.resolve(f"{name}@{version}")
        self.tracking.set_alias(name, alias, version)
        return dataclasses.replace(record, aliases=tuple(sorted({*record.aliases, alias})))

    def tag(self, ref: str, key: str, value: str) -> None:
        """Set a tag of a version, which a listing tells; whatever it was before."""
        record = self.resolve(ref)
        self.tracking.tag_version(record.name, record.version, key, value)

    def untag(self, ref: str, key: str) -> None:
        """Take a tag of a version away, if it has it."""
        record = self.resolve(ref)
        self.tracking.untag_version(record.name, record.version, key)

    def test(self, ref: str) -> list[SelfTest]:
        """Load every member and return whether it answers as it did when it was registered.

        Raises:
            NotFound: the version was registered without a self-test.
            Corrupt: weights or self-test are not those that were registered.
        """
        record = self.resolve(ref)
        if not record.self_test:
            raise NotFound(
                f"{record.ref} has no self-test",
                "an older Manybeam registered it",
                "register its members again to make one",
            )
        what = f"self-test of {record.ref}"
        kept = self._file(record.model_id, SELF_TEST_FILE, record.self_test, what)
        return run_self_test(self.members(ref), kept)

    def sign(self, ref: str) -> Record:
        """Sign a version anew with the key in the settings: its manifest, scores, attachments.

        Raises:
            InvalidSetting: the settings name no key, or one that cannot be read.
        """
        entry, record = self._resolved(ref)
        for key, value in _signatures(entry, record).items():
            self.tracking.tag_version(entry.name, entry.version, key, value)
        return self.resolve(ref)

    def attach(self, ref: str, kind: str, content: bytes, params: Mapping[str, str]) -> str:
        """Keep bytes beside a version and return their digest; the last of a kind counts.

        Those attached before stay in MLflow, each a LoggedModel of its own.

        Args:
            ref: the version.
            kind: a word for what it is.
            content: the bytes.
            params: how they were made, as text.
        """
        record = self.resolve(ref)
        one = Attachment(kind, content, params)
        for key, value in add_attachment(self.tracking, _place(record), record.name, one).items():
            self.tag(record.ref, key, value)
        return sha256_of(content)

    def attached(self, ref: str, kind: str) -> bytes | None:
        """Return what was last attached to a version, or None.

        Raises:
            Corrupt: the bytes are not those that were attached.
            NotAllowed: the settings name trusted keys, and none of them signed it.
        """
        entry, record = self._resolved(ref)
        if ATTACHED_TAG + kind not in entry.tags:
            return None
        model_id, sha256, *signature = entry.tags[ATTACHED_TAG + kind].split()
        trust.check(f"{kind} of {record.sha256}", sha256, "".join(signature))
        return self._file(model_id, kind, sha256, f"{kind} of {record.ref}")

    def _resolved(self, ref: str) -> tuple[VersionEntry, Record]:
        """Return what MLflow lists of a reference and its record, of one member if it names one."""
        wanted = Ref.parse(ref)
        entry = self._entry(wanted)
        record = self.record(entry)
        return entry, record if wanted.member is None else record.only(wanted.member)

    def _entry(self, wanted: Ref) -> VersionEntry:
        """Return the version meant, in one call if it is there."""
        if wanted.alias is not None and wanted.alias not in ALIASES:
            # MLflow would take `latest` for an alias.
            raise wanted.unknown(self.tracking.versions())
        try:
            entry = (
                self.tracking.version_by_alias(wanted.name, wanted.alias)
                if wanted.version is None and wanted.alias is not None
                else self.tracking.version(wanted.name, wanted.version or 0)
            )
        except (NotFound, InvalidInput) as error:
            raise wanted.unknown(self.tracking.versions()) from error
        if MANIFEST_TAG not in entry.tags:
            raise wanted.unknown(self.tracking.versions())
        return entry

    def _load(self, record: MemberRecord) -> "Member":
        from manybeam.learn.nets.member import load_weights

        who, model_id = f"member {record.index:02d}", record.model_id
        weights = self._file(model_id, WEIGHTS_FILE, record.sha256, f"weights of {who}")
        card = self._file(model_id, CARD_FILE, record.card_sha256, f"recipe of {who}")
        return read_card(card, record, load_weights(weights))

    def _file(self, model_id: str, path: str, sha256: str, what: str) -> bytes:
        """Return a file of the zoo, from this machine if it is here, checked either way."""
        return self._cache.get(sha256, lambda: self.tracking.read_file(model_id, path), what)


def _place(record: Record) -> Place:
    return Place(record.experiment_id, record.run_id, record.model_id, record.sha256)


def _signatures(entry: VersionEntry, record: Record) -> dict[str, str]:
    """Return every tag of a version that carries a seal, with one of the settings' key."""
    if not settings().signing_key:
        raise InvalidSetting(
            "there is no key to sign with",
            "MANYBEAM_SIGNING_KEY names an Ed25519 private key",
            "manybeam zoo keygen FOLDER makes a pair",
        )
    tags = {SEAL_TAG: trust.sign(f"manifest of {record.name}", record.sha256)}
    for key, value in entry.tags.items():
        if key.startswith(SCORES_TAG):
            digest = value.partition(" ")[0]
            tags[key] = f"{digest} {trust.sign(f'scores of {record.sha256}', digest)}"
        elif key.startswith(ATTACHED_TAG):
            kind, (model_id, digest, *_) = key.removeprefix(ATTACHED_TAG), value.split()
            tags[key] = f"{model_id} {digest} {trust.sign(f'{kind} of {record.sha256}', digest)}"
    return tags
