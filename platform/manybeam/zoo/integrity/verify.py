"""Verification of a version: all its files are read from the store and checked."""

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
    SHA256_TAG,
    SIGNATURE_TAG,
    WEIGHTS_FILE,
)
from manybeam.zoo.score_reports import REPORT_FILE
from manybeam.zoo.tracking import MANIFEST_TAG

if TYPE_CHECKING:
    from manybeam.zoo.registry import Zoo


@dataclass(frozen=True)
class Check:
    """The check of one file of a version in the store.

    Attributes:
        what: name of the file.
        sha256: recorded digest.
        is_whole: whether the store holds exactly these bytes.
        signature: `trusted`, `unsigned` or `untrusted`; "" for a file covered by the manifest.
        problem: what is wrong; "" if nothing is.
    """

    what: str
    sha256: str
    is_whole: bool
    signature: str = ""
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the file may be used: unchanged, and signed if the settings require it."""
        return self.is_whole and self.signature in (
            ("", "trusted") if _asks_for_signatures() else _STATES
        )


_STATES = ("", "trusted", "unsigned", "untrusted")


@dataclass(frozen=True)
class _StoredFile:
    what: str
    model_id: str
    path: str
    sha256: str
    signed: tuple[str, str] | None = None  # description of the signed document, and signature


def verify(zoo: "Zoo", ref: str) -> list[Check]:
    """Return a check of each file of a version; the cache of this machine is not used.

    Raises:
        UnknownRef: there is no such version.
        Corrupt: the manifest cannot be read, so its members are unknown.
        ZooUnreachable: the store does not answer.
    """
    return [_check(zoo, file) for file in _files(zoo, ref)]


def _files(zoo: "Zoo", ref: str) -> Iterator[_StoredFile]:
    entry, record = zoo.entry(ref), zoo.resolve(ref)
    tags = entry.tags
    signature = (f"manifest of {record.name}", tags.get(SIGNATURE_TAG, ""))
    place, sha256 = entry.tag(MANIFEST_TAG), entry.tag(SHA256_TAG)
    yield _StoredFile("manifest", place, MANIFEST_FILE, sha256, signature)
    for member in record.members:
        who, place = f"member {member.index:02d}", member.model_id
        yield _StoredFile(f"weights of {who}", place, WEIGHTS_FILE, member.sha256)
        yield _StoredFile(f"recipe of {who}", place, CARD_FILE, member.card_sha256)
    if record.self_test:
        yield _StoredFile("self-test", record.model_id, SELF_TEST_FILE, record.self_test)
    for key, value in sorted(tags.items()):
        if key.startswith(SCORES_TAG):
            sha256, _, made = value.partition(" ")
            signed = (f"scores of {record.sha256}", made)
            yield _StoredFile("scores", key.removeprefix(SCORES_TAG), REPORT_FILE, sha256, signed)
        elif key.startswith(ATTACHED_TAG):
            kind = key.removeprefix(ATTACHED_TAG)
            model_id, _, made = value.partition(" ")
            sha256, _, made = made.partition(" ")
            yield _StoredFile(kind, model_id, kind, sha256, (f"{kind} of {record.sha256}", made))


def _check(zoo: "Zoo", file: _StoredFile) -> Check:
    signature = "" if file.signed is None else _signature(file)
    try:
        content = zoo.read_anew(file.model_id, file.path)
    except (Corrupt, NotAllowed) as error:
        return Check(
            file.what, file.sha256, is_whole=False, signature=signature, problem=error.what
        )
    found = sha256_of(content)
    is_whole = found == file.sha256
    problem = "" if is_whole else f"the store holds other bytes: SHA-256 {found[:12]}..."
    if not problem and signature != "trusted" and signature and _asks_for_signatures():
        problem = "no trusted key has signed it"
    return Check(file.what, file.sha256, is_whole=is_whole, signature=signature, problem=problem)


def _signature(file: _StoredFile) -> str:
    of, made = file.signed or ("", "")
    if not made:
        return "unsigned"
    return "trusted" if trust.is_trusted(of, file.sha256, made) else "untrusted"


def _asks_for_signatures() -> bool:
    return bool(settings().trusted_keys)
