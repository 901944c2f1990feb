"""Signatures of versions by Ed25519 keys; they need no network.

A signature is of a digest and a description of the signed document. The manifest of a version
contains the digests of its members, so one signature covers all of them.
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
    """A signature as it is stored: the id of the key, and the signature of the digest.

    Example:
        >>> str(Signature.parse("1a2b3c4d5e6f7081:c2ln"))
        '1a2b3c4d5e6f7081:c2ln'
    """

    key_id: str
    signature: str

    @classmethod
    def parse(cls, text: str) -> "Signature | None":
        """Read the text form of a signature; return None for any other text."""
        key_id, colon, signature = text.partition(":")
        return cls(key_id, signature) if colon and key_id and signature else None

    def __str__(self) -> str:
        return f"{self.key_id}:{self.signature}"


def sign(what: str, digest: str) -> str:
    """Return a signature of a digest by the key in the settings; "" if there is no key.

    Args:
        what: description of the signed document, as `manifest of graphene`, so that a signature
            cannot be used for another document.
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
    """Refuse a digest that no trusted key has signed, if the settings name trusted keys.

    Raises:
        NotAllowed: it is not signed by one of those keys, or the signature is of other bytes.
        InvalidSetting: a key cannot be read.
    """
    folder = settings().trusted_keys
    if not may_count(what, digest, signature):
        found = Signature.parse(signature)
        by = f"it is signed by the key {found.key_id}" if found else "it is not signed"
        raise NotAllowed(
            f"no trusted key has signed the {what}",
            f"{by}; trusted keys: {', '.join(_trusted()) or 'none'}",
            f"sign it with manybeam zoo sign, by a key whose public key is in {folder}",
        )


def may_count(what: str, digest: str, signature: str) -> bool:
    """Return whether a digest may be used: a trusted key signed it, or no keys are set."""
    return not settings().trusted_keys or is_trusted(what, digest, signature)


def key_ids() -> tuple[str, ...]:
    """Return the ids of the trusted keys."""
    return tuple(sorted(_trusted()))


def is_trusted(what: str, digest: str, signature: str) -> bool:
    """Return whether a signature is of this digest and by a trusted key."""
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
    """Write a new pair of keys into a folder and return the paths of private and public key.

    Only the owner can read the private key.

    Raises:
        Conflict: there is a key already; it is not overwritten.
        WriteFailed: the folder cannot be created or written to; no file remains in it.
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
    """Write a new file, as a whole or not at all."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise Conflict(
            f"{path} exists already",
            "a key is not overwritten, because its signatures would no longer be accepted",
            "give another folder",
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
        "give a folder that you may write to",
    )


def _message(what: str, digest: str) -> bytes:
    return f"manybeam 1\n{what}\n{digest}".encode()


def _trusted() -> "dict[str, Ed25519PublicKey]":
    """Return the trusted public keys by id, from a file or from all `*.pub` of a folder."""
    if not settings().trusted_keys:
        return {}
    place = Path(settings().trusted_keys)
    paths = sorted(place.glob("*.pub")) if place.is_dir() else [place]
    keys = [_public(path, _stamp(path)) for path in paths]
    return {_key_id(key): key for key in keys}


def _stamp(path: Path) -> float:
    """Return the time of the last change of a key file, so that a new key is read again."""
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
        "MANYBEAM_SIGNING_KEY needs a private key and MANYBEAM_TRUSTED_KEYS public keys, as PEM",
        "manybeam zoo keygen FOLDER makes a pair of keys",
    )
