"""Messages and their parts."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.messages import Image, Message, Origin, Part, Reasoning, Text, ToolCall, ToolResult, text_of
from llm_effects.values.validation import InvalidValue

PARTS: list[Part] = [
    Text("a"),
    Image(url="https://example.org/a.png"),
    Image(data=b"\x89PNG", media_type="image/png"),
    Reasoning("hm", opaque="{}", origin=Origin("anthropic", "claude-sonnet-5-5")),
    ToolCall("1", "look", "{}"),
    ToolResult("1", "seen"),
]


@given(st.text())
def test_a_bare_text_is_one_text_part(words: str) -> None:
    message = Message("user", words)
    assert message == Message("user", Text(words)) == Message("user", [Text(words)])
    assert message.text == words


@pytest.mark.parametrize("part", PARTS)
def test_a_single_part_stands_for_itself(part: Part) -> None:
    assert Message("assistant", part).parts == (part,)


@given(st.lists(st.sampled_from(PARTS), min_size=1))
def test_parts_keep_their_order_and_cannot_be_changed(parts: list[Part]) -> None:
    message = Message("assistant", parts)
    assert message.parts == tuple(parts)
    assert message.text == text_of(parts) == "a" * parts.count(PARTS[0])
    assert hash(message) == hash(Message("assistant", tuple(parts)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.parts = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Message("robot", "x"), "role: must be one of system, user, assistant, tool, not 'robot'"),
        (lambda: Message("user", ()), "parts: must not be empty: give at least one part"),
        (
            lambda: Message("user", ["x"]),
            "parts[0]: must be Text or Image or Document or Reasoning or ToolCall or ToolResult, not str",
        ),
        (lambda: Image(), "data: give either data (with media_type) or url, and only one of them"),
        (
            lambda: Image(data=b"", media_type="a/b", url="x"),
            "data: give either data (with media_type) or url, and only one of them",
        ),
        (lambda: Image(data=b"x"), "media_type: give the type of the data, such as 'image/png'"),
        (lambda: ToolCall("", "look"), "id: must not be blank: give some text, or leave it out"),
        (lambda: ToolCall("1", " "), "name: must not be blank: give some text, or leave it out"),
        (lambda: ToolResult(""), "call_id: must not be blank: give some text, or leave it out"),
        (lambda: Text(5), "text: must be a text, not int"),
        (lambda: Text(None), "text: must be a text, not NoneType"),
        (lambda: Message("user", 5), "parts: must be several values, not int"),
        (lambda: Message("user", None), "parts: must be several values, not NoneType"),
        (lambda: Message(["user"], "x"), "role: must be one of system, user, assistant, tool, not list"),
        (lambda: Image(data="x", media_type="a/b"), "data: must be bytes, not str"),
        (lambda: Image(url=5), "url: must be a text, not int"),
        (lambda: Reasoning(5), "text: must be a text, not int"),
        (lambda: Reasoning("hm", opaque=b"{}"), "opaque: must be a text, not bytes"),
        (lambda: Reasoning("hm", origin="anthropic"), "origin: must be Origin, not str"),
        (lambda: Origin("anthropic", None), "model: must be a text, not NoneType"),
        (lambda: Origin(5, "m"), "provider: must be a text, not int"),
        (lambda: ToolCall("1", "look", {"a": 1}), "arguments: must be a text, not dict"),
        (lambda: ToolResult("1", {"a": 1}), "content: must be a text, not dict"),
        (lambda: ToolResult("1", "x", "no"), "is_error: must be bool, not str"),
    ],
)
def test_a_wrong_part_says_what_is_wrong(make: object, says: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == says


def test_an_empty_text_is_a_text() -> None:
    assert Message("assistant", "").parts == (Text(""),)


def test_bulk_and_opaque_content_stays_out_of_a_repr() -> None:
    assert "PNG" not in repr(PARTS[2])
    assert "opaque" not in repr(PARTS[3])
