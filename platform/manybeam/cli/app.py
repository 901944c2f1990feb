"""The root of the command line: the list of commands, and the output of errors.

Data go to stdout, messages to stderr. An error is three lines (what, why, what to try) and an exit
code from `errors.exit_code`. A traceback is printed only with `--debug`.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from manybeam import __version__
from manybeam.cli import (
    adapt,
    admin,
    backup,
    calibrate,
    data,
    jobs,
    library,
    predict,
    watch,
    web,
)
from manybeam.cli.demo import command as demo
from manybeam.cli.service import instrument, serve
from manybeam.cli.terminal.output import first_sign, say
from manybeam.cli.terminal.signals import Ended, ended_cleanly
from manybeam.cli.terminal.usage import usage_fault
from manybeam.cli.zoo import listing as zoo
from manybeam.errors import ManybeamError, exit_code

# typer carries click within itself and exports only this leaf of its usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]

INTERRUPTED = 130
CONTINUED = ("train", "calibrate", "iterate", "demo")

app = typer.Typer(
    name="manybeam",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train ensembles of networks that find atoms in microscope frames, keep them in one zoo, "
    "and use them with calibrated uncertainty.\n\nExample: manybeam demo",
    epilog="All commands: --debug shows a traceback. Settings: MANYBEAM_* variables.",
)
app.command("demo")(demo.run)
app.command("init")(library.init)
app.command("up")(admin.up)
app.command("down")(admin.down)
app.command("status")(admin.status)
app.command("doctor")(admin.doctor)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.add_typer(library.conditions, name="conditions")
app.add_typer(library.policies, name="policies")
app.add_typer(library.recipes, name="recipes")
app.add_typer(data.app, name="data")
app.command("train")(jobs.train)
app.command("evaluate")(jobs.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("rehearse", hidden=True, help=calibrate.OLD_NAME)(calibrate.calibrate)
app.add_typer(zoo.app, name="zoo")
app.add_typer(serve.app, name="serve")
app.add_typer(instrument.app, name="instrument")
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
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Join a Ray cluster that asks for no token."),
    ] = False,
) -> None:
    """Hold the options before a command."""
    del version
    if insecure:  # also for the processes that the command starts
        os.environ["MANYBEAM_RAY_INSECURE"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words after `manybeam`; if left out, those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # It logs faults of a damaged file; our error reports them once, with a remedy.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # Our products of matrices are small: on a busy machine the threads of BLAS make them many times
    # slower, because each waits for the others. It reads this when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    first_sign.begin()
    with ended_cleanly():
        return _run(words, debug=debug)


def _run(words: list[str], *, debug: bool) -> int:
    """Run one command and return its exit code; every error becomes three lines."""
    try:
        code = app([word for word in words if word != "--debug"], standalone_mode=False)
        # typer translates Ctrl-C into this code.
        if code == INTERRUPTED:
            return _stopped("interrupted", INTERRUPTED, words)
        return code if isinstance(code, int) else 0
    except Ended as ended:
        return _stopped(f"ended by {ended.name}", ended.exit_code, words)
    except typer.Exit as stop:
        return stop.exit_code
    except _UsageError as error:
        _print_error(usage_fault(error, typer.main.get_command(app), words))
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _stopped("interrupted", INTERRUPTED, words)
    except Exception as error:  # noqa: BLE001 - the outermost call: every error becomes three lines
        if debug:
            traceback.print_exc()
        _print_error(error)
        return exit_code(error)
    finally:
        first_sign.end()


def _stopped(how: str, code: int, words: Sequence[str]) -> int:
    """Say how a command was stopped, and return its exit code."""
    is_continued = bool(words) and words[0] in CONTINUED
    rest = "; the same command continues with what is finished" if is_continued else ""
    _print(f"{how}{rest}")
    return code


def _print_error(error: Exception) -> None:
    """Print what, why and what to try; each of several reasons is on a line of its own."""
    if isinstance(error, ManybeamError):
        what, why, hint = error.what, error.why, error.hint
    else:
        what = f"{type(error).__name__}: {error}"
        why = "Manybeam did not foresee this error"
        hint = "run the same command with --debug and report the traceback"
    _print(f"error: {what}")
    if why:
        _print(f"why: {why}", indent="     ")
    if hint:
        _print(f"try: {hint}", is_whole=True)  # it may be a command to copy


def _print(text: str, **more: Any) -> None:
    """Print to stderr, unless its terminal was closed."""
    with suppress(OSError):
        say(text, **more)
