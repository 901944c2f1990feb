"""The command line `manybeam`: one module for each noun; heavy imports are inside the commands."""

from manybeam.cli.app import main

__all__ = ["main"]
