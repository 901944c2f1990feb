"""Who vouches for a version: its own signature, and the one its original had before an import.

A signature that came with a package is kept as a statement about the original. It never makes the
import trusted: the owner of this zoo signs it, or nobody does.
"""

from collections.abc import Iterator
from typing import Any

from manybeam.zoo.integrity import trust
from manybeam.zoo.integrity.trust import Signature
from manybeam.zoo.records import Record


def signatures(record: Record) -> Iterator[str]:
    """Yield a sentence for each signature of a version and of the one it was imported from."""
    if own := Signature.parse(record.signature):
        what = f"manifest of {record.name}"
        yield f"{record.ref} is signed by the key {_told(own, what, record.sha256)}"
    elif record.job.get("kind") == "import":
        yield f"{record.ref} is not signed: others made it"
    origin = record.job.get("origin")
    if isinstance(origin, dict) and (signature := Signature.parse(str(origin.get("seal", "")))):
        yield _of_original(origin, signature)


def _of_original(origin: dict[str, Any], signature: Signature) -> str:
    name, digest = str(origin.get("ensemble", "")), str(origin.get("digest", ""))
    ref = f"{name}@{origin.get('version', '')}"
    if origin.get("is_signed_with") is not True:
        return (
            f"its package names a signature of the original {ref} by the key {signature.key_id}, "
            "but not one that is shown to be of these weights"
        )
    told = _told(signature, f"manifest of {name}", digest)
    return f"the original {ref}, of these weights, was signed by the key {told}"


def _told(signature: Signature, what: str, digest: str) -> str:
    """Return a key's id and what its signature is worth here."""
    if trust.is_vouched_for(what, digest, str(signature)):
        return f"{signature.key_id}, which is trusted here"
    if signature.key_id in trust.key_ids():
        return f"{signature.key_id}, which is trusted here, but the signature is not that key's"
    return f"{signature.key_id}, which is not trusted here: nobody has checked it"
