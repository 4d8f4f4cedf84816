"""Brings a database to this version's tables, or refuses it."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from fedplat.errors import StoreError

# Alembic keeps the connection that it works on in a global: two threads on two databases would mix them up.
_one_at_a_time = Lock()


def migrate(connection: Connection, database: str, target: str = "head") -> None:
    """Bring the tables to `target`, inside the caller's write transaction: all of it happens or nothing.

    A blank database gets every table. One of a newer fedplat, or with tables of another program, raises
    StoreError and stays as it is. `database` is its name for people.
    """
    config = _config()
    config.attributes["connection"] = connection
    _refuse_strangers(connection, database, ScriptDirectory.from_config(config))
    with _one_at_a_time:
        command.upgrade(config, target)


def check_version(connection: Connection, database: str) -> None:
    """Raises StoreError unless the tables are this version's."""
    script = ScriptDirectory.from_config(_config())
    _refuse_strangers(connection, database, script)
    if MigrationContext.configure(connection).get_current_revision() != script.get_current_head():
        raise StoreError(
            f"the database {database} is empty, or of an older fedplat",
            hint="Start this version's server once, which brings it up to date; or use the version that wrote it.",
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _refuse_strangers(connection: Connection, database: str, script: ScriptDirectory) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    if not found and inspect(connection).get_table_names():
        raise StoreError(
            f"the database {database} holds tables that are not fedplat's",
            hint="Give fedplat a database of its own.",
        )
    if not found <= known:
        raise StoreError(
            f"the database {database} is of another version ({', '.join(sorted(found - known))}), "
            "most likely written by a newer fedplat",
            hint="Start the version of fedplat that wrote it, or a newer one.",
        )
