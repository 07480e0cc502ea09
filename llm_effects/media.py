"""What bytes hold: their media type by the letters they begin with, the size of a picture, the pages of a document."""

import re
import struct
from typing import Final

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"GIF8[79]a", "image/gif"),
    (rb"RIFF....WEBP", "image/webp"),
    (rb"BM....\0\0\0\0", "image/bmp"),
    (rb"II\*\0|MM\0\*", "image/tiff"),
    (rb"....ftyp(?:heic|heix|mif1)", "image/heic"),
    (rb"....ftyp(?:avif|avis)", "image/avif"),
    (rb"%PDF-", "application/pdf"),
)

_PNG: Final = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{8})", re.DOTALL)
_GIF: Final = re.compile(rb"GIF8[79]a(.{4})", re.DOTALL)
_WEBP: Final = re.compile(
    rb"RIFF.{4}WEBPVP8(?: .{10}(?P<lossy>.{4})|L.{5}(?P<lossless>.{4})|X.{8}(?P<long>.{6}))", re.DOTALL
)
_SEGMENT: Final = re.compile(rb"\xff+([\x01-\xfe])(..)?", re.DOTALL)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers whose segment has the size
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a segment

_PAGE: Final = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def media_type_of(data: bytes) -> str | None:
    """Tell a picture or a PDF by its first bytes; ``None`` is for anything else.

    >>> media_type_of(b"%PDF-1.7 ..."), media_type_of(b"plain")
    ('application/pdf', None)
    """
    return next((kind for magic, kind in _MAGIC if re.match(magic, data, re.DOTALL)), None)


def dimensions_of(data: bytes) -> tuple[int, int] | None:
    """Read the width and height of a PNG, GIF, JPEG or WebP, in pixels, from its header; ``None`` where it has none.

    >>> dimensions_of(b"GIF89a" + bytes([64, 1, 240, 0]))
    (320, 240)
    """
    if png := _PNG.match(data):
        width, height = struct.unpack(">II", png[1])
        return width, height
    if gif := _GIF.match(data):
        width, height = struct.unpack("<HH", gif[1])
        return width, height
    return _jpeg(data) if data.startswith(b"\xff\xd8") else _webp(data)


def _webp(data: bytes) -> tuple[int, int] | None:
    """See RFC 9649: three kinds of chunk, each with a size of its own form."""
    found = _WEBP.match(data)
    if found is None:
        return None
    if lossy := found["lossy"]:
        width, height = struct.unpack("<HH", lossy)
        return width & 0x3FFF, height & 0x3FFF
    if lossless := found["lossless"]:
        bits = int.from_bytes(lossless, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(found["long"][:3], "little") + 1, int.from_bytes(found["long"][3:], "little") + 1


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Walk from segment to segment (ITU T.81, annex B) up to the one that tells the size."""
    at = 2
    while (segment := _SEGMENT.match(data, at)) is not None:
        marker = segment[1][0]
        if marker in _BARE:
            at = segment.end(1)
            continue
        begins = segment.end(1)
        if marker in _FRAMES and len(data) >= begins + 7:
            height, width = struct.unpack_from(">HH", data, begins + 3)
            return width, height
        if segment[2] is None or marker == 0xDA:
            return None
        at = begins + max(2, int.from_bytes(segment[2], "big"))
    return None


def pages_of(data: bytes) -> int:
    """Count the pages of a PDF as far as they can be seen without unpacking it; at least 1.

    >>> pages_of(b"%PDF-1.4 << /Type /Pages >> << /Type /Page >> << /Type/Page >>")
    2
    """
    return max(1, len(_PAGE.findall(data)))
