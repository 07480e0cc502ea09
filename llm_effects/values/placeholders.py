"""Placeholders: names for sensitive values in what is sent and stored, which answers are restored from."""

import hmac
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import ascii_lowercase
from typing import Final, NoReturn, TypeAlias, final

from attrs import field, frozen

from llm_effects.values.secrets import Secret
from llm_effects.values.validation import invalid, number, text


@final
@frozen
class Finding:
    """A sensitive part of a text, from the character ``start`` up to ``end``, and its ``kind``, such as ``EMAIL``."""

    start: int = field(validator=number(at_least=0, whole=True))
    end: int = field(validator=number(at_least=1, whole=True))
    kind: str = field(default="VALUE", validator=text())

    def __attrs_post_init__(self) -> None:
        if self.end <= self.start:
            invalid("end", f"must be after start, which is {self.start}, not {self.end}")


Change: TypeAlias = Callable[[str], str]
"""A function that rewrites a text."""

PLACEHOLDER: Final = re.compile(r"\[[A-Z](?:[A-Z_]{0,18}[A-Z])?_[a-z]{12}\]")
"""Letters in brackets: JSON does not escape them, and nothing that looks for numbers finds one in them."""

WORD_CHARACTERS: Final = 4
"""Length from which a value is replaced wherever it stands; a shorter one where it was found, and as a whole word."""

LITERAL: Final = "LITERAL"
"""The kind of a text that looks like a placeholder, but was there before."""

LONGEST: Final = 35
"""The most characters of a placeholder, and so of the text of a stream that waits for what follows."""

_NAME_LETTERS: Final = 12


@final
class ValueIndex:
    """Values by their first characters: a search takes time linear in the text, however many values there are.

    >>> index = ValueIndex(("Ada", "ada@example.org"))
    >>> [*index.find("Adam or Ada, ada@example.org")]
    [(8, 11), (13, 28)]
    """

    __slots__ = ("__first", "__lengths", "__values")

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.__values: set[str] = set()
        self.__lengths: dict[str, tuple[int, ...]] = {}  # tuples: another thread may search meanwhile
        self.__first: set[str] = set()
        for value in values:
            self.add(value)

    def add(self, value: str) -> None:
        """Add a value to find."""
        head, length = value[:WORD_CHARACTERS], len(value)
        self.__values.add(value)
        self.__first.add(value[0])
        if length not in (known := self.__lengths.get(head, ())):
            self.__lengths[head] = (*known, length)

    def find(self, text: str, *, in_words: bool = False) -> Iterator[tuple[int, int]]:
        """Yield where values start and end in a text: short ones only as whole words, unless also ``in_words``."""
        if not self.__first:
            return
        for match in re.finditer(f"[{''.join(map(re.escape, sorted(self.__first)))}]", text):
            start = match.start()
            for end in self._ends(text, start):
                if end - start >= WORD_CHARACTERS or in_words or _is_word(text, start, end):
                    yield start, end

    def _ends(self, text: str, start: int) -> Iterator[int]:
        """Yield where the values end that begin at a place."""
        for head in range(1, min(WORD_CHARACTERS, len(text) - start) + 1):
            for length in self.__lengths.get(text[start : start + head], ()):
                value = text[start : start + length]
                if len(value) == length and min(length, WORD_CHARACTERS) == head and value in self.__values:
                    yield start + length


def _is_word(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return not (_continues(before, text[start]) or _continues(text[end - 1], after))


def _continues(before: str, after: str) -> bool:
    return all(each.isalnum() or each == "_" for each in (before, after))


@final
class Replacements:
    """The placeholders of some values, and the values of these placeholders, neither of which a repr shows.

    A placeholder is a keyed hash of its value and the owner: the same in every text, request and process with the same
    key, and no hint at the value without it. Only what has a placeholder here is ever restored.

    >>> known = Replacements(Secret("a key of your own"), owner=None)
    >>> name = known.placeholder("ada@example.org", "EMAIL")
    >>> name == known.placeholder("ada@example.org", "EMAIL"), known.restore(f"To {name}, not [EMAIL_zzzzzzzzzzzz].")
    (True, 'To ada@example.org, not [EMAIL_zzzzzzzzzzzz].')
    >>> known
    Replacements(1 value)
    """

    __slots__ = ("__index", "__key", "__names", "__owner", "__values")

    def __init__(self, key: Secret, owner: str | None) -> None:
        self.__key = key
        self.__owner = owner
        self.__names: dict[str, str] = {}
        self.__values: dict[str, str] = {}
        self.__index = ValueIndex()

    def placeholder(self, value: str, kind: str) -> str:
        """Return the placeholder of a value; a value that is known keeps the kind that it was first found with."""
        known = self.__names.get(value)
        if known is not None:
            return known
        tries = 0
        while self.__values.get(name := self._name(value, kind, tries), value) != value:
            tries += 1
        self.__names[value], self.__values[name] = name, value
        self.__index.add(value)
        return name

    def _name(self, value: str, kind: str, tries: int) -> str:
        message = json.dumps([self.__owner, value, tries]).encode()
        digest = hmac.digest(self.__key.reveal().encode("utf-8", "surrogatepass"), message, "sha256")
        letters = "".join(ascii_lowercase[byte % 26] for byte in digest[:_NAME_LETTERS])
        return f"[{_kind_name(kind)}_{letters}]"

    def restore(self, text: str, *, in_json: bool = False) -> str:
        """Return a text with the values of its placeholders; ``in_json`` escapes them for the JSON that it is."""
        if not self.__values or "[" not in text:
            return text

        def value_of(match: re.Match[str]) -> str:
            value = self.__values.get(match[0])
            return match[0] if value is None else json_text(value)[1:-1] if in_json else value

        return PLACEHOLDER.sub(value_of, text)

    def hide(self, text: str) -> str:
        """Return a text that was restored with its placeholders again, also where JSON escapes the values."""
        for value in tuple(self.__names):
            escaped = json_text(value)[1:-1]
            if escaped != value and escaped in text:
                self.placeholder(escaped, "ESCAPED")
        return self.replace(text, self.spans(text, in_words=True))

    def spans(self, text: str, *, in_words: bool = False) -> Iterator[Finding]:
        """Yield where known values stand in a text, as ``ValueIndex.find`` does."""
        yield from (Finding(*place) for place in self.__index.find(text, in_words=in_words))

    def replace(self, text: str, findings: Iterable[Finding]) -> str:
        """Return a text with placeholders for its findings; those that overlap become one."""
        pieces, end = list[str](), 0
        for span in merged(sorted(findings, key=lambda each: (each.start, -each.end))):
            pieces += text[end : span.start], self.placeholder(text[span.start : span.end], span.kind)
            end = span.end
        return "".join((*pieces, text[end:])) if pieces else text

    def split(self, text: str) -> tuple[str, str]:
        """Return a text up to where one of these placeholders may begin that is not complete yet, and the rest."""
        start = text.rfind("[", -LONGEST)
        if start < 0:
            return text, ""
        beginning = text[start:]
        unfinished = any(name.startswith(beginning) and name != beginning for name in tuple(self.__values))
        return (text[:start], beginning) if unfinished else (text, "")

    def __len__(self) -> int:
        return len(self.__values)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Replacements({len(self)} value{'' if len(self) == 1 else 's'})"

    def __reduce__(self) -> NoReturn:
        msg = "Replacements cannot be pickled: they hold what must not leave the process"
        raise TypeError(msg)


def _kind_name(kind: str) -> str:
    return re.sub(r"[^A-Z]+", "_", kind.upper()).strip("_")[:20].strip("_") or "VALUE"


def literals(text: str) -> Iterable[Finding]:
    """Yield the parts of a text that look like placeholders.

    >>> [*literals("the field [EMAIL_abcdefghijkl] and [EMAIL]")]
    [Finding(start=10, end=30, kind='LITERAL')]
    """
    if "[" in text:
        yield from (Finding(match.start(), match.end(), LITERAL) for match in PLACEHOLDER.finditer(text))


def merged(spans: Iterable[Finding]) -> Iterable[Finding]:
    """Yield findings in order, those that overlap as one, with the kind of the first.

    >>> [*merged([Finding(0, 4, "NAME"), Finding(2, 6, "EMAIL"), Finding(6, 7)])]
    [Finding(start=0, end=6, kind='NAME'), Finding(start=6, end=7, kind='VALUE')]
    """
    current: Finding | None = None
    for span in spans:
        if current is None or span.start >= current.end:
            if current is not None:
                yield current
            current = span
        elif span.end > current.end:
            current = Finding(current.start, span.end, current.kind)
    if current is not None:
        yield current


def apart(findings: Iterable[Finding], kept: Sequence[Finding]) -> Iterator[Finding]:
    """Yield what of each finding is outside the ``kept`` parts, which are in order.

    >>> [*apart([Finding(0, 9), Finding(3, 4)], [Finding(2, 5)])]
    [Finding(start=0, end=2, kind='VALUE'), Finding(start=5, end=9, kind='VALUE')]
    """
    starts = [each.start for each in kept]
    for each in findings:
        start = each.start
        for part in kept[max(0, bisect_right(starts, start) - 1) : bisect_left(starts, each.end)]:
            if start < part.start:
                yield Finding(start, part.start, each.kind)
            start = max(start, part.end)
        if start < each.end:
            yield Finding(start, each.end, each.kind)


# Texts that are JSON: a placeholder stands for the value, not for how JSON writes it.


_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|-?\d[\d.eE+-]*+', re.DOTALL)


def json_text(value: str) -> str:
    """Return the JSON of a text, with characters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def is_json(text: str) -> bool:
    """Return whether a text is a JSON object or array.

    >>> is_json('{"to": "ada"}'), is_json("[1] says so")
    (True, False)
    """
    if text.lstrip()[:1] not in {"{", "["}:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def change_json(text: str, change: Change) -> str:
    r"""Return JSON with its texts and numbers rewritten; what does not change keeps its spelling.

    >>> change_json('{"to":  "ada", "n": 12}', lambda part: part.replace("ada", "[A]\n"))
    '{"to":  "[A]\\n", "n": 12}'
    """

    def changed(match: re.Match[str]) -> str:
        token = match[0]
        old: str = json.loads(token) if token[0] == '"' else token
        new = change(old)
        return token if new == old else json_text(new)

    return _TOKEN.sub(changed, text)
