"""Texts in portions that one request may hold."""

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Final

from llm_effects.providers.targets import Preset

BYTES_PER_TOKEN: Final = 3
"""Of UTF-8: fewer than English has, and about a letter of Chinese, so that a portion is rather too small."""


def portions(texts: Iterable[str], preset: Preset) -> Iterator[tuple[str, ...]]:
    """Cut texts into portions, in order, by how many texts and tokens a server takes at once.

    A text that is too long by itself is a portion of its own: only the server knows its exact length.

    >>> from attrs import evolve
    >>> from llm_effects.providers.presets import PRESETS
    >>> list(portions(("a", "b", "c"), evolve(PRESETS["vllm"], embedded_texts=2)))
    [('a', 'b'), ('c',)]
    >>> list(portions(("a" * 30, "b", "c"), evolve(PRESETS["vllm"], embedded_tokens=10)))
    [('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',), ('b', 'c')]
    """
    portion, tokens = list[str](), 0
    for text in texts:
        takes = tokens_of(text)
        if portion and (len(portion) == preset.embedded_texts or tokens + takes > preset.embedded_tokens):
            yield tuple(portion)
            portion, tokens = [], 0
        portion.append(text)
        tokens += takes
    if portion:
        yield tuple(portion)


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few.

    >>> tokens_of("hello"), tokens_of("你好")
    (2, 2)
    """
    return ceil(len(text.encode()) / BYTES_PER_TOKEN)
