"""The root of the command line: which nouns there are, and how an error reaches a person.

stdout carries data, stderr talk. An error is three lines (what, why, what to try) and an exit
code from `errors.exit_code`; a traceback only with `--debug`.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from manybeam import __version__
from manybeam.cli import adapt, admin, calibrate, data, jobs, predict, serve, watch, web
from manybeam.cli.demo import command as demo
from manybeam.cli.zoo import listing as zoo
from manybeam.errors import ManybeamError, exit_code

# typer carries click within itself and exports only this leaf of its usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]

INTERRUPTED = 130

app = typer.Typer(
    name="manybeam",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train ensembles of networks for microscopes, keep them in one zoo, serve them with "
    "honest uncertainty.\n\nExample: manybeam demo",
    epilog="Options of every command: --debug shows a traceback. Settings: MANYBEAM_* variables.",
)
app.command("demo")(demo.run)
app.command("up")(admin.up)
app.command("down")(admin.down)
app.command("status")(admin.status)
app.command("doctor")(admin.doctor)
app.add_typer(data.app, name="data")
app.command("train")(jobs.train)
app.command("evaluate")(jobs.evaluate)
app.command("rehearse")(calibrate.rehearse)
app.add_typer(zoo.app, name="zoo")
app.add_typer(serve.app, name="serve")
app.command("predict")(predict.predict)
app.command("select")(predict.select)
app.command("iterate")(adapt.iterate)
app.command("watch")(watch.watch)
app.command("web")(web.web)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if wanted:
        typer.echo(f"manybeam {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    """Hold the options that stand before a noun."""
    del version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what stands after `manybeam`; the process's own when left out.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # It logs what it finds in a damaged file; the error we raise says it once, and with a remedy.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        code = app([word for word in words if word != "--debug"], standalone_mode=False)
        # typer turns Ctrl-C into this code by itself.
        return _interrupted() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except _UsageError as error:
        error.show()
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - the last edge: every error becomes three lines
        if debug:
            traceback.print_exc()
        _tell(error)
        return exit_code(error)


def _interrupted() -> int:
    typer.echo("interrupted: what was finished is kept; run the same command to go on", err=True)
    return INTERRUPTED


def _tell(error: Exception) -> None:
    """Print what, why and what to try, one line each."""
    if isinstance(error, ManybeamError):
        what, why, hint = error.what, error.why, error.hint
    else:
        what = f"{type(error).__name__}: {error}"
        why = "Manybeam did not foresee this"
        hint = "run the same command with --debug and report the traceback"
    typer.echo(f"error: {what}", err=True)
    if why:
        typer.echo(f"why: {why}", err=True)
    if hint:
        typer.echo(f"try: {hint}", err=True)
