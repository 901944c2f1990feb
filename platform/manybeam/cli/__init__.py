"""The command line `manybeam`: one module a noun, heavy imports inside the commands."""

from manybeam.cli.app import main

__all__ = ["main"]
