"""Backups: everything that a platform must not lose, in one folder or file.

`manifest` lists the files with their digests, `parts` copies and restores each kind of data,
`making` and `restoring` use them.
"""

from manybeam.zoo.backup.making import back_up
from manybeam.zoo.backup.manifest import BackupManifest
from manybeam.zoo.backup.restoring import restore

__all__ = ["BackupManifest", "back_up", "restore"]
