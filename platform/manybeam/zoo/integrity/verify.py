"""Verifying a version: every byte it stands on, read from the store, against what was recorded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manybeam.errors import Corrupt, NotAllowed
from manybeam.settings import settings
from manybeam.zoo.cache import sha256_of
from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.selftest import SELF_TEST_FILE
from manybeam.zoo.registration import (
    ATTACHED_TAG,
    CARD_FILE,
    MANIFEST_FILE,
    SCORES_TAG,
    SEAL_TAG,
    SHA256_TAG,
    WEIGHTS_FILE,
)
from manybeam.zoo.score_reports import SHEET_FILE
from manybeam.zoo.tracking import MANIFEST_TAG

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo


@dataclass(frozen=True)
class Check:
    """One file of a version, as it lies in the store now.

    Attributes:
        what: which file.
        sha256: digest recorded for it.
        is_whole: whether the store holds these bytes.
        seal: `trusted`, `unsigned`, `untrusted`, or "" for a file the manifest vouches for.
        told: what is wrong; "" if nothing is.
    """

    what: str
    sha256: str
    is_whole: bool
    signature: str = ""
    told: str = ""

    @property
    def passed(self) -> bool:
        """Whether the file may be used: whole, and signed if the settings ask for that."""
        return self.is_whole and self.signature in (
            ("", "trusted") if _asks_for_signatures() else _SEALS
        )


_SEALS = ("", "trusted", "unsigned", "untrusted")


@dataclass(frozen=True)
class _File:
    what: str
    model_id: str
    path: str
    sha256: str
    signed: tuple[str, str] | None = None  # what the seal says it is of, and the seal


def verify(zoo: "Zoo", ref: str) -> list[Check]:
    """Return a check of each file of a version, none of them taken from this machine's cache.

    Raises:
        UnknownRef: nothing is called that.
        Corrupt: the manifest itself cannot be read, so its members are not known.
        ZooUnreachable: the store does not answer.
    """
    return [_check(zoo, file) for file in _files(zoo, ref)]


def _files(zoo: "Zoo", ref: str) -> Iterator[_File]:
    entry, record = zoo.entry(ref), zoo.resolve(ref)
    tags = entry.tags
    signature = (f"manifest of {record.name}", tags.get(SEAL_TAG, ""))
    yield _File("manifest", tags[MANIFEST_TAG], MANIFEST_FILE, tags[SHA256_TAG], signature)
    for member in record.members:
        who, place = f"member {member.index:02d}", member.model_id
        yield _File(f"weights of {who}", place, WEIGHTS_FILE, member.sha256)
        yield _File(f"recipe of {who}", place, CARD_FILE, member.card_sha256)
    if record.self_test:
        yield _File("self-test", record.model_id, SELF_TEST_FILE, record.self_test)
    for key, value in sorted(tags.items()):
        if key.startswith(SCORES_TAG):
            sha256, _, made = value.partition(" ")
            signed = (f"scores of {record.sha256}", made)
            yield _File("scores", key.removeprefix(SCORES_TAG), SHEET_FILE, sha256, signed)
        elif key.startswith(ATTACHED_TAG):
            kind = key.removeprefix(ATTACHED_TAG)
            model_id, sha256, *rest = value.split()
            yield _File(kind, model_id, kind, sha256, (f"{kind} of {record.sha256}", "".join(rest)))


def _check(zoo: "Zoo", file: _File) -> Check:
    signature = "" if file.signed is None else _signature(file)
    try:
        content = zoo.read_anew(file.model_id, file.path)
    except (Corrupt, NotAllowed) as error:
        return Check(file.what, file.sha256, is_whole=False, signature=signature, told=error.what)
    found = sha256_of(content)
    told = "" if found == file.sha256 else f"the store holds other bytes: SHA-256 {found[:12]}..."
    if not told and signature != "trusted" and signature and _asks_for_signatures():
        told = "nobody who is trusted here signed it"
    return Check(
        file.what, file.sha256, is_whole=found == file.sha256, signature=signature, told=told
    )


def _signature(file: _File) -> str:
    of, made = file.signed or ("", "")
    if not made:
        return "unsigned"
    return "trusted" if trust.is_vouched_for(of, file.sha256, made) else "untrusted"


def _asks_for_signatures() -> bool:
    return bool(settings().trusted_keys)
