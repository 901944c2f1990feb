"""Signatures: who vouches for a version, by Ed25519 keys that need no network.

What is signed is a digest and what it is the digest of. A version's manifest holds the digests of
its members, so one signature vouches for all of them.
"""

import base64
import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from manybeam.errors import Conflict, InvalidSetting, NotAllowed, WriteFailed
from manybeam.settings import settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PRIVATE_FILE = "manybeam-signing.pem"
PUBLIC_FILE = "manybeam-signing.pub"


@dataclass(frozen=True)
class Signature:
    """A signature as it is kept: the id of the key and what it made of the digest.

    Example:
        >>> str(Seal.parse("1a2b3c4d5e6f7081:c2ln"))
        '1a2b3c4d5e6f7081:c2ln'
    """

    key_id: str
    signature: str

    @classmethod
    def parse(cls, text: str) -> "Signature | None":
        """Read what `str` of one gave; None of anything else."""
        key_id, colon, signature = text.partition(":")
        return cls(key_id, signature) if colon and key_id and signature else None

    def __str__(self) -> str:
        return f"{self.key_id}:{self.signature}"


def sign(what: str, digest: str) -> str:
    """Return a seal of a digest by the key in the settings; "" if there is none.

    Args:
        what: what the digest is of, as `manifest of graphene`: a seal of one thing is none of
            another.
        digest: SHA-256 of its bytes.

    Raises:
        InvalidSetting: the key cannot be read.
    """
    if not settings().signing_key:
        return ""
    path = Path(settings().signing_key)
    key = _private(path, _stamp(path))
    signature = base64.b64encode(key.sign(_message(what, digest))).decode()
    return str(Signature(_key_id(key.public_key()), signature))


def check(what: str, digest: str, signature: str) -> None:
    """Refuse a digest nobody we trust has signed, if the settings name whom we trust.

    Raises:
        NotAllowed: it is not signed, or not by one of those keys, or the seal is of other bytes.
        InvalidSetting: a key cannot be read.
    """
    folder = settings().trusted_keys
    if not may_count(what, digest, signature):
        found = Signature.parse(signature)
        by = f"it is signed by the key {found.key_id}" if found else "it is not signed"
        raise NotAllowed(
            f"nobody who is trusted here vouches for the {what}",
            f"{by}; trusted: {', '.join(_trusted()) or 'no key at all'}",
            f"sign it with a key whose public half lies in {folder}: manybeam zoo sign",
        )


def may_count(what: str, digest: str, signature: str) -> bool:
    """Tell whether a digest may be used: a trusted key signed it, or the settings name none."""
    return not settings().trusted_keys or is_vouched_for(what, digest, signature)


def key_ids() -> tuple[str, ...]:
    """Return the ids of the keys that are trusted here."""
    return tuple(sorted(_trusted()))


def is_vouched_for(what: str, digest: str, signature: str) -> bool:
    """Tell whether a seal is a trusted key's, and of this digest."""
    from cryptography.exceptions import InvalidSignature

    found = Signature.parse(signature)
    key = _trusted().get(found.key_id) if found else None
    if found is None or key is None:
        return False
    try:
        key.verify(base64.b64decode(found.signature, validate=True), _message(what, digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new pair of keys into a folder and return where: the private one, for its owner only.

    Raises:
        Conflict: there is one already; it is not overwritten.
        WriteFailed: the folder cannot be made or written to; nothing is left in it.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = folder / PRIVATE_FILE, folder / PUBLIC_FILE
    key, plain = Ed25519PrivateKey.generate(), form.NoEncryption()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, plain)
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(folder, error) from error
    _create(private, secret, 0o600)
    try:
        _create(public, shown, 0o644)
    except BaseException:
        private.unlink()
        raise
    return private, public


def _create(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise Conflict(
            f"{path} is there already",
            "what was signed with its pair would be refused with another key in its place",
            "name another folder",
        ) from error
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        path.unlink()
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> WriteFailed:
    return WriteFailed(
        f"{path} cannot be written: {error.strerror or error}",
        "no key was made",
        "name a folder that you may write to",
    )


def _message(what: str, digest: str) -> bytes:
    return f"manybeam 1\n{what}\n{digest}".encode()


def _trusted() -> "dict[str, Ed25519PublicKey]":
    """Return the public keys of the settings by id: a file, or every `*.pub` of a folder."""
    if not settings().trusted_keys:
        return {}
    place = Path(settings().trusted_keys)
    paths = sorted(place.glob("*.pub")) if place.is_dir() else [place]
    keys = [_public(path, _stamp(path)) for path in paths]
    return {_key_id(key): key for key in keys}


def _stamp(path: Path) -> float:
    """Return when a key was written: one that is replaced is read again."""
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise _no_key(path, error) from error


@lru_cache(maxsize=8)
def _private(path: Path, stamp: float) -> "Ed25519PrivateKey":  # noqa: ARG001 - part of the key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(path, error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "it is of another kind")
    return key


@lru_cache(maxsize=64)
def _public(path: Path, stamp: float) -> "Ed25519PublicKey":  # noqa: ARG001 - part of the key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_key(path, error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "it is of another kind")
    return key


def _key_id(key: "Ed25519PublicKey") -> str:
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def _no_key(path: Path, why: object) -> InvalidSetting:
    return InvalidSetting(
        f"{path} is no Ed25519 key: {why}",
        "MANYBEAM_SIGNING_KEY names a private key, MANYBEAM_TRUSTED_KEYS public ones, as PEM",
        "manybeam zoo keygen FOLDER makes a pair",
    )
