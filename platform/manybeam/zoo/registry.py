"""The registry: members and ensembles kept for good, found by reference, loaded and scored.

A registered version is complete or not there: members first, then the manifest that names them,
then their scores, and the version last. A crash before that leaves LoggedModels nobody can name.
"""

import dataclasses
import difflib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manybeam import __version__
from manybeam.errors import InvalidInput, NotFound, UnknownRef
from manybeam.settings import settings
from manybeam.zoo.cache import Cache, sha256_of
from manybeam.zoo.checks import check_alias, check_members, check_name, check_scores
from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score
from manybeam.zoo.records import (
    ALIASES,
    MemberRecord,
    Record,
    Ref,
    read_manifest,
    write_manifest,
)
from manybeam.zoo.tracking import KIND_TAG, MANIFEST_TAG, MEMBER_TAG, Tracking, VersionEntry

if TYPE_CHECKING:
    from manybeam.learn.ensemble import Ensemble
    from manybeam.learn.member import Member

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "member.json"
MANIFEST_FILE = "manifest.json"
_SHA256_TAG = "manybeam.sha256"
_EXPERIMENT_TAG = "manybeam.experiment"
_CODE_TAG = "manybeam.code_version"
_ATTACHED_TAG = "manybeam.attached."


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
        self._tracking = Tracking(
            tracking_uri or settings().tracking_url, artifacts or settings().artifacts_url
        )
        self._cache = Cache(cache or settings().home / "cache" / "zoo")

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
    ) -> Record:
        """Register trained members as the next version of an ensemble, all or nothing.

        Args:
            name: name of the ensemble; made if it is new.
            members: at least one, each with its own index.
            job: the job that made them, resolved, as plain data.
            alias: `serving` or `candidate`, moved to the new version at the very end.
            scores: what is already measured; more may follow through `record_scores`.
            failed: members that were planned but failed, each with its reason.
            parent: reference of the version these were adapted from.

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
        tracking = self._tracking
        experiment_id = tracking.experiment(f"manybeam/{name}")
        run_id = tracking.start_run(experiment_id, name, {_CODE_TAG: __version__})
        try:
            kept = [self._add_member(experiment_id, run_id, member) for member in members]
            manifest = write_manifest(
                name, kept, job=job, failed=failed, parent=parent, code_version=__version__
            )
            manifest_id = self._add_manifest(experiment_id, run_id, name, manifest, len(kept))
            if rows:
                tracking.log_scores(run_id, _model_ids(kept, manifest_id), rows)
            tracking.end_run(run_id)
            version = tracking.add_version(
                name, manifest_id, run_id, _version_tags(manifest_id, manifest, experiment_id)
            )
        except BaseException:
            tracking.abandon_run(run_id)
            raise
        if alias is not None:
            tracking.set_alias(name, alias, version)
        logger.info("ensemble registered", extra={"ensemble": name, "version": version})
        return self.resolve(f"{name}@{version}")

    def resolve(self, ref: str) -> Record:
        """Return the version a reference means, as its manifest says.

        Raises:
            UnknownRef: no such ensemble, version, alias or member; the nearest are in the hint.
            Corrupt: the manifest is not the one that was registered.
        """
        wanted = Ref.parse(ref)
        record = self._record(self._entry(wanted))
        return record if wanted.member is None else record.only(wanted.member)

    def ls(self, name: str | None = None) -> list[Record]:
        """Return every version, by name and newest first; of one ensemble if named."""
        return [self._record(entry) for entry in self._tracking.versions(name)]

    def members(self, ref: str) -> list["Member"]:
        """Return the trained members of a version, weights checked against their digests.

        Raises:
            UnknownRef: nothing is called that.
            Corrupt: bytes differ from those registered, or are gone.
        """
        return [self._load(member) for member in self.resolve(ref).members]

    def ensemble(self, ref: str) -> "Ensemble":
        """Return the ensemble of a reference, ready to predict; raises as `members` does."""
        from manybeam.learn.ensemble import Ensemble

        return Ensemble(self.members(ref))

    def record_scores(self, ref: str, rows: Iterable[Score]) -> None:
        """Add scores to a version; a later score of the same pair replaces the earlier one.

        Raises:
            InvalidInput: a score of a member that the version does not have.
        """
        record, rows = self.resolve(ref), list(rows)
        check_scores(rows, {member.index for member in record.members})
        if rows:
            self._tracking.log_scores(
                record.run_id, _model_ids(record.members, record.model_id), rows
            )

    def matrix(self, ref: str) -> Matrix:
        """Return members x conditions of a version; a pair not measured is None there."""
        record = self.resolve(ref)
        rows = self._tracking.read_scores(record.experiment_id, record.run_id)
        if record.selected is not None:
            rows = [row for row in rows if row.member == record.selected]
        return Matrix(rows, [member.index for member in record.members])

    def set_alias(self, name: str, alias: str, version: int) -> Record:
        """Point `serving` or `candidate` at a version that exists, and return it."""
        check_alias(alias)
        record = self.resolve(f"{name}@{version}")
        self._tracking.set_alias(name, alias, version)
        return dataclasses.replace(record, aliases=tuple(sorted({*record.aliases, alias})))

    def attach(self, ref: str, kind: str, content: bytes, params: Mapping[str, str]) -> str:
        """Keep bytes beside a version and return their digest; the last of a kind counts.

        Those attached before stay in MLflow, each a LoggedModel of its own.

        Args:
            ref: the version.
            kind: a word for what it is.
            content: the bytes.
            params: how they were made, as text.
        """
        record, sha256 = self.resolve(ref), sha256_of(content)
        model_id = self._tracking.add_model(
            record.experiment_id,
            record.run_id,
            f"{record.name}-{kind}",
            kind=f"manybeam-{kind}",
            params=params,
            tags={_SHA256_TAG: sha256, _CODE_TAG: __version__, KIND_TAG: kind},
            files={kind: content},
        )
        place = (record.name, record.version)
        self._tracking.tag_version(*place, _ATTACHED_TAG + kind, f"{model_id} {sha256}")
        return sha256

    def attached(self, ref: str, kind: str) -> bytes | None:
        """Return what was last attached to a version, or None.

        Raises:
            Corrupt: the bytes are not those that were attached.
        """
        record = self.resolve(ref)
        tags = self._tracking.version(record.name, record.version).tags
        if _ATTACHED_TAG + kind not in tags:
            return None
        model_id, sha256 = tags[_ATTACHED_TAG + kind].split()
        return self._file(model_id, kind, sha256, f"{kind} of {record.ref}")

    def _add_member(self, experiment_id: str, run_id: str, member: "Member") -> MemberRecord:
        """Write one member as a LoggedModel and return its record."""
        from manybeam.learn.member import save_weights

        weights = save_weights(member.weights)
        card = _write_card(member)
        recipe = member.recipe
        record = MemberRecord(
            index=member.index,
            seed=member.seed,
            policy=member.policy,
            recipe=f"{recipe.id}@{recipe.version}",
            network=recipe.network.model_dump(mode="json"),
            parent=member.parent,
            data_digest=member.data_digest,
            final_loss=float(member.losses[-1]) if member.losses else None,
            wall_s=round(member.wall_s, 3),
            model_id="",
            sha256=sha256_of(weights),
            byte_count=len(weights),
            card_sha256=sha256_of(card),
        )
        params = {key: str(getattr(record, key)) for key in ("seed", "policy", "recipe", "parent")}
        model_id = self._tracking.add_model(
            experiment_id,
            run_id,
            f"member-{member.index:02d}",
            kind="manybeam-member",
            params={**params, "network": json.dumps(record.network)},
            tags={
                MEMBER_TAG: str(member.index),
                "manybeam.data_digest": member.data_digest,
                _SHA256_TAG: record.sha256,
                _CODE_TAG: __version__,
            },
            files={WEIGHTS_FILE: weights, CARD_FILE: card},
        )
        return dataclasses.replace(record, model_id=model_id)

    def _add_manifest(
        self, experiment_id: str, run_id: str, name: str, manifest: bytes, member_count: int
    ) -> str:
        return self._tracking.add_model(
            experiment_id,
            run_id,
            name,
            kind="manybeam-ensemble",
            params={"members": str(member_count)},
            tags={_SHA256_TAG: sha256_of(manifest), _CODE_TAG: __version__},
            files={MANIFEST_FILE: manifest},
        )

    def _entry(self, wanted: Ref) -> VersionEntry:
        """Return the version meant, in one call if it is there."""
        if wanted.alias is not None and wanted.alias not in ALIASES:
            raise self._unknown(wanted)  # MLflow would take `latest` for an alias
        try:
            entry = (
                self._tracking.version_by_alias(wanted.name, wanted.alias)
                if wanted.version is None and wanted.alias is not None
                else self._tracking.version(wanted.name, wanted.version or 0)
            )
        except (NotFound, InvalidInput) as error:
            raise self._unknown(wanted) from error
        if MANIFEST_TAG not in entry.tags:
            raise self._unknown(wanted)
        return entry

    def _unknown(self, wanted: Ref) -> UnknownRef:
        """Return the error that names what is near: ensembles, or versions of the one meant."""
        entries = self._tracking.versions()
        names = sorted({entry.name for entry in entries})
        if wanted.name not in names:
            near = difflib.get_close_matches(wanted.name, names, n=3, cutoff=0.4) or names[:20]
            return UnknownRef(
                f"no ensemble {wanted.name!r} in the zoo",
                f"ensembles in it: {len(names)}",
                f"nearest: {', '.join(near)}" if near else "manybeam train registers the first",
            )
        own = [entry for entry in entries if entry.name == wanted.name]
        there = ", ".join("@".join((str(entry.version), *entry.aliases)) for entry in own[:20])
        what = f"version {wanted.version}" if wanted.alias is None else f"@{wanted.alias} version"
        return UnknownRef(
            f"{wanted.name!r} has no {what}",
            f"versions: {there}",
            f"nearest: {wanted.name}@{own[0].version}",
        )

    def _record(self, entry: VersionEntry) -> Record:
        manifest_id, sha256 = entry.tags[MANIFEST_TAG], entry.tags[_SHA256_TAG]
        what = f"manifest of {entry.name}@{entry.version}"
        content = self._file(manifest_id, MANIFEST_FILE, sha256, what)
        return dataclasses.replace(
            read_manifest(content),
            version=entry.version,
            aliases=entry.aliases,
            model_id=manifest_id,
            run_id=entry.run_id,
            experiment_id=entry.tags[_EXPERIMENT_TAG],
            sha256=sha256,
        )

    def _load(self, record: MemberRecord) -> "Member":
        from manybeam.learn.member import load_weights

        who, model_id = f"member {record.index:02d}", record.model_id
        weights = self._file(model_id, WEIGHTS_FILE, record.sha256, f"weights of {who}")
        card = self._file(model_id, CARD_FILE, record.card_sha256, f"recipe of {who}")
        return _read_card(card, record, load_weights(weights))

    def _file(self, model_id: str, path: str, sha256: str, what: str) -> bytes:
        """Return a file of the zoo, from this machine if it is here, checked either way."""
        return self._cache.get(sha256, lambda: self._tracking.read_file(model_id, path), what)


def _version_tags(manifest_id: str, manifest: bytes, experiment_id: str) -> dict[str, str]:
    return {
        MANIFEST_TAG: manifest_id,
        _SHA256_TAG: sha256_of(manifest),
        _EXPERIMENT_TAG: experiment_id,
        _CODE_TAG: __version__,
    }


def _model_ids(members: Iterable[MemberRecord], manifest_id: str) -> dict[int, str]:
    """Return the LoggedModel that holds the scores of each row of the matrix."""
    ids = {member.index: member.model_id for member in members}
    return {**ids, ENSEMBLE: manifest_id, CLASSICAL: manifest_id}


def _write_card(member: "Member") -> bytes:
    """Return what makes a member again: its recipe, seed and policy; and its losses."""
    card = {
        "index": member.index,
        "seed": member.seed,
        "policy": member.policy,
        "parent": member.parent,
        "data_digest": member.data_digest,
        "wall_s": member.wall_s,
        "losses": [float(loss) for loss in member.losses],
        "code_version": __version__,
        "recipe": member.recipe.model_dump(mode="json"),
    }
    return json.dumps(card, indent=1).encode()


def _read_card(card: bytes, record: MemberRecord, weights: dict[str, Any]) -> "Member":
    from manybeam.learn.member import Member
    from manybeam.spec.recipe import Recipe

    content = json.loads(card)
    return Member(
        index=record.index,
        seed=record.seed,
        policy=record.policy,
        recipe=Recipe.model_validate(content["recipe"]),
        weights=weights,
        losses=tuple(content["losses"]),
        wall_s=content["wall_s"],
        data_digest=record.data_digest,
        parent=record.parent,
    )
