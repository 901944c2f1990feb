"""The root of the command line: the list of commands, and the output of errors.

Data go to stdout, messages to stderr. An error is three lines (what, why, what to try) and an exit
code from `errors.exit_code`. A traceback is printed only with `--debug`.
"""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    serve,
    watch,
    web,
)
from manybeam.cli.demo import command as demo
from manybeam.cli.terminal.output import first_sign, say
from manybeam.cli.terminal.usage import usage_fault
from manybeam.cli.zoo import listing as zoo
from manybeam.errors import ManybeamError, exit_code

# typer carries click within itself and exports only this leaf of its usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]

INTERRUPTED = 130
_SIGNALLED = 128  # plus the number of the signal that ended a command

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
    """Hold the options before a command."""
    del version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words after `manybeam`; if left out, those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # It logs faults of a damaged file; our error reports them once, with a remedy.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    first_sign.begin()
    with _ended_cleanly():
        return _run(words, debug=debug)


def _run(words: list[str], *, debug: bool) -> int:
    """Run one command and return its exit code; every error becomes three lines."""
    try:
        code = app([word for word in words if word != "--debug"], standalone_mode=False)
        # typer translates Ctrl-C into this code.
        return _interrupted() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except _UsageError as error:
        _print_error(usage_fault(error))
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - the outermost call: every error becomes three lines
        if debug:
            traceback.print_exc()
        _print_error(error)
        return exit_code(error)
    finally:
        first_sign.end()


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does: drafts are removed."""

    def end(number: int, _: object) -> None:
        say(f"ended by {signal.Signals(number).name}; {_AGAIN}")
        raise SystemExit(_SIGNALLED + number)

    changed = []
    if threading.current_thread() is threading.main_thread():  # others cannot
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
                signal.signal(number, end)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


_AGAIN = (
    "run the same command again; training, calibration and adaptation continue with their "
    "finished work"
)


def _interrupted() -> int:
    say(f"interrupted; {_AGAIN}")
    return INTERRUPTED


def _print_error(error: Exception) -> None:
    """Print what, why and what to try; each of several reasons is on a line of its own."""
    if isinstance(error, ManybeamError):
        what, why, hint = error.what, error.why, error.hint
    else:
        what = f"{type(error).__name__}: {error}"
        why = "Manybeam did not foresee this error"
        hint = "run the same command with --debug and report the traceback"
    say(f"error: {what}")
    if why:
        say(f"why: {why}", indent="     ")
    if hint:
        typer.echo(f"try: {hint}", err=True)  # never broken: it may be a command to copy
