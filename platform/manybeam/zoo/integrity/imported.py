"""Signatures of a version: its signature in this zoo, and the signature of an imported package.

The signature of a package is stored as information about the source version. It does not make the
imported version trusted; only a signature in this zoo does.
"""

from collections.abc import Iterator
from typing import Any

from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.trust import Signature
from manybeam.zoo.records import Record


def signatures(record: Record) -> Iterator[str]:
    """Yield a sentence for each signature of a version and of its source version."""
    if own := Signature.parse(record.signature):
        what = f"manifest of {record.name}"
        yield f"{record.ref} is signed by the key {_key_status(own, what, record.sha256)}"
    elif record.job.get("kind") == "import":
        yield f"{record.ref} is not signed: it was imported"
    origin = record.job.get("origin")
    if isinstance(origin, dict) and (signature := Signature.parse(str(origin.get("seal", "")))):
        yield _of_source(origin, signature)


def _of_source(origin: dict[str, Any], signature: Signature) -> str:
    name, digest = str(origin.get("ensemble", "")), str(origin.get("digest", ""))
    ref = f"{name}@{origin.get('version', '')}"
    if origin.get("is_signed_with") is not True:
        return (
            f"its package has a signature of the source version {ref} by the key "
            f"{signature.key_id}, but this signature does not belong to these weights"
        )
    key = _key_status(signature, f"manifest of {name}", digest)
    return f"the source version {ref}, with the same weights, was signed by the key {key}"


def _key_status(signature: Signature, what: str, digest: str) -> str:
    """Return the id of a key, and whether it is trusted here."""
    if trust.is_trusted(what, digest, str(signature)):
        return f"{signature.key_id}, which is trusted here"
    if signature.key_id in trust.key_ids():
        return f"{signature.key_id}, which is trusted here, but the signature is wrong"
    return f"{signature.key_id}, which is not trusted here: the signature was not checked"
