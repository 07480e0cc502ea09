"""The tables of the ledger and of budgets: the step that makes them, and how queries see them."""

from typing import Final

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text

from llm_effects.stores.sql_migrations import Migration

# Money is decimal text, exact in every database. Times are ISO 8601 of one width, in UTC: they sort as texts, and so
# the key of the ledger grows at its end only.
LEDGER_STEP: Final = Migration(
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

_ALL: Final = MetaData()

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
)
"""Its columns in the order in which they are read."""

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
