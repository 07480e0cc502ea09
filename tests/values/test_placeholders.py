"""Placeholders: what is redacted comes back as it was, nothing else does, and no repr shows a value."""

import json
import pickle
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.placeholders import (
    LONGEST,
    PLACEHOLDER,
    WORD_CHARACTERS,
    Finding,
    Replacements,
    ValueIndex,
    apart,
    change_json,
    is_json,
    json_text,
    literals,
    merged,
)
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import InvalidValue

KEY = Secret("a key for the tests")


def known(owner: str | None = None, key: Secret = KEY) -> Replacements:
    return Replacements(key, owner)


def redact(text: str, findings: list[Finding], into: Replacements) -> str:
    found = (*literals(text), *findings)
    for each in found:
        into.placeholder(text[each.start : each.end], each.kind)
    return into.replace(text, (*found, *into.spans(text)))


# Texts of everything that may confuse: brackets, kinds, letters, and placeholders that are really those of a value.
REAL = known().placeholder("0123", "EMAIL")
PIECES = ["[", "]", "EMAIL", "_", "[EMAIL_", "abcdefghijkl", "0123", "9", "ü", " ", '"', REAL, REAL[:9]]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
Marked = tuple[str, list[Finding]]


@st.composite
def marked(draw: st.DrawFn) -> Marked:
    """Draw a text, and findings in it that may overlap."""
    text = draw(TEXTS)
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.sampled_from(["EMAIL", "a-b", "ß"]))
    found = [Finding(*sorted((one, two)), kind) for one, two, kind in draw(st.lists(places, max_size=4)) if one != two]
    return text, found


@given(marked())
def test_fault_217_what_is_redacted_is_restored_whatever_was_there_before(
    given_text: tuple[str, list[Finding]],
) -> None:
    text, findings = given_text
    into = known()
    sent = redact(text, findings, into)
    assert into.restore(sent) == text
    hidden = into.hide(text)
    assert into.restore(hidden) == text
    assert not any(text[each.start : each.end] in PLACEHOLDER.sub("", hidden) for each in findings)


@given(marked())
def test_fault_217_every_placeholder_in_what_is_sent_is_ours(given_text: Marked) -> None:
    into = known()
    sent = redact(*given_text, into)
    assert all(into.restore(each) != each for each in PLACEHOLDER.findall(sent))


@given(st.lists(st.text("0123456789", min_size=WORD_CHARACTERS, max_size=8), min_size=1, max_size=3), st.data())
def test_fault_214_no_found_value_stands_anywhere_in_what_is_sent(values: list[str], data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from([*values, "[", "x", " "]), max_size=8))) + values[0]
    into = known()
    sent = redact(text, [Finding(match.start(), match.end()) for match in re.finditer(values[0], text)], into)
    assert values[0] not in sent


@given(marked(), st.data())
def test_fault_215_a_cut_text_is_restored_like_a_whole_one(given_text: Marked, data: st.DataObject) -> None:
    into = known()
    sent, delivered, held = redact(*given_text, into), "", ""
    while sent:
        cut = data.draw(st.integers(1, len(sent)))
        ready, held = into.split(held + sent[:cut])
        delivered, sent = delivered + into.restore(ready), sent[cut:]
        assert len(held) < LONGEST
    assert delivered + held == given_text[0]


@given(st.text("abc_[]E", max_size=40))
def test_fault_215_text_that_begins_no_placeholder_of_ours_never_waits(text: str) -> None:
    into = known()
    name = into.placeholder("ada@example.org", "KIND")
    _, held = into.split(text)
    assert held == "" or (name.startswith(held) and text.endswith(held))


def test_placeholders_depend_on_value_owner_and_key_only() -> None:
    name = known().placeholder("ada", "NAME")
    assert PLACEHOLDER.fullmatch(name)
    assert name == known().placeholder("ada", "NAME")
    others = (known("bob"), known(key=Secret("another key for this")))
    assert len({name, known().placeholder("bob", "NAME"), *(each.placeholder("ada", "NAME") for each in others)}) == 4


def test_a_value_keeps_the_kind_that_it_was_first_found_with() -> None:
    into = known()
    assert into.placeholder("ada", "NAME") == into.placeholder("ada", "USER")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("e-mail", "E_MAIL"),
        ("US_SSN", "US_SSN"),
        ("ß9", "SS"),
        ("_", "VALUE"),
        ("A" * 40, "A" * 20),
        ("A" * 19 + "_B", "A" * 19),
    ],
)
def test_any_kind_makes_a_placeholder(kind: str, name: str) -> None:
    placeholder = known().placeholder("ada", kind)
    assert placeholder.startswith(f"[{name}_")
    assert PLACEHOLDER.fullmatch(placeholder)


def test_two_values_never_share_a_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replacements, "_name", lambda self, value, kind, tries: f"[{kind}_{'a' * 11}{'ab'[tries]}]")
    into = known()
    assert into.placeholder("ada", "NAME") != into.placeholder("bob", "NAME")


def test_no_repr_and_no_pickle_shows_a_value() -> None:
    into = known()
    into.placeholder("ada@example.org", "EMAIL")
    assert (repr(into), f"{into}", bool(into), bool(known())) == ("Replacements(1 value)",) * 2 + (True, True)
    with pytest.raises(TypeError, match="must not leave the process"):
        pickle.dumps(into)


@pytest.mark.parametrize("span", [(1, 1), (2, 1), (-1, 1)])
def test_a_finding_has_a_length(span: tuple[int, int]) -> None:
    with pytest.raises(InvalidValue):
        Finding(*span)


def test_what_is_kept_is_not_replaced() -> None:
    into, text = known(), f"EMAIL {REAL}"
    into.placeholder("EMAIL", "WORD")
    assert into.replace(text, apart(into.spans(text), tuple(literals(text)))).endswith(f" {REAL}")


def test_a_short_value_is_replaced_as_a_whole_word_and_a_long_one_anywhere() -> None:
    into = known()
    for value in ("Ada", "C-3", "0123"):
        into.placeholder(value, "NAME")
    text = "Ada, Adam, _Ada, Ada-Bo, (Ada) C-3 xC-3 C-3! a0123b"
    found = [text[each.start : each.end] for each in into.spans(text)]
    assert found == ["Ada", "Ada", "Ada", "C-3", "C-3", "0123"]
    assert len([*into.spans(text, in_words=True)]) == 9


def test_a_search_for_many_values_is_linear_in_the_text() -> None:
    values = [f"+4915{number:07}" for number in range(20_000)]
    text, index = " ".join(values), ValueIndex(values)
    began = time.process_time()
    assert len([*index.find(text)]) == len(values)
    assert time.process_time() - began < 5


@given(marked(), marked())
def test_what_is_apart_is_all_but_what_is_kept(one: Marked, other: Marked) -> None:
    kept = [*merged(sorted(other[1], key=lambda each: (each.start, -each.end)))]
    places = {place for each in one[1] for place in range(each.start, each.end)}
    outside = places - {place for each in kept for place in range(each.start, each.end)}
    assert {place for each in apart(one[1], kept) for place in range(each.start, each.end)} == outside


# JSON


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["ada", '"ada"\n']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_json_stays_json_and_unchanged_json_keeps_its_spelling(value: dict[str, object]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    assert is_json(text)
    assert change_json(text, lambda part: part) == text
    changed = change_json(text, lambda part: part.replace("ada", "[A]"))
    assert json.loads(changed) == json.loads(text.replace("ada", "[A]"))


def test_fault_219_a_number_becomes_a_text_and_a_value_with_quotes_stays_json() -> None:
    into = known()
    name = into.placeholder('a "b"\n', "KEY")
    sent = change_json(
        '{"n": 4111, "k": "a \\"b\\"\\n"}', lambda part: {"4111": "[N]", 'a "b"\n': name}.get(part, part)
    )
    assert sent == f'{{"n": "[N]", "k": "{name}"}}'
    assert json.loads(into.restore(sent, in_json=True))["k"] == 'a "b"\n'
    assert json_text("ü") == '"ü"'


@pytest.mark.parametrize("text", ["", "ada", '{"a": ', "[1] is a note", "[" * 100_000])
def test_other_texts_are_not_json(text: str) -> None:
    assert not is_json(text)


def test_escaped_values_are_hidden_too() -> None:
    into = known()
    into.placeholder('a "b" c', "KEY")
    assert '\\"b' not in into.hide('{"k": "a \\"b\\" c"}')
