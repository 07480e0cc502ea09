"""The tables of conversations as queries see them, by names and types.

What makes them, with keys and all, is in ``sql_schema``.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

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
)
