"""`manybeam zoo test | verify | sign | keygen | lineage`: check and sign versions."""

from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress
from manybeam.errors import Corrupt, NotAllowed

RefArgument = Annotated[
    str, typer.Argument(help="name, name@serving, name@candidate, name@3 or name@3/07.")
]


def self_test(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Load every member and check that it gives the same answer as at registration.

    The exit code is 1 if a member gives another answer.

    Example: manybeam zoo test graphene@serving
    """
    with Progress(f"test {ref}"):
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
            f"members of {ref} give other answers than at registration: {', '.join(failed)}",
            "the weights, or the version of torch, have changed since",
            f"manybeam zoo verify {ref} checks the weights",
        )
    say(f"{len(results)} members give the same answers as at registration")


def verify(ref: RefArgument, *, form: FormOption = Form.auto) -> None:
    """Read every file of a version from the store and check its digest and its signature.

    The exit code is 1 if a file is damaged, and 5 if a file is not signed by a key in
    MANYBEAM_TRUSTED_KEYS.

    Example: manybeam zoo verify graphene@serving
    """
    with Progress(f"read the files of {ref}"):
        from manybeam.zoo.integrity.verify import verify as checked
        from manybeam.zoo.registry import Zoo

        checks = checked(Zoo(), ref)
    rows = [
        {
            "file": one.what,
            "passed": one.passed,
            "signature": one.signature or "by the manifest",
            "sha256": one.sha256[:12],
            "problem": one.problem,
        }
        for one in checks
    ]
    emit(rows, form, title=f"Files of {ref}")
    bad = [one for one in checks if not one.passed]
    if bad:
        kind = NotAllowed if all(one.is_whole for one in bad) else Corrupt
        raise kind(
            f"{ref} is not what was registered: {', '.join(one.what for one in bad)}",
            "; ".join(dict.fromkeys(one.problem for one in bad)),
            "restore the store from its backup; if only a signature is missing and you trust the "
            f"version, run manybeam zoo sign {ref}",
        )
    say(f"{len(checks)} files are as they were registered")


def sign(ref: RefArgument) -> None:
    """Sign a version with the key in MANYBEAM_SIGNING_KEY: manifest, scores and attachments.

    While that key is set, new versions are signed at registration. Use this command for older
    versions and for imported ones.

    Example: manybeam zoo sign graphene@3
    """
    from manybeam.zoo.lifecycle.noted import SIGNED, note
    from manybeam.zoo.registry import Zoo

    zoo = Zoo()
    record = zoo.sign(zoo.resolve(ref).ref)
    key = record.signature.partition(":")[0]
    note(SIGNED, record.version_ref, key=key)
    say(f"{record.ref} is signed by the key {key}")


def keygen(
    folder: Annotated[Path, typer.Argument(help="Folder for the two files.")],
) -> None:
    """Make a pair of Ed25519 keys: the private key signs versions, the public key checks them.

    Example: manybeam zoo keygen ~/.config/manybeam
    """
    from manybeam.zoo.integrity.trust import make_keys

    private, public = make_keys(folder)
    say(f"private, readable only by you; it signs:       MANYBEAM_SIGNING_KEY={private}")
    say(f"public, for every machine that loads members:  MANYBEAM_TRUSTED_KEYS={public}")


def lineage(
    what: Annotated[str, typer.Argument(help="A reference, or the URL or digest of a FrameSet.")],
    *,
    form: FormOption = Form.auto,
) -> None:
    """Show the origin and the uses of a version; of a FrameSet, the versions that use it.

    A version uses the FrameSets of its training and of its scores.

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
            rows.insert(0, {"what": "prediction", "which": what, "details": f"answered by {ref}"})
    else:
        rows = [
            {"what": "version", "which": one, "details": f"{how} these frames"}
            for one, how in uses_of(zoo, what)
        ]
    empty = f"no version was trained or measured on {what}"
    emit(rows, form, title=f"Lineage of {what}", empty=empty)
