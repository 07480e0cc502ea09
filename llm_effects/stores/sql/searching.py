"""Finding conversations by their metadata, and messages by their words, with the index that a database has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def _values(
    connection: Connection, owner: str, words: Sequence[str], before: tuple[int, int, int], limit: int
) -> dict[str, object]:
    on_server = connection.dialect.name == "postgresql"
    query = " ".join(words if on_server else (f'"{word}"' for word in words))
    key, turn, place = before
    return {"owner": owner, "words": query, "limit": limit, "key": key, "turn": turn, "place": place}


def metadata_filter(connection: Connection, metadata: Mapping[str, str]) -> TextClause:
    """Return the condition that a conversation has all of this metadata."""
    if connection.dialect.name == "postgresql":
        return text("llm_metadata(document) @> CAST(:metadata AS jsonb)").bindparams(
            metadata=dump(dict(metadata)).decode().replace("\\u0000", "\\ufffd")
        )
    entries = "json_each(CASE WHEN json_valid(document) THEN document ELSE '{}' END, '$.metadata')"
    conditions = [
        f"EXISTS (SELECT 1 FROM {entries} WHERE json_each.key = :name{number} AND json_each.value = :value{number})"  # noqa: S608 - bound
        for number in range(len(metadata))
    ]
    values = {f"name{number}": name for number, name in enumerate(metadata)}
    values |= {f"value{number}": value for number, value in enumerate(metadata.values())}
    return text(" AND ".join(conditions)).bindparams(**values)


def explain_search(connection: Connection, owner: str, words: Sequence[str]) -> str:
    """Return the database's plan of a search."""
    explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    statement = text(explain + _SEARCH[connection.dialect.name].text)
    rows = connection.execute(statement, _values(connection, owner, words, (2**62, 0, 0), 20))
    return "\n".join(str(row) for row in rows)
