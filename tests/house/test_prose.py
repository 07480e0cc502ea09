"""Prose is plain English: docstrings begin with an imperative or a noun phrase, and no call or value is a person."""

import ast
import re
import tokenize
from collections.abc import Iterator
from itertools import count, takewhile

from tests.fixtures.house import MODULES, Definition, name_of, tree_of

# Of a call, a process or a value: it is no person, and it says and gives nothing.
ODD_WORDS = re.compile(
    r"\b(nobody|somebody|whoever|befalls?|thereby|lest|told|tells?|let in|lets? go of|of its own accord|came of"
    r"|comes? to an end|is held to|gives? (?:back|away)|who (?:is|was|comes|waits|asks|has|does|must|may|cannot))\b",
    re.IGNORECASE,
)
ODD_OPENING = re.compile(r"(Give|Tell|Say|Take|Let|What|Who|How)s?\b")


def docstrings() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Module | Definition) and (text := ast.get_docstring(node)):
                yield f"{name_of(module)}:{getattr(node, 'lineno', 1)}", text


def comments() -> Iterator[tuple[str, str]]:
    """Yield each comment whole: a sentence may go on in the next line."""
    for module in MODULES:
        with tokenize.open(module) as file:
            lines = {
                token.start[0]: token.string.lstrip("# ")
                for token in tokenize.generate_tokens(file.readline)
                if token.type == tokenize.COMMENT
            }
        for first in (number for number in lines if number - 1 not in lines):
            following = takewhile(lines.__contains__, count(first))
            yield f"{name_of(module)}:{first}", " ".join(lines[number] for number in following)


def test_docstrings_open_plainly() -> None:
    odd = {place: text.partition("\n")[0] for place, text in docstrings() if ODD_OPENING.match(text)}
    assert odd == {}


def test_docstrings_and_comments_are_plain_english() -> None:
    found = {place: ODD_WORDS.findall(text) for place, text in (*docstrings(), *comments())}
    assert {place: words for place, words in found.items() if words} == {}
