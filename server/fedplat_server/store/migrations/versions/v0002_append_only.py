"""Events can only be appended, with the next number: the database itself refuses everything else."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

# The rule on INSERT also closes SQLite's INSERT OR REPLACE, which deletes without a DELETE trigger.
SQLITE = """
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER events_next BEFORE INSERT ON events
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM events)
BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
"""

POSTGRESQL = """
CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'events is append-only' USING ERRCODE = '23000'; END $$;
CREATE FUNCTION events_next() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM events) THEN
RAISE EXCEPTION 'events is append-only' USING ERRCODE = '23000'; END IF;
RETURN NEW; END $$;
CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events
FOR EACH ROW EXECUTE FUNCTION events_append_only();
CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_append_only();
CREATE TRIGGER events_next BEFORE INSERT ON events
FOR EACH ROW EXECUTE FUNCTION events_next();
"""


def upgrade() -> None:
    statements = SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL
    for statement in statements.strip().split("\nCREATE "):
        op.execute("CREATE " + statement.removeprefix("CREATE "))
