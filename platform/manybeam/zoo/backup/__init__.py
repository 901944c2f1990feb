"""Backup: all that a platform must not lose in one folder or file, and back from it.

`manifest` says what is in it and finds what was damaged, `parts` copies each kind of thing out and
in, `making` and `restoring` put them together.
"""

from manybeam.zoo.backup.making import back_up
from manybeam.zoo.backup.manifest import BackupManifest
from manybeam.zoo.backup.restoring import restore

__all__ = ["BackupManifest", "back_up", "restore"]
