"""Backups of a server, made while it works, and their restoring into an empty home.

    DIR/manifest.json      every file's size and SHA-256, sealed with its own; written last, so it means "complete"
    DIR/server.json  ca/  tls/  keys/  fedplat.db  runs/ID/checkpoints/

The database in a backup is always an SQLite file: it is whole without tools, and fits PostgreSQL as well.
"""

from __future__ import annotations

from fedplat_server.backup.files import BackupError, Manifest, read_backup
from fedplat_server.backup.make import BackupReport, backup_server
from fedplat_server.backup.restore import RestoreReport, restore_server

__all__ = [
    "BackupError",
    "BackupReport",
    "Manifest",
    "RestoreReport",
    "backup_server",
    "read_backup",
    "restore_server",
]
