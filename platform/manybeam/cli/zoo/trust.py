"""`manybeam zoo test | verify | sign | keygen | lineage`: whether a version is what it says."""

from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.errors import Corrupt, NotAllowed

RefArgument = Annotated[
    str, typer.Argument(help="name, name@serving, name@candidate, name@3 or name@3/07.")
]


def self_test(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Load every member and see whether it answers as it did when it was registered.

    Exit 1 if one does not.

    Example: manybeam zoo test graphene@serving
    """
    from manybeam.zoo.integrity.selftest import TOLERANCE
    from manybeam.zoo.registry import Zoo

    results = Zoo().test(ref)
    rows = [
        {
            "member": f"{one.member:02d}",
            "reproduces": one.reproduces,
            "difference": one.difference,
            "tolerance": TOLERANCE,
        }
        for one in results
    ]
    emit(rows, form, title=f"Self-test of {ref}")
    failed = [f"{one.member:02d}" for one in results if not one.reproduces]
    if failed:
        raise Corrupt(
            f"{ref} does not answer as it did: member {', '.join(failed)}",
            "its weights, or the torch that runs them, are not those it was registered with",
            f"manybeam zoo verify {ref} tells whether the weights are",
        )
    say(f"{len(results)} members answer as they did")


def verify(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Read every file of a version from the store and check its digest and its signature.

    Exit 1 if one is damaged, 5 if one is not signed by a key in MANYBEAM_TRUSTED_KEYS.

    Example: manybeam zoo verify graphene@serving
    """
    from manybeam.zoo.integrity.verify import verify as checked
    from manybeam.zoo.registry import Zoo

    checks = checked(Zoo(), ref)
    rows = [
        {
            "file": one.what,
            "passed": one.passed,
            "seal": one.signature or "by the manifest",
            "sha256": one.sha256[:12],
            "told": one.told,
        }
        for one in checks
    ]
    emit(rows, form, title=f"Files of {ref}")
    bad = [one for one in checks if not one.passed]
    if bad:
        kind = NotAllowed if all(one.is_whole for one in bad) else Corrupt
        raise kind(
            f"{ref} is not what was registered: {', '.join(one.what for one in bad)}",
            "; ".join(dict.fromkeys(one.told for one in bad)),
            "restore the store from its backup, or sign what you vouch for: manybeam zoo sign",
        )
    say(f"{len(checks)} files are those that were registered")


def sign(ref: RefArgument) -> None:
    """Sign a version with the key in MANYBEAM_SIGNING_KEY: manifest, scores and attachments.

    What is registered while that key is set is signed at once; this is for what was
    before, and for what was imported.

    Example: manybeam zoo sign graphene@3
    """
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    record = zoo.sign(zoo.resolve(ref).ref)
    say(f"{record.ref} is signed by the key {record.signature.partition(':')[0]}")


def keygen(
    folder: Annotated[Path, typer.Argument(help="Folder for the two files.")],
) -> None:
    """Make a pair of Ed25519 keys: one signs what is registered, the other checks it.

    Example: manybeam zoo keygen ~/.config/manybeam
    """
    from manybeam.zoo.integrity.trust import make_keys

    private, public = make_keys(folder)
    say(f"private, readable by you alone; it signs:      MANYBEAM_SIGNING_KEY={private}")
    say(f"public, for every machine that loads members:  MANYBEAM_TRUSTED_KEYS={public}")


def lineage(
    what: Annotated[str, typer.Argument(help="A reference, or URL, digest of a FrameSet.")],
    *,
    form: FormOption = Form.auto,
) -> None:
    """Show what a version came from and what came of it; of a FrameSet, who used it.

    A version uses FrameSets that its members were trained on, and that its scores were measured on.

    Example: manybeam zoo lineage graphene@candidate
    """
    from manybeam.zoo.lineage import lineage as traced
    from manybeam.zoo.lineage import prediction_of, uses_of
    from manybeam.zoo.records import Ref
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    answered = prediction_of(what)
    ref = answered or what
    if Ref.is_one(ref):
        rows = traced(zoo, ref).rows()
        if answered:
            rows.insert(0, {"what": "prediction", "which": what, "told": f"answered by {ref}"})
    else:
        rows = [
            {"what": "version", "which": one, "told": f"{how} these frames"}
            for one, how in uses_of(zoo, what)
        ]
    emit(rows, form, title=f"Lineage of {what}")
