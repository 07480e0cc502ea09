"""What an answer rests on, as each protocol tells it, and the passages of the answer that it belongs to."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

from llm_effects.messages import Citation
from llm_effects.providers.reading import items, json_text, record, string, whole

Passage: TypeAlias = tuple[int, list[object]]
"""Where in a text a passage begins, and the citations told with it."""


def of_passages(passages: Iterable[Passage], length: int) -> tuple[Citation, ...]:
    """Read Anthropic's citations, which are told for a block of text: it ends where the next one begins.

    >>> of_passages([(0, []), (4, [{"type": "char_location", "cited_text": "the sky is blue"}])], 9)[0].quote
    'the sky is blue'
    """
    ended = pairwise([*passages, (length, list[object]())])
    return tuple(_of_block(start, end, record(told)) for (start, cited), (end, _) in ended for told in cited)


def _of_block(start: int, end: int, told: dict[str, object]) -> Citation:
    return Citation(
        start=start,
        end=end,
        quote=string(told.get("cited_text")),
        title=string(told.get("document_title")) or string(told.get("title")) or None,
        url=string(told.get("url")) or None,
        document=_counted(told.get("document_index")),
        source=json_text(told),
    )


def _counted(told: object) -> int | None:
    number = whole(told)
    return number if number is not None and number >= 0 else None


def of_annotations(told: object, offset: int = 0, length: int = 0) -> tuple[Citation, ...]:
    """Read OpenAI's annotations of a text that begins at ``offset`` and has ``length``; others than citations are none.

    Chat completions put what they say into an object of its own, Responses do not. A cited file has no passage but a
    place, from which its passage is taken to begin.

    >>> site = {"type": "url_citation", "start_index": 3, "end_index": 7, "url": "https://a.example"}
    >>> [(each.start, each.end, each.url) for each in of_annotations([site], offset=10, length=9)]
    [(13, 17, 'https://a.example')]
    """
    return tuple(_annotations(told, offset, length))


def _annotations(told: object, offset: int, length: int) -> Iterator[Citation]:
    for each in map(record, items(told)):
        kind = string(each.get("type"))
        if kind.endswith("citation"):
            yield _of_annotation(each, record(each.get(kind)) or each, offset, length)


def _of_annotation(told: dict[str, object], said: dict[str, object], offset: int, length: int) -> Citation:
    place = _counted(said.get("start_index", said.get("index"))) or 0
    end = _counted(said.get("end_index"))
    start = min(place, length)
    return Citation(
        start=offset + start,
        end=offset + (start if end is None else max(start, min(end, length))),
        title=string(said.get("title")) or string(said.get("filename")) or None,
        url=string(said.get("url")) or None,
        source=json_text(told),
    )


def of_sources(urls: Iterable[object], length: int) -> tuple[Citation, ...]:
    """Take a plain list of sources, as search servers give it: each for the whole text.

    >>> of_sources(["https://a.example"], 5)[0].end
    5
    """
    return tuple(Citation(start=0, end=length, url=string(url)) for url in urls if string(url))
