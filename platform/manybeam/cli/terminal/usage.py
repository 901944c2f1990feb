"""Faults of the words of a command line (an unknown option, a value that is no number), as ours."""

import re
from collections.abc import Sequence
from typing import Any

from manybeam.errors import InvalidInput

# Words of pydantic, with which typer checks values -> our words.
_WORDS = (
    (r"Input should be greater than or equal to (\S+)", r"it is too small; give at least \1"),
    (r"Input should be less than or equal to (\S+)", r"it is too large; give at most \1"),
    (r"Input should be a valid integer.*", "it is no whole number"),
    (r"Input should be a valid number.*", "it is no number"),
    (r"Value error, (.*?)\.?$", r"\1"),
)


def usage_fault(error: Any, root: Any, words: Sequence[str]) -> InvalidInput:
    """Return a usage error of typer as one of ours, with the command that shows what is allowed.

    Args:
        error: with `format_message`, as typer raises it.
        root: the command of all commands.
        words: the words of the command line after its name.
    """
    said = str(error.format_message()).removesuffix(".")
    for theirs, ours in _WORDS:
        said = re.sub(theirs, ours, said)
    return InvalidInput(said[:1].lower() + said[1:], "", f"{_command(root, words)} --help")


def _command(root: Any, words: Sequence[str]) -> str:
    """Return the command that was meant; not every error of typer knows it."""
    found, group = ["manybeam"], root
    for word in words:
        if word.startswith("-") and group is root:  # an option of all commands
            continue
        group = getattr(group, "commands", {}).get(word)
        if group is None:
            break
        found.append(word)
    return " ".join(found)
