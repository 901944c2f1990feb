"""`manybeam backup | restore`: copy everything that must not be lost, and put it back."""

from pathlib import Path
from typing import Annotated

import typer

from manybeam.cli.terminal.output import Form, FormOption, emit, say
from manybeam.cli.terminal.progress import Progress

ZooDatabaseOption = Annotated[
    str,
    typer.Option(help="URL of the PostgreSQL of an MLflow server, if it is not that of Manybeam."),
]


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder, or a new file ending in .tar.")],
    *,
    arrays: Annotated[
        bool, typer.Option("--arrays/--no-arrays", help="Copy frames, or only their records.")
    ] = True,
    zoo_database: ZooDatabaseOption = "",
    form: FormOption = Form.auto,
) -> None:
    """Copy database, zoo, FrameSets, keys and admin token; the platform may run meanwhile.

    Checkpoints of training and FrameSets outside of the store are left out. The backup contains
    keys: keep it where only you can read it.

    Example: manybeam backup /backups/2026-11-29
    """
    with Progress("start the backup"):
        from manybeam.db.deployment import authenticated_name
        from manybeam.zoo.backup import back_up

        who = authenticated_name()
        made = back_up(target, who=who, arrays=arrays, zoo_database=zoo_database, progress=say)
    emit(made.rows(), form, title=f"Backup in {target}")
    say(f"to restore on an empty platform: manybeam restore {target}")


def restore(
    source: Annotated[Path, typer.Argument(help="The folder or file of a backup.")],
    *,
    yes: Annotated[
        bool, typer.Option("--yes", help="Replace the content of database and zoo.")
    ] = False,
    zoo_database: ZooDatabaseOption = "",
    form: FormOption = Form.auto,
) -> None:
    """Check a backup and restore it. Stop the programs of the platform first.

    The exit code is 1 if a file is damaged, and 6 if the platform is not empty; then nothing is
    changed.

    Example: manybeam restore /backups/2026-11-29
    """
    with Progress("check the backup"):
        from manybeam.db.deployment import authenticated_name
        from manybeam.zoo.backup import restore as put_back

        who = authenticated_name()
        done = put_back(source, who=who, replace=yes, zoo_database=zoo_database, progress=say)
    emit(done.manifest.rows(), form, title=f"Restored from {source}")
    if not done.manifest.has_arrays:
        say("the backup holds no frames: put their objects back into the store yourself")
    for path in done.keys:
        say(f"a key is in {path}: MANYBEAM_SIGNING_KEY and MANYBEAM_TRUSTED_KEYS name keys")
