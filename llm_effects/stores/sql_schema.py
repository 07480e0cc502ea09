"""The tables of our databases, as the steps that make them. Add a step at the end; never change one."""

from typing import Final

from llm_effects.stores.ledger_schema import LEDGER_STEP
from llm_effects.stores.sql_migrations import Migration

# That of pinned messages repeats what it is for among its columns: SQLite takes the index with the most of them.
# The owner '' is nobody: no owner has that name. A conversation's own columns are those that change; all that does not,
# and whatever no query asks for, is in the JSON of its document.
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

MIGRATIONS: Final[tuple[Migration, ...]] = (_CONVERSATIONS, LEDGER_STEP)
"""All steps, in order: the number of each is its place, from 1."""
