"""Messages and their parts: text, pictures, documents, tool calls."""

import struct
import zlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.messages import (
    Document,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    dimensions_of,
    media_type_of,
    page_count,
    text_of,
)
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
def test_a_bare_text_becomes_one_text_part(words: str) -> None:
    message = Message("user", words)
    assert message == Message("user", Text(words)) == Message("user", [Text(words)])
    assert message.text == words


@pytest.mark.parametrize("part", PARTS)
def test_a_single_part_becomes_a_tuple(part: Part) -> None:
    assert Message("assistant", part).parts == (part,)


@given(st.lists(st.sampled_from(PARTS), min_size=1))
def test_parts_are_frozen_in_order(parts: list[Part]) -> None:
    message = Message("assistant", parts)
    assert message.parts == tuple(parts)
    assert message.text == text_of(parts) == "a" * parts.count(PARTS[0])
    assert hash(message) == hash(Message("assistant", tuple(parts)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.parts = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "error"),
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
        (lambda: Reasoning("hm", origin="anthropic"), "origin: must be Origin, not str: write Origin(...)"),
        (lambda: Origin("anthropic", None), "model: must be a text, not NoneType"),
        (lambda: Origin(5, "m"), "provider: must be a text, not int"),
        (lambda: ToolCall("1", "look", {"a": 1}), "arguments: must be a text, not dict"),
        (lambda: ToolResult("1", {"a": 1}), "content: must be a text, not dict"),
        (lambda: ToolResult("1", "x", "no"), "is_error: must be bool, not str"),
    ],
)
def test_an_invalid_role_or_part_names_the_field_and_the_remedy(make: object, error: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == error


def test_an_empty_text_is_valid() -> None:
    assert Message("assistant", "").parts == (Text(""),)


def test_a_repr_omits_bytes_and_opaque_blocks() -> None:
    assert "PNG" not in repr(PARTS[2])
    assert "opaque" not in repr(PARTS[3])


# Media.

SIDES = st.integers(1, 16_000)


def png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + head))


def gif(width: int, height: int) -> bytes:
    return b"GIF87a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg(width: int, height: int) -> bytes:
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    filler = b"\xff\xff\xfe" + struct.pack(">H", 4) + b"\xff\xc0"  # a comment that looks like a frame
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + app0 + filler + frame + b"\xff\xd9"


def webp_lossy(width: int, height: int) -> bytes:
    body = b"VP8 " + struct.pack("<I", 20) + b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_lossless(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", bits)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_extended(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@given(SIDES, SIDES, st.sampled_from([png, gif, jpeg, webp_lossy, webp_lossless, webp_extended]))
def test_dimensions_are_read_from_the_header_of_a_picture(width: int, height: int, make: object) -> None:
    assert dimensions_of(make(width, height)) == (width, height)  # type: ignore[operator]


@given(st.binary(max_size=60), st.sampled_from([png(3, 5), gif(3, 5), jpeg(3, 5), webp_lossy(3, 5), b""]), st.data())
def test_no_bytes_make_detection_fail(tail: bytes, head: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(head)))
    odd = head[:cut] + tail
    size = dimensions_of(odd)
    assert size is None or len(size) == 2
    assert page_count(odd) >= 1
    media_type_of(odd)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (png(1, 1), "image/png"),
        (jpeg(1, 1), "image/jpeg"),
        (gif(1, 1), "image/gif"),
        (webp_lossless(1, 1), "image/webp"),
        (b"\0\0\0\x18ftypheic", "image/heic"),
        (b"MM\0*", "image/tiff"),
        (b"%PDF-1.7", "application/pdf"),
        (b"BM it is a text", None),
        (b"", None),
    ],
)
def test_media_types_are_detected_by_the_first_bytes(data: bytes, media_type: str | None) -> None:
    assert media_type_of(data) == media_type


def test_the_media_type_of_known_bytes_is_optional() -> None:
    assert Image(gif(1, 1)).media_type == "image/gif"
    assert Image(jpeg(1, 1), "image/JPG").media_type == "image/jpeg"  # the one name that all providers know
    assert Document(b"%PDF-1.7").media_type == "application/pdf"


@pytest.mark.parametrize(
    ("url", "data", "media_type"),
    [
        ("data:image/gif;base64,R0lGODlh", b"GIF89a", "image/gif"),
        ("DATA:;base64,R0lG%4FDlh", b"GIF89a", "image/gif"),
        ("data:image/svg+xml;charset=utf-8,%3Csvg%2F%3E", b"<svg/>", "image/svg+xml"),
        ("data:image/x;a=b;base64,YQ ==", b"a", "image/x"),
    ],
)
def test_a_data_url_is_replaced_by_its_data(url: str, data: bytes, media_type: str) -> None:
    image = Image(url=url)
    assert (image.data, image.media_type, image.url) == (data, media_type, None)
    assert image == Image(data, media_type)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Image(gif(1, 1), "image/png"), "media_type: the data is image/gif, not image/png"),
        (
            lambda: Image(url="file:///etc/passwd"),
            "url: must begin with https:// or data:, not 'file:///etc/passwd': read a file with read_image",
        ),
        (
            lambda: Document(b"\xff\xfe", "text/plain"),
            "data: must be UTF-8, but byte 0 is not: encode the text in UTF-8",
        ),
        (lambda: Document(b"x"), "media_type: give the type of the data, such as 'image/png'"),
        (
            lambda: Image(b"%PDF-1.7"),
            "media_type: must be that of a picture, not application/pdf: use a Document",
        ),
        (
            lambda: Document(gif(1, 1)),
            "media_type: must be that of a document, not image/gif: use an Image",
        ),
        (lambda: Image(url="data:image/png;base64,@"), "url: must have base64 after its comma"),
        (lambda: Image(url="data:image/png"), "url: must have a comma before its data"),
        (lambda: Image(url="data:image/png;base64,R0lGODlh"), "media_type: the data is image/gif, not image/png"),
        (lambda: Document(), "data: give either data (with media_type) or url, and only one of them"),
    ],
)
def test_invalid_media_names_the_field_and_the_remedy(make: object, error: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == error
