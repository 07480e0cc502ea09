"""The index of the words of messages, and on Postgres of metadata, as statements of a migration."""

import string
from collections.abc import Mapping
from typing import Final

# Words of messages: an index of the texts in their documents, which triggers of SQLite and an index of Postgres keep.
# It holds words and places, no texts. A document that is not ours, or is encrypted, has no words.
SEARCHED: Final = 100_000
"""How many characters of a message are searched."""

PUNCTUATION: Final = string.punctuation
"""The characters that end a word, beside white space, in every database."""

_TEXT_OF_SQLITE: Final = f"""(
        SELECT substr(group_concat(json_extract(value, '$.text'), ' '), 1, {SEARCHED})
        FROM json_each(CASE WHEN json_valid(%s) THEN %s ELSE '{{}}' END, '$.message.parts')
        WHERE json_extract(value, '$.type') = 'Text'
    )"""  # noqa: S608 - our own names


def _sqlite_text(document: str) -> str:
    return _TEXT_OF_SQLITE % (document, document)


_ADD_WORDS: Final = f"""INSERT INTO llm_search_rows (conversation, turn, place)
            VALUES (new.conversation, new.turn, new.place);
        INSERT INTO llm_search (rowid, words) SELECT id, {_sqlite_text("new.document")} FROM llm_search_rows
            WHERE conversation = new.conversation AND turn = new.turn AND place = new.place;"""  # noqa: S608
_DROP_WORDS: Final = f"""INSERT INTO llm_search (llm_search, rowid, words)
            SELECT 'delete', id, {_sqlite_text("old.document")} FROM llm_search_rows
            WHERE conversation = old.conversation AND turn = old.turn AND place = old.place;
        DELETE FROM llm_search_rows
            WHERE conversation = old.conversation AND turn = old.turn AND place = old.place;"""  # noqa: S608

_quoted_punctuation: Final = PUNCTUATION.replace("'", "''")


WORDS_INDEX: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": (
        """CREATE TABLE llm_search_rows (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                conversation BIGINT NOT NULL,
                turn BIGINT NOT NULL,
                place BIGINT NOT NULL,
                UNIQUE (conversation, turn, place)
            )""",
        """CREATE VIRTUAL TABLE llm_search USING fts5(
                words, content='', tokenize="unicode61 remove_diacritics 0"
            )""",
        """INSERT INTO llm_search_rows (conversation, turn, place)
                SELECT conversation, turn, place FROM llm_messages""",
        f"""INSERT INTO llm_search (rowid, words)
                SELECT r.id, {_sqlite_text("m.document")} FROM llm_search_rows AS r JOIN llm_messages AS m
                ON m.conversation = r.conversation AND m.turn = r.turn AND m.place = r.place""",  # noqa: S608 - our own names
        f"CREATE TRIGGER llm_messages_insert AFTER INSERT ON llm_messages BEGIN\n        {_ADD_WORDS}\n    END",
        f"CREATE TRIGGER llm_messages_delete AFTER DELETE ON llm_messages BEGIN\n        {_DROP_WORDS}\n    END",
        f"""CREATE TRIGGER llm_messages_update AFTER UPDATE ON llm_messages BEGIN
        {_DROP_WORDS}
        {_ADD_WORDS}
    END""",
    ),
    "postgresql": (
        f"""CREATE FUNCTION llm_words(document text) RETURNS tsvector
                LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
            BEGIN
                RETURN to_tsvector('pg_catalog.simple', translate(left((
                    SELECT string_agg(part->>'text', ' ')
                    FROM jsonb_array_elements(
                        replace(document, '\\u0000', '\\ufffd')::jsonb->'message'->'parts'
                    ) AS part
                    WHERE part->>'type' = 'Text'
                ), {SEARCHED}), '{_quoted_punctuation}', repeat(' ', {len(PUNCTUATION)})));
            EXCEPTION WHEN others THEN RETURN NULL;
            END $$""",  # noqa: S608 - our own names
        """CREATE FUNCTION llm_metadata(document text) RETURNS jsonb
                LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
            BEGIN
                RETURN replace(document, '\\u0000', '\\ufffd')::jsonb->'metadata';
            EXCEPTION WHEN others THEN RETURN NULL;
            END $$""",
        "CREATE INDEX llm_messages_by_word ON llm_messages USING gin (llm_words(document))",
        """CREATE INDEX llm_conversations_by_metadata ON llm_conversations
                USING gin (llm_metadata(document) jsonb_path_ops)""",
    ),
}
"""The statements for each database. They are part of a migration, and never change."""
