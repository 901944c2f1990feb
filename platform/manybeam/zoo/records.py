"""Records of an ensemble in the zoo: references, records of members, and the manifest.

The manifest is one JSON document. It names every member and the SHA-256 of its files. A registered
version names the manifest and its SHA-256. So a version is a chain of digests down to the bytes of
the weights, and never changes.
"""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from manybeam.data.representation import Drawable
from manybeam.errors import Corrupt, InvalidInput, UnknownRef
from manybeam.zoo.matrix import ENSEMBLE, FrameSetUse

if TYPE_CHECKING:
    from manybeam.learn.nets.card import MemberCard

ALIASES = ("serving", "candidate")
RESERVED_NAMES = ("auto",)
_TAGS = "manybeam."  # the beginning of all our tags
MEMBER_TAG = "manybeam.member"
MANIFEST_TAG = "manybeam.manifest"
KIND_TAG = "manybeam.attachment"  # of a LoggedModel that is neither a member nor an ensemble
EXPERIMENT_PREFIX = "manybeam/"  # of an experiment of MLflow; the name of the ensemble follows
MANIFEST_FORMAT = "manybeam-ensemble-1"

_NAME = r"[a-z0-9][a-z0-9._-]{0,99}"
_CLOSE = 0.6  # similarity from which the name of an ensemble is suggested
_REF = re.compile(
    rf"(?P<name>{_NAME})(?:@(?P<at>[a-z]{{1,20}}|[0-9]{{1,9}}))?(?:/(?P<member>[0-9]{{1,6}}))?"
)


@dataclass(frozen=True)
class VersionEntry:
    """One registered version in the listing of MLflow."""

    name: str
    version: int
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, int]:
        """Name and number, which identify the version."""
        return self.name, self.version

    @property
    def ref(self) -> str:
        """The reference that always means this version."""
        return f"{self.name}@{self.version}"

    @property
    def is_ours(self) -> bool:
        """Whether it is a version of Manybeam, also if some of its tags are lost."""
        return any(key.startswith(_TAGS) for key in self.tags)

    def tag(self, key: str) -> str:
        """Return a tag that every version has.

        Raises:
            Corrupt: it is missing.
        """
        if key not in self.tags:
            raise self.damaged(f"its tag {key} is missing")
        return self.tags[key]

    def damaged(self, why: str) -> Corrupt:
        """Return the error of an entry that cannot be read."""
        return Corrupt(
            f"{self.ref} cannot be read: {why}",
            "the database of the zoo is damaged, or was changed by hand",
            "restore the database from its backup; the other versions are not affected",
        )

    @property
    def state(self) -> str:
        """A digest of the entry; it changes if a score, a status or an alias changes."""
        content = [self.run_id, sorted(self.tags.items()), self.aliases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ref:
    """A reference to an ensemble, a version, or a member, as a person writes it.

    Example:
        >>> Ref.parse("graphene@3/07")
        Ref(name='graphene', alias=None, version=3, member=7)
        >>> Ref.parse("graphene").alias
        'serving'
    """

    name: str
    alias: str | None
    version: int | None
    member: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `name@serving`, `name@3` or `name@3/07`.

        Raises:
            UnknownRef: the text has none of those forms.
        """
        match = _REF.fullmatch(text)
        if match is None:
            raise UnknownRef(
                f"{text[:80]!r} is no reference to an ensemble",
                "allowed: name, name@serving, name@candidate, name@3, name@3/07",
                "manybeam zoo ls lists all ensembles",
            )
        at, member = match["at"] or ALIASES[0], match["member"]
        return cls(
            name=match["name"],
            alias=None if at.isdigit() else at,
            version=int(at) if at.isdigit() else None,
            member=None if member is None else int(member),
        )

    @classmethod
    def is_one(cls, text: str) -> bool:
        """Return whether a text has the form of a reference."""
        return _REF.fullmatch(text) is not None

    def unknown(self, there: Iterable[VersionEntry], address: str = "") -> UnknownRef:
        """Return the error of a missing reference, with similar names or the versions there are.

        Args:
            there: all versions of the zoo, in any order.
            address: URL of the zoo's MLflow; an empty zoo is often not the one that was meant.
        """
        entries = sorted(there, key=lambda one: -one.version)
        own = [one for one in entries if one.name == self.name]
        if own:
            what = f"version {self.version}" if self.alias is None else f"@{self.alias} version"
            listed = ", ".join("@".join((str(one.version), *one.aliases)) for one in own[:20])
            return UnknownRef(
                f"{self.name!r} has no {what}",
                f"versions: {listed}",
                f"nearest: {own[0].ref}",
            )
        names = sorted({one.name for one in entries})
        if not names and address:
            return UnknownRef(
                f"no ensemble {self.name!r} in the zoo",
                f"the zoo is empty: {address}",
                "set MANYBEAM_HOME to the folder of another zoo, or train a first ensemble: "
                "manybeam train jobs/quickstart.yaml",
            )
        if near := difflib.get_close_matches(self.name, names, n=3, cutoff=_CLOSE):
            hint = f"nearest: {', '.join(near)}"
        elif names:
            hint = "manybeam zoo ls lists all ensembles"
        else:
            hint = "train a first ensemble: manybeam train jobs/quickstart.yaml"
        return UnknownRef(
            f"no ensemble {self.name!r} in the zoo",
            f"number of ensembles in the zoo: {len(names)}",
            hint,
        )


@dataclass(frozen=True)
class MemberRecord:
    """The record of one trained network, without its weights.

    Args:
        index: number of the member in its ensemble.
        seed: seed of its initialisation, order and augmentation.
        policy: id of the policy of its training frames.
        recipe: id and version of its recipe, as `unet-small@1`.
        network: architecture, as in the group `network` of the recipe.
        parent: reference of the member it was adapted from; "" if trained from scratch.
        data_digest: digest of its training tiles.
        final_loss: loss of the last step; None if unknown. NaN is never registered.
        wall_s: duration of its training, in seconds.
        model_id: id of its LoggedModel in MLflow.
        sha256: digest of the bytes of its weights.
        byte_count: number of those bytes.
        card_sha256: digest of `member.json`: recipe and losses.
    """

    index: int
    seed: int
    policy: str
    recipe: str
    network: dict[str, Any]
    parent: str
    data_digest: str
    final_loss: float | None
    wall_s: float
    model_id: str
    sha256: str
    byte_count: int
    card_sha256: str

    @classmethod
    def of(cls, card: "MemberCard") -> Self:
        """Return the record of a member whose files have no place and no digest yet."""
        recipe = card.recipe
        return cls(
            index=card.index,
            seed=card.seed,
            policy=card.policy,
            recipe=f"{recipe.id}@{recipe.version}",
            network=recipe.network.model_dump(mode="json"),
            parent=card.parent,
            data_digest=card.data_digest,
            final_loss=card.losses[-1] if card.losses else None,
            wall_s=round(card.wall_s, 3),
            model_id="",
            sha256="",
            byte_count=0,
            card_sha256="",
        )


@dataclass(frozen=True)
class Record(Drawable, html="manybeam.zoo.reports.notebook:record_html"):
    """One registered version of an ensemble.

    Args:
        name: name of the ensemble.
        version: number of the version, from 1.
        members: its members, in order of index; only one if the reference means one member.
        created: time of registration, in UTC.
        job: the job that made it, with all defaults, as plain data.
        failed: members that failed in training, each with the reason.
        parent: reference of the version it was adapted from; "" if none.
        code_version: version of Manybeam that made it.
        inputs: FrameSets of the training.
        environment: package -> version, of all packages installed at registration.
        self_test: SHA-256 of the answers of its members to one tile; "" if none are stored.
        archived: time when it was archived, in UTC; None if it is not archived.
        signature: signature of the manifest, with the id of the key; "" if it is not signed.
        aliases: aliases that point to this version now.
        model_id: id of the LoggedModel of the manifest in MLflow.
        run_id: id of the MLflow run of its scores.
        experiment_id: id of the MLflow experiment of both.
        sha256: digest of the bytes of the manifest; it identifies the whole version.
    """

    name: str
    version: int
    members: tuple[MemberRecord, ...]
    created: datetime
    job: dict[str, Any]
    failed: tuple[str, ...] = ()
    parent: str = ""
    code_version: str = ""
    inputs: tuple[FrameSetUse, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    self_test: str = ""
    archived: datetime | None = None
    signature: str = ""
    aliases: tuple[str, ...] = ()
    model_id: str = ""
    run_id: str = ""
    experiment_id: str = ""
    sha256: str = ""
    selected: int | None = field(default=None, compare=False)

    @property
    def ref(self) -> str:
        """The reference with the number of the version: `graphene@3` or `graphene@3/07`."""
        own = self.version_ref
        return own if self.selected is None else f"{own}/{self.selected:02d}"

    @property
    def version_ref(self) -> str:
        """The reference of the whole version, also if this record is of one member."""
        return f"{self.name}@{self.version}"

    @property
    def subject(self) -> int:
        """The row of scores of this record: the ensemble, or the one member."""
        return ENSEMBLE if self.selected is None else self.selected

    @property
    def member_count(self) -> int:
        """The number of members this record holds."""
        return len(self.members)

    def member(self, index: int) -> MemberRecord:
        """Return the record of one member.

        Raises:
            UnknownRef: there is no member of that index; the error lists failed members.
        """
        for member in self.members:
            if member.index == index:
                return member
        there = ", ".join(f"{member.index:02d}" for member in self.members)
        failed = f"; failed: {'; '.join(self.failed)}" if self.failed else ""
        raise UnknownRef(
            f"{self.version_ref} has no member {index:02d}",
            f"members: {there}{failed}",
            f"manybeam zoo show {self.version_ref}",
        )

    def only(self, index: int) -> "Record":
        """Return this version with one member only."""
        return dataclasses.replace(self, members=(self.member(index),), selected=index)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, for a table, a page or a file."""
        plain = {**dataclasses.asdict(self), "created": self.created.isoformat(), "ref": self.ref}
        plain["archived"] = self.archived.isoformat() if self.archived else None
        del plain["selected"]
        return plain


def write_manifest(
    name: str,
    members: Iterable[MemberRecord],
    *,
    job: dict[str, Any],
    failed: Iterable[str],
    parent: str,
    code_version: str,
    environment: Mapping[str, str] | None = None,
    inputs: Iterable[FrameSetUse] = (),
    self_test: str = "",
) -> bytes:
    """Return the manifest of an ensemble, which never changes, as UTF-8 JSON."""
    content = {
        "format": MANIFEST_FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "code_version": code_version,
        "parent": parent,
        "job": job,
        "failed": list(failed),
        "inputs": [dataclasses.asdict(one) for one in inputs],
        "self_test": self_test,
        "environment": dict(environment or {}),
        "members": [dataclasses.asdict(member) for member in members],
    }
    try:
        return json.dumps(content, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"the job of {name!r} cannot be written as JSON: {error}",
            "allowed: text, finite numbers, lists and mappings",
            "give job.model_dump(mode='json')",
        ) from error


def read_manifest(content: bytes) -> Record:
    """Return the record in a manifest; the caller adds version, aliases and ids.

    Raises:
        Corrupt: the bytes are no manifest of this format.
    """
    try:
        manifest = json.loads(content)
        if manifest["format"] != MANIFEST_FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        return Record(
            name=manifest["name"],
            version=0,
            members=tuple(MemberRecord(**member) for member in manifest["members"]),
            created=datetime.fromisoformat(manifest["created"]),
            job=manifest["job"],
            failed=tuple(manifest["failed"]),
            parent=manifest["parent"],
            code_version=manifest["code_version"],
            inputs=tuple(FrameSetUse(**one) for one in manifest.get("inputs", ())),
            environment=manifest.get("environment", {}),
            self_test=manifest.get("self_test", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(
            f"the manifest of an ensemble cannot be read: {error}",
            f"this version of Manybeam reads {MANIFEST_FORMAT}",
            "update Manybeam if a newer version registered it",
        ) from error
