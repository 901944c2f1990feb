"""The command `manybeam-check`, and `python -m manybeam_client check|watch`."""

from __future__ import annotations

import argparse
import sys
from typing import Sequence

from manybeam_client.checking import Step, check
from manybeam_client.watch import watch_command


def main() -> int:
    """Run a command by its name; return the exit code."""
    words = sys.argv[1:]
    commands = {"check": check_command, "watch": watch_command}
    if not words or words[0] not in commands:
        sys.stderr.write(
            "error: give a command\ntry: python -m manybeam_client check URL\n"
            "     python -m manybeam_client watch FOLDER\n"
        )
        return 2
    return commands[words[0]](words[1:])


def check_command(words: Sequence[str] | None = None) -> int:
    """Run `manybeam-check`; return 0, 2 (wrong use), 3 (unreachable) or 5 (not allowed)."""
    parser = argparse.ArgumentParser(
        prog="manybeam-check",
        description="Tell step by step what is wrong between here and a Manybeam service.",
        epilog="example: manybeam-check https://manybeam.lab --instrument STEM-1",
    )
    parser.add_argument("url", nargs="?", help="of the service; MANYBEAM_URL if left out")
    parser.add_argument("--token", help="MANYBEAM_TOKEN if left out")
    parser.add_argument("--ca", help="file of a private certificate authority; MANYBEAM_CA")
    parser.add_argument("--instrument", default="", help="id, to look at its session and stream")
    parser.add_argument("--ensemble", default="auto", help="REF that answers a frame")
    known = parser.parse_args(words)
    report = check(
        known.url, known.token, known.ca, known.instrument, known.ensemble, when_done=_show
    )
    if report:
        _show("frames can be sent")
    return report.exit_code


def _show(step: Step | str) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
