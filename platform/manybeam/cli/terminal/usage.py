"""Faults of the words of a command line (an unknown option, a value that is no number), as ours."""

import re
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


def usage_fault(error: Any) -> InvalidInput:
    """Return a usage error of typer as one of ours, with the command that shows what is allowed.

    Args:
        error: with `format_message` and `ctx`, as typer raises it.
    """
    said = str(error.format_message()).removesuffix(".")
    for theirs, ours in _WORDS:
        said = re.sub(theirs, ours, said)
    context = getattr(error, "ctx", None)
    command = re.sub(r"^python -m ", "", context.command_path) if context else "manybeam"
    return InvalidInput(said[:1].lower() + said[1:], "", f"{command} --help")
