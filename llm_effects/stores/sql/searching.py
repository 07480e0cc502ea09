"""Finding conversations by their metadata, and messages by their words: the queries, then the indexes of both."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, TextClause, text

from llm_effects.values.json import dump

_MATCH: dict[str, str] = {
    "sqlite": """FROM llm_search JOIN llm_search_rows AS r ON r.id = llm_search.rowid
        JOIN llm_messages AS m ON m.conversation = r.conversation AND m.turn = r.turn AND m.place = r.place
        JOIN llm_conversations AS c ON c.key = m.conversation
        WHERE llm_search MATCH :words""",
    "postgresql": """FROM llm_messages AS m JOIN llm_conversations AS c ON c.key = m.conversation
        WHERE llm_words(m.document) @@ plainto_tsquery('pg_catalog.simple', :words)""",
}

_SEARCH: dict[str, TextClause] = {
    name: text(
        f"""SELECT c.id, m.conversation, m.turn, m.place, m.document {match} AND c.owner = :owner
        AND (m.conversation, m.turn, m.place) < (:key, :turn, :place)
        ORDER BY m.conversation DESC, m.turn DESC, m.place DESC LIMIT :limit"""
    )
    for name, match in _MATCH.items()
}


def find_messages(
    connection: Connection, owner: str, words: Sequence[str], before: tuple[int, int, int], limit: int
) -> Sequence[Row[Any]]:
    """Return the rows of messages that have every word, the newest first: id, conversation, turn, place, document."""
    values = _values(connection, owner, words, before, limit)
    return connection.execute(_SEARCH[connection.dialect.name], values).all()


# Without FTS5, a file has no index of words: an owner's messages are read.


def has_fts5(connection: Connection) -> bool:
    """Return whether an index of words can be made and used; on Postgres always."""
    if connection.dialect.name == "postgresql":
        return True
    return bool(connection.execute(text("SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'")).scalar_one())


def is_indexed(connection: Connection) -> bool:
    """Return whether there is an index of words that can be used."""
    if connection.dialect.name == "postgresql":
        return True
    made = text("SELECT count(*) FROM sqlite_schema WHERE name = 'llm_search'")
    return bool(connection.execute(made).scalar_one()) and has_fts5(connection)


def likely_messages(
    connection: Connection, owner: str, words: Sequence[str], before: tuple[int, int, int]
) -> Iterator[Row[Any]]:
    """Yield the rows of messages that may have every word, as ``find_messages`` returns them."""
    plain = [word for word in words if word.isascii()]  # LIKE knows the case of no other letters
    similar = "".join(f" AND m.document LIKE :word{number}" for number in range(len(plain)))
    query = text(
        f"""SELECT c.id, m.conversation, m.turn, m.place, m.document
        FROM llm_messages AS m JOIN llm_conversations AS c ON c.key = m.conversation
        WHERE c.owner = :owner AND (m.conversation, m.turn, m.place) < (:key, :turn, :place){similar}
        ORDER BY m.conversation DESC, m.turn DESC, m.place DESC"""  # noqa: S608 - bound
    )
    values = dict(zip(("key", "turn", "place"), before, strict=True))
    likely = {f"word{number}": f"%{word}%" for number, word in enumerate(plain)}
    yield from connection.execute(query, {"owner": owner, **values, **likely})


def _values(
    connection: Connection, owner: str, words: Sequence[str], before: tuple[int, int, int], limit: int
) -> dict[str, object]:
    on_server = connection.dialect.name == "postgresql"
    query = " ".join(words if on_server else (f'"{word}"' for word in words))
    key, turn, place = before
    return {"owner": owner, "words": query, "limit": limit, "key": key, "turn": turn, "place": place}


def metadata_filter(connection: Connection, owner: str, metadata: Mapping[str, str]) -> TextClause:
    """Return the condition that a conversation of an owner has all of this metadata."""
    if connection.dialect.name == "postgresql":
        return text("llm_metadata(document) @> CAST(:metadata AS jsonb)").bindparams(
            metadata=dump(dict(metadata)).decode().replace("\\u0000", "\\ufffd")
        )
    conditions = [
        f"id IN (SELECT id FROM llm_metadata WHERE owner = :owner AND name = :name{number} AND value = :value{number})"  # noqa: S608 - bound
        for number in range(len(metadata))
    ]
    values = {f"name{number}": name for number, name in enumerate(metadata)}
    values |= {f"value{number}": value for number, value in enumerate(metadata.values())}
    return text(" AND ".join(conditions)).bindparams(owner=owner, **values)


def explain_search(connection: Connection, owner: str, words: Sequence[str]) -> str:
    """Return the database's plan of a search."""
    explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    statement = text(explain + _SEARCH[connection.dialect.name].text)
    rows = connection.execute(statement, _values(connection, owner, words, (2**62, 0, 0), 20))
    return "\n".join(str(row) for row in rows)


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


# Metadata of conversations, which SQLite has in a table of its own. A document that is not ours has none.
_ADD_METADATA: Final = """INSERT OR IGNORE INTO llm_metadata (owner, name, value, id)
            SELECT c.owner, entry.key, entry.value, c.id FROM {} AS c,
            json_each(CASE WHEN json_valid(c.document) THEN c.document ELSE '{{}}' END, '$.metadata') AS entry
            WHERE entry.type = 'text'"""
_NEW: Final = "(SELECT new.owner AS owner, new.id AS id, new.document AS document)"
_DROP_METADATA: Final = "DELETE FROM llm_metadata WHERE owner = old.owner AND id = old.id"

METADATA_INDEX: Final = (
    """CREATE TABLE llm_metadata (
                owner TEXT NOT NULL,
                name TEXT NOT NULL,
                value TEXT NOT NULL,
                id TEXT NOT NULL,
                PRIMARY KEY (owner, name, value, id)
            ) WITHOUT ROWID""",
    "CREATE INDEX llm_metadata_by_conversation ON llm_metadata (owner, id)",
    _ADD_METADATA.format("llm_conversations"),
    f"""CREATE TRIGGER llm_conversations_insert AFTER INSERT ON llm_conversations BEGIN
        {_ADD_METADATA.format(_NEW)};
    END""",
    f"""CREATE TRIGGER llm_conversations_delete AFTER DELETE ON llm_conversations BEGIN
        {_DROP_METADATA};
    END""",
    f"""CREATE TRIGGER llm_conversations_update AFTER UPDATE OF owner, id, document ON llm_conversations BEGIN
        {_DROP_METADATA};
        {_ADD_METADATA.format(_NEW)};
    END""",
)
"""The statements for SQLite. They are part of a migration, and never change."""
