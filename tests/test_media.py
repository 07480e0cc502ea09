"""What bytes hold: kinds, sizes of pictures, pages."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import Document, Image
from llm_effects.values import InvalidValue
from llm_effects.values.messages import dimensions_of, media_type_of, page_count

sides = st.integers(1, 16_000)


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


@given(sides, sides, st.sampled_from([png, gif, jpeg, webp_lossy, webp_lossless, webp_extended]))
def test_the_size_of_a_picture_is_in_its_header(width: int, height: int, make: object) -> None:
    assert dimensions_of(make(width, height)) == (width, height)  # type: ignore[operator]


@given(st.binary(max_size=60), st.sampled_from([png(3, 5), gif(3, 5), jpeg(3, 5), webp_lossy(3, 5), b""]), st.data())
def test_no_bytes_are_too_odd(tail: bytes, head: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(head)))
    odd = head[:cut] + tail
    size = dimensions_of(odd)
    assert size is None or len(size) == 2
    assert page_count(odd) >= 1
    media_type_of(odd)


@pytest.mark.parametrize(
    ("data", "kind"),
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
def test_kinds_are_told_by_the_first_bytes(data: bytes, kind: str | None) -> None:
    assert media_type_of(data) == kind


def test_the_media_type_of_a_picture_need_not_be_said() -> None:
    assert Image(gif(1, 1)).media_type == "image/gif"
    assert Image(jpeg(1, 1), "image/JPG").media_type == "image/jpeg"  # the one name that all providers know
    assert Document(b"%PDF-1.7").media_type == "application/pdf"


@pytest.mark.parametrize(
    ("url", "data", "kind"),
    [
        ("data:image/gif;base64,R0lGODlh", b"GIF89a", "image/gif"),
        ("DATA:;base64,R0lG%4FDlh", b"GIF89a", "image/gif"),
        ("data:image/svg+xml;charset=utf-8,%3Csvg%2F%3E", b"<svg/>", "image/svg+xml"),
        ("data:image/x;a=b;base64,YQ ==", b"a", "image/x"),
    ],
)
def test_a_url_with_its_data_becomes_the_data(url: str, data: bytes, kind: str) -> None:
    image = Image(url=url)
    assert (image.data, image.media_type, image.url) == (data, kind, None)
    assert image == Image(data, kind)


@pytest.mark.parametrize(
    ("make", "says"),
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
def test_what_cannot_be_shown_says_why(make: object, says: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == says
