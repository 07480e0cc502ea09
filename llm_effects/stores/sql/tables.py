"""The tables of our databases: the migrations that create them, and their columns as queries use them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, final

from attrs import field, frozen
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateSchema

from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.searching import METADATA_INDEX, WORDS_INDEX, has_fts5
from llm_effects.values.errors import ConfigurationError

# Columns, by name and type; keys and constraints are in the migrations.


_ALL: Final = MetaData()

CONVERSATIONS: Final = Table(
    "llm_conversations",
    _ALL,
    Column("key", BigInteger),
    Column("owner", Text),
    Column("id", Text),
    Column("version", BigInteger),
    Column("turns", BigInteger),
    Column("updated_at", Text),
    Column("last_model", Text),
    Column("document", Text),
)

TURNS: Final = Table(
    "llm_turns",
    _ALL,
    Column("conversation", BigInteger),
    Column("number", BigInteger),
    Column("id", Text),
    Column("document", Text),
)

MESSAGES: Final = Table(
    "llm_messages",
    _ALL,
    Column("conversation", BigInteger),
    Column("turn", BigInteger),
    Column("place", BigInteger),
    Column("id", Text),
    Column("pinned", Integer),
    Column("document", Text),
)

SUMMARIES: Final = Table(
    "llm_summaries",
    _ALL,
    Column("conversation", BigInteger),
    Column("upto", BigInteger),
    Column("document", Text),
)

JOURNAL: Final = Table(
    "llm_journal",
    _ALL,
    Column("place", BigInteger),
    Column("owner", Text),
    Column("run", Text),
    Column("key", Text),
    Column("intent", LargeBinary),
    Column("result", LargeBinary),
    Column("at", Text),
)

LEDGER: Final = Table(
    "llm_ledger",
    _ALL,
    Column("at", Text),
    Column("id", Text),
    Column("call_id", Text),
    Column("conversation_id", Text),
    Column("owner", Text),
    Column("task", Text),
    Column("tags", Text),
    Column("served_model", Text),
    Column("model", Text),
    Column("provider", Text),
    Column("outcome", Text),
    Column("latency_ms", Float),
    Column("first_content_ms", Float),
    Column("wait_ms", Float),
    Column("cost_usd", Text),
    Column("input_tokens", BigInteger),
    Column("cache_read_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("estimated", Integer),
    Column("cache_write_1h_tokens", BigInteger),
    Column("service_tier", Text),
    Column("left_machine", Integer),
    Column("cache_saved_usd", Text),
)
"""The columns are in the order in which rows are read."""

USAGE_HOURS: Final = Table(
    "llm_usage_hours",
    _ALL,
    Column("hour", Text),
)

USAGE: Final = Table(
    "llm_usage",
    _ALL,
    Column("detailed", Integer),
    Column("hour", Text),
    Column("part", BigInteger),
    Column("document", LargeBinary),
    Column("hours", BigInteger),
)

USAGE_CALLS: Final = Table(
    "llm_usage_calls",
    _ALL,
    Column("hour", Text),
    Column("call_id", Text),
    Column("place", BigInteger),
    Column("model", Text),
    Column("provider", Text),
    Column("task", Text),
    Column("owner", Text),
    Column("left_machine", Text),
    Column("tags", Text),
)

BUDGETS: Final = Table(
    "llm_budgets",
    _ALL,
    Column("key", Text),
    Column("spent", Text),
    Column("reserved", Text),
)

HOLDS: Final = Table(
    "llm_holds",
    _ALL,
    Column("key", Text),
    Column("id", Text),
    Column("amount", Text),
    Column("expires_at", Text),
)


def timestamp(at: datetime) -> str:
    """Format a time so that it sorts as text.

    >>> timestamp(datetime(2026, 11, 23, tzinfo=UTC))
    '2026-11-23T00:00:00.000000+00:00'
    """
    return at.astimezone(UTC).isoformat(timespec="microseconds")


# Inserts that skip rows whose key is stored already.


def insert_new(connection: Connection, table: Table, row: Mapping[str, object]) -> bool:
    """Insert a row, unless its key is stored; return whether it was inserted."""
    statement = _insert_or_skip(connection, table).values(**row)
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1


def insert_all_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert the rows whose keys are not stored."""
    if rows:
        connection.execute(_insert_or_skip(connection, table), rows)


def _insert_or_skip(connection: Connection, table: Table) -> Insert:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


# Migrations: numbered steps to the newest version.
#
# Each step is a transaction with its own row in ``llm_migrations``, so an interrupted step leaves nothing; of several
# processes at once, one runs it and the others find it done.


LOCK: Final = 0x6C6C6D5F6D696772
"""The advisory lock of Postgres that a migration holds."""

_SQLITE_NOW: Final = "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')"
_POSTGRES_NOW: Final = "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')"

WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "sqlite": {
        "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "bytes": "BLOB",
        "id": "TEXT",
        "clustered": "WITHOUT ROWID",  # the rows are in the primary key itself
        "c": "",
        "now": _SQLITE_NOW,
    },
    "postgresql": {
        "serial": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
        "bytes": "BYTEA",
        "id": 'TEXT COLLATE "C"',  # the same order everywhere, whatever the server's locale
        "clustered": "",
        "c": 'COLLATE "C"',
        "now": _POSTGRES_NOW,
    },
}
"""The types and functions that databases name differently; a statement has them in braces."""


@final
@frozen
class Migration:
    """A step: its purpose, its statements, and those of one database after them. A released step never changes."""

    name: str
    statements: tuple[str, ...]
    only: Mapping[str, tuple[str, ...]] = field(factory=dict[str, tuple[str, ...]])

    def statements_for(self, database: str) -> tuple[str, ...]:
        """Return the statements for ``sqlite`` or ``postgresql``, with its names of types."""
        common = tuple(statement.format_map(WORDS[database]) for statement in self.statements)
        return (*common, *self.only.get(database, ()))


CREATE_MIGRATIONS: Final = """CREATE TABLE IF NOT EXISTS llm_migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, made_at TEXT NOT NULL
)"""

_NEWER: Final = "was written by a newer version and is not touched: use that version, or another database"
_UNKNOWN: Final = "has migrations that this version does not know, and is not touched"


def version_of(reading: Engine, migrations: tuple[Migration, ...]) -> int:
    """Return the version of the tables, 0 for none; a database of a newer one, or of another program, is refused."""
    with reading.begin() as connection:
        return _applied(connection, migrations)


def migrate(reading: Engine, writing: Engine, migrations: tuple[Migration, ...]) -> None:
    """Bring the tables to the newest version; a database of a newer one is refused and not written."""
    applied = version_of(reading, migrations)
    while applied < len(migrations):
        with writing.begin() as connection:
            applied = _apply_next(connection, migrations)


def _apply_next(connection: Connection, migrations: tuple[Migration, ...]) -> int:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        _create_schema(connection, connection.get_execution_options().get("schema"))
    connection.execute(text(CREATE_MIGRATIONS))
    applied = _applied(connection, migrations)  # another process may have been faster
    if applied == len(migrations):
        return applied
    if migrations[applied] != _WORDS or has_fts5(connection):
        for statement in migrations[applied].statements_for(connection.dialect.name):
            connection.execute(text(statement))
    entry = {"number": applied + 1, "name": migrations[applied].name, "at": datetime.now(UTC).isoformat()}
    connection.execute(text("INSERT INTO llm_migrations VALUES (:number, :name, :at)"), entry)
    return applied + 1


def _create_schema(connection: Connection, schema: str | None) -> None:
    """Create a schema that is missing; using one that is there needs no right to create one."""
    known = text("SELECT to_regnamespace(:name)")
    if schema is not None and connection.execute(known, {"name": schema}).scalar() is None:
        connection.execute(CreateSchema(schema))


def _applied(connection: Connection, migrations: tuple[Migration, ...]) -> int:
    if not inspect(connection).has_table("llm_migrations"):
        return 0
    rows = connection.execute(text("SELECT number, name FROM llm_migrations ORDER BY number")).all()
    if len(rows) > len(migrations):
        raise Refused(ConfigurationError(message=f"storage.url: the database {_NEWER}"))
    known = [(number, each.name) for number, each in enumerate(migrations[: len(rows)], 1)]
    if [tuple(row) for row in rows] != known:
        raise Refused(ConfigurationError(message=f"storage.url: the database {_UNKNOWN}"))
    return len(rows)


# The index of pinned messages has ``pinned`` among its columns too: SQLite prefers the index with the most matching
# columns. The owner '' stands for ``None``. Only what changes or what queries filter by has a column; the rest is in
# the JSON of ``document``.
_CONVERSATIONS: Final = Migration(
    "conversations",
    (
        """CREATE TABLE llm_conversations (
            key {serial},
            owner {id} NOT NULL,
            id {id} NOT NULL,
            version BIGINT NOT NULL,
            turns BIGINT NOT NULL,
            updated_at TEXT NOT NULL,
            last_model TEXT,
            document TEXT NOT NULL,
            UNIQUE (owner, id)
        )""",
        """CREATE TABLE llm_turns (
            conversation BIGINT NOT NULL REFERENCES llm_conversations (key) ON DELETE CASCADE,
            number BIGINT NOT NULL,
            id {id} NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (conversation, number),
            UNIQUE (conversation, id)
        )""",
        """CREATE TABLE llm_messages (
            conversation BIGINT NOT NULL REFERENCES llm_conversations (key) ON DELETE CASCADE,
            turn BIGINT NOT NULL,
            place BIGINT NOT NULL,
            id {id} NOT NULL,
            pinned INTEGER NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (conversation, turn, place),
            UNIQUE (conversation, id)
        )""",
        "CREATE INDEX llm_messages_pinned ON llm_messages (conversation, pinned, turn, place) WHERE pinned = 1",
        """CREATE TABLE llm_summaries (
            conversation BIGINT NOT NULL REFERENCES llm_conversations (key) ON DELETE CASCADE,
            upto BIGINT NOT NULL,
            document TEXT NOT NULL,
            PRIMARY KEY (conversation, upto)
        )""",
        """CREATE TABLE llm_journal (
            place {serial},
            owner {id} NOT NULL,
            run {id} NOT NULL,
            key {id} NOT NULL,
            intent {bytes} NOT NULL,
            result {bytes},
            UNIQUE (owner, run, key)
        )""",
    ),
)

# Money is decimal text, exact in every database. Times are ISO 8601 of one width, in UTC: they sort as text, so the
# index of the ledger grows only at its end.
_LEDGER: Final = Migration(
    "ledger",
    (
        """CREATE TABLE llm_ledger (
            at {id} NOT NULL,
            id {id} NOT NULL,
            call_id TEXT NOT NULL,
            conversation_id TEXT,
            owner TEXT,
            task TEXT NOT NULL,
            tags TEXT NOT NULL,
            served_model TEXT,
            model TEXT NOT NULL,
            provider TEXT NOT NULL,
            outcome TEXT NOT NULL,
            latency_ms DOUBLE PRECISION NOT NULL,
            first_content_ms DOUBLE PRECISION,
            wait_ms DOUBLE PRECISION NOT NULL,
            cost_usd TEXT,
            input_tokens BIGINT,
            cache_read_tokens BIGINT NOT NULL,
            cache_write_tokens BIGINT NOT NULL,
            output_tokens BIGINT,
            reasoning_tokens BIGINT NOT NULL,
            estimated INTEGER NOT NULL,
            PRIMARY KEY (at, id)
        )""",
        """CREATE TABLE llm_budgets (
            key {id} PRIMARY KEY,
            spent TEXT NOT NULL,
            reserved TEXT NOT NULL
        )""",
        """CREATE TABLE llm_holds (
            key {id} NOT NULL REFERENCES llm_budgets (key) ON DELETE CASCADE,
            id {id} NOT NULL,
            amount TEXT NOT NULL,
            expires_at {id} NOT NULL,
            PRIMARY KEY (key, id)
        )""",
        "CREATE INDEX llm_holds_by_expiry ON llm_holds (key, expires_at)",
    ),
)

_PROMPT_CACHING: Final = Migration(
    "prompt caching",
    (
        "ALTER TABLE llm_ledger ADD COLUMN cache_write_1h_tokens BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE llm_ledger ADD COLUMN service_tier TEXT",
    ),
)

_LEFT_MACHINE: Final = Migration("left machine", ("ALTER TABLE llm_ledger ADD COLUMN left_machine INTEGER",))

# Usage by hour, summed up from whole hours of the ledger, and deleted with them in mind: it can always be made again.
# An hour counts only while it is in ``llm_usage_hours``. Triggers take it out when its rows change, by whichever
# program, and also when a call of it gets a row in another hour; on Postgres, a lock on the hour makes the transaction
# that sums it up see that change, or the change see the sum.
#
# Calls with rows in several hours or groups are in ``llm_usage_calls``, so that each is counted once in every group.
USAGE_LOCK: Final = 0x6C6C7573
"""The first half of the advisory locks of Postgres on hours, and on the sums of a schema."""


def lock_usage(connection: Connection, *, wait: bool = True) -> bool:
    """Make other processes wait that sum up, or erase what is summed up, until this transaction ends.

    Return whether this one is the first, which one that may ``wait`` always is. A file has one writer anyway.
    """
    if connection.dialect.name != "postgresql":
        return True
    lock = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
    locked = connection.execute(text(f"SELECT {lock}({USAGE_LOCK}, hashtext(current_schema()))")).scalar()
    return locked is not False


UNSAVED: Final = (
    "cache_saved_usd IS NULL AND cost_usd IS NOT NULL AND (cache_read_tokens > 0 OR cache_write_tokens > 0)"
)
"""The rows of the ledger that do not say what a prompt cache saved of their cost."""

_GROUPED: Final = """model TEXT NOT NULL,
            provider TEXT NOT NULL,
            task TEXT NOT NULL,
            owner TEXT NOT NULL,
            left_machine TEXT NOT NULL,
            tags TEXT NOT NULL"""

_CHANGED_HOURS: Final = f"""CREATE FUNCTION llm_usage_changed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    DECLARE changed text;
    BEGIN
        FOR changed IN
            SELECT substr(at, 1, 13) FROM changed_rows
            UNION SELECT substr(at, 1, 13) FROM llm_ledger WHERE call_id IN (SELECT call_id FROM changed_rows)
            ORDER BY 1
        LOOP
            PERFORM pg_advisory_xact_lock_shared({USAGE_LOCK}, hashtext(changed));
            DELETE FROM llm_usage_hours WHERE hour = changed;
        END LOOP;
        RETURN NULL;
    END $$"""  # noqa: S608 - our own names

_USAGE: Final = Migration(
    "usage by hour",
    (
        "ALTER TABLE llm_ledger ADD COLUMN cache_saved_usd TEXT",
        "CREATE INDEX llm_ledger_by_call ON llm_ledger (call_id)",
        f"CREATE INDEX llm_ledger_unsaved ON llm_ledger (at) WHERE {UNSAVED}",
        "CREATE TABLE llm_usage_hours (hour {id} PRIMARY KEY) {clustered}",
        """CREATE TABLE llm_usage (
            detailed INTEGER NOT NULL,
            hour {id} NOT NULL,
            part BIGINT NOT NULL,
            document {bytes} NOT NULL,
            PRIMARY KEY (detailed, hour, part)
        )""",
        f"""CREATE TABLE llm_usage_calls (
            hour {{id}} NOT NULL,
            call_id {{id}} NOT NULL,
            place BIGINT NOT NULL,
            {_GROUPED},
            PRIMARY KEY (hour, call_id, place)
        ) {{clustered}}""",
    ),
    only={
        "sqlite": (
            """CREATE TRIGGER llm_ledger_insert AFTER INSERT ON llm_ledger BEGIN
                DELETE FROM llm_usage_hours WHERE hour IN (
                    SELECT substr(at, 1, 13) FROM llm_ledger WHERE call_id = new.call_id
                );
            END""",
            """CREATE TRIGGER llm_ledger_update AFTER UPDATE ON llm_ledger BEGIN
                DELETE FROM llm_usage_hours WHERE hour IN (
                    SELECT substr(old.at, 1, 13)
                    UNION SELECT substr(at, 1, 13) FROM llm_ledger WHERE call_id IN (old.call_id, new.call_id)
                );
            END""",
            """CREATE TRIGGER llm_ledger_delete AFTER DELETE ON llm_ledger BEGIN
                DELETE FROM llm_usage_hours WHERE hour IN (
                    SELECT substr(old.at, 1, 13)
                    UNION SELECT substr(at, 1, 13) FROM llm_ledger WHERE call_id = old.call_id
                );
            END""",
        ),
        "postgresql": (
            _CHANGED_HOURS,
            *(
                f"CREATE TRIGGER llm_ledger_{name} AFTER {event} ON llm_ledger REFERENCING {rows} TABLE AS changed_rows"
                " FOR EACH STATEMENT EXECUTE FUNCTION llm_usage_changed()"
                for name, event, rows in (
                    ("insert", "INSERT", "NEW"),
                    ("delete", "DELETE", "OLD"),
                    ("update_old", "UPDATE", "OLD"),
                    ("update_new", "UPDATE", "NEW"),
                )
            ),
        ),
    },
)

# Journals written before this step count as written at it. The time of a conversation was written in the zone of its
# caller before, which was UTC unless it was imported.
_AGES: Final = Migration(
    "ages",
    (
        "ALTER TABLE llm_journal ADD COLUMN at {id}",
        "UPDATE llm_journal SET at = {now}",
        "CREATE INDEX llm_journal_by_age ON llm_journal (at)",
        "CREATE INDEX llm_conversations_by_age ON llm_conversations (updated_at {c})",
    ),
)

_WORDS: Final = Migration("words", (), only=WORDS_INDEX)

# Documents of days, and of ten days of a month, are beside those of hours, by the beginning that the texts of their
# hours share, and with the number of these hours: they count only while as many are in ``llm_usage_hours``. An hour
# that is summed up anew could make the number right again, so a trigger drops them.
_USAGE_OF_SPANS: Final = Migration(
    "usage by day, and metadata",
    (
        "ALTER TABLE llm_usage ADD COLUMN hours BIGINT",
        "CREATE INDEX llm_usage_by_hour ON llm_usage (hour)",
        "CREATE INDEX llm_usage_of_spans ON llm_usage (detailed, hour, hours) WHERE hours IS NOT NULL",
    ),
    only={
        "sqlite": (
            """CREATE TRIGGER llm_usage_hours_insert AFTER INSERT ON llm_usage_hours BEGIN
                DELETE FROM llm_usage WHERE hour IN (substr(new.hour, 1, 10), substr(new.hour, 1, 9));
            END""",
            *METADATA_INDEX,
        ),
        "postgresql": (
            """CREATE FUNCTION llm_usage_summed() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    BEGIN
        DELETE FROM llm_usage WHERE hour IN (substr(new.hour, 1, 10), substr(new.hour, 1, 9));
        RETURN NULL;
    END $$""",
            """CREATE TRIGGER llm_usage_hours_insert AFTER INSERT ON llm_usage_hours
                FOR EACH ROW EXECUTE FUNCTION llm_usage_summed()""",
        ),
    },
)

MIGRATIONS: Final[tuple[Migration, ...]] = (
    _CONVERSATIONS,
    _LEDGER,
    _PROMPT_CACHING,
    _LEFT_MACHINE,
    _USAGE,
    _AGES,
    _WORDS,
    _USAGE_OF_SPANS,
)
"""All steps in order, numbered from 1. Add a step at the end; never change one."""
