"""Messages and their parts: what is said to a model and what it says back."""

import re
import struct
from base64 import b64decode
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, final, get_args
from urllib.parse import unquote, unquote_to_bytes

from attrs import field, frozen

from llm_effects.values.validation import instance, instances, invalid, number, one_of, shown, text, to_tuple

# What bytes hold: their media type by the letters they begin with, the size of a picture, the pages of a document.


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


def page_count(data: bytes) -> int:
    """Count the pages of a PDF as far as they can be seen without unpacking it; at least 1.

    >>> page_count(b"%PDF-1.4 << /Type /Pages >> << /Type /Page >> << /Type/Page >>")
    2
    """
    return max(1, len(_PAGE.findall(data)))


# What is shown to a model beside text: pictures and documents, as bytes or as a URL.


_PLAIN: Final = ("text/", "application/json", "application/xml", "application/yaml", "application/toml")
_FETCHED: Final = ("http://", "https://")
_DATA_URL: Final = re.compile(r"data:([^;,]*)(?:;(?!base64,)[^;,]*)*(;base64)?,(.*)", re.DOTALL | re.IGNORECASE)
"""RFC 2397: a media type, its parameters, and bytes."""

_SAME: Final = {"image/jpg": "image/jpeg", "image/heif": "image/heic"}
"""Other names of a media type, which not every provider knows."""


@final
@frozen
class Image:
    """A picture, as bytes with their media type (``image/png``) or as a URL that the provider fetches.

    The media type of common pictures is read from their bytes; one that says something else is refused. A ``data:`` URL
    becomes the bytes in it.

    >>> Image(url="data:image/gif;base64,R0lGODlh").data
    b'GIF89a'
    """

    data: bytes | None = field(default=None, validator=instance(bytes), repr=False)
    media_type: str | None = field(default=None, validator=text())
    url: str | None = field(default=None, validator=text())

    def __attrs_post_init__(self) -> None:
        _check_source(self)
        if self.data is not None and not (self.media_type or "").startswith("image/"):
            invalid("media_type", f"must be that of a picture, not {self.media_type}: show the rest as a Document")


@final
@frozen
class Document:
    """A document, as bytes with their media type (``application/pdf``, ``text/plain``) or as a URL to be fetched.

    ``title`` is what it is called. Where ``cite`` is set, the model is asked to cite it, if its provider can.
    """

    data: bytes | None = field(default=None, validator=instance(bytes), repr=False)
    media_type: str | None = field(default=None, validator=text())
    url: str | None = field(default=None, validator=text())
    title: str | None = field(default=None, validator=text())
    cite: bool = field(default=False, validator=instance(bool))

    def __attrs_post_init__(self) -> None:
        _check_source(self)
        if (self.media_type or "").startswith("image/"):
            invalid("media_type", f"must be that of a document, not {self.media_type}: show a picture as an Image")
        if self.plain and self.data is not None:
            _check_letters(self.data)

    @property
    def plain(self) -> bool:
        """Whether it is text, which every model can be shown."""
        return self.data is not None and (self.media_type or "").startswith(_PLAIN)

    @property
    def text(self) -> str:
        """The text of a plain one; of any other, nothing."""
        return (self.data or b"").decode() if self.plain else ""


def _check_source(part: Image | Document) -> None:
    """Take bytes of a known kind, or a URL: a path of this machine means nothing to whoever is to fetch it."""
    if (part.data is None) == (part.url is None):
        invalid("data", "give either data (with media_type) or url, not both and not neither")
    if part.url is not None and part.url[:5].lower() == "data:":
        _take_out(part, part.url)
    elif part.url is not None and not part.url.lower().startswith(_FETCHED):
        invalid("url", f"must begin with https:// or data:, not {shown(part.url)}: read a file with read_image")
    if part.data is None:
        return
    seen, said = media_type_of(part.data), (part.media_type or "").lower()
    kind = _SAME.get(said, said) or seen
    if kind is None:
        invalid("media_type", "say what data holds, such as 'image/png'")
    if seen not in {None, kind}:
        invalid("media_type", f"the data is {seen}, not {part.media_type}")
    object.__setattr__(part, "media_type", kind)


def _take_out(part: Image | Document, url: str) -> None:
    """Its kind and its size can be seen only in the bytes, and it goes to no log with them."""
    found = _DATA_URL.fullmatch(url)
    if found is None:
        invalid("url", "must have a comma before its data")
    kind, coded, body = found.groups()
    try:
        data = b64decode("".join(unquote(body).split()), validate=True) if coded else unquote_to_bytes(body)
    except ValueError:
        invalid("url", "must hold base64 after its comma")
    for name, value in {"data": data, "media_type": part.media_type or kind or None, "url": None}.items():
        object.__setattr__(part, name, value)


def _check_letters(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as problem:
        invalid("data", f"must be UTF-8, which ends at byte {problem.start}: give its text in UTF-8")


Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
"""Who speaks."""

_ANY_TEXT: Final = text(empty=True)


@final
@frozen
class Origin:
    """The provider and wire model that made an opaque part; only they can read it back."""

    provider: str = field(validator=_ANY_TEXT)
    model: str = field(validator=_ANY_TEXT)


@final
@frozen(kw_only=True)
class Citation:
    """What a passage of an answer rests on.

    The passage goes from ``start`` up to ``end``, in characters of the part's text. ``quote`` is what was cited,
    ``title`` and ``url`` say of what, ``document`` is the place of that document among those of the request, from 0.
    ``source`` is the provider's own record of it (JSON text), as it came.
    """

    start: int = field(validator=number(at_least=0, whole=True))
    end: int = field(validator=number(at_least=0, whole=True))
    quote: str = field(default="", validator=_ANY_TEXT)
    title: str | None = field(default=None, validator=_ANY_TEXT)
    url: str | None = field(default=None, validator=_ANY_TEXT)
    document: int | None = field(default=None, validator=number(at_least=0, whole=True))
    source: str = field(default="", validator=_ANY_TEXT, repr=False)


def _citations(given: Iterable[Citation]) -> tuple[Citation, ...]:
    return to_tuple("citations", given)


@final
@frozen
class Text:
    """Plain text; an answer's text has the ``citations`` that the provider gave with it.

    >>> Text("disk is 97 % full").text
    'disk is 97 % full'
    """

    text: str = field(validator=_ANY_TEXT)
    citations: tuple[Citation, ...] = field(default=(), converter=_citations, validator=instances(Citation), repr=False)


@final
@frozen
class Reasoning:
    """A model's thinking. ``opaque`` is the provider's own block (JSON text), replayed byte for byte.

    ``opaque`` goes back only to its ``origin``; for any other model it is stripped, never forged.
    """

    text: str = field(default="", validator=_ANY_TEXT)
    opaque: str | None = field(default=None, validator=_ANY_TEXT, repr=False)
    origin: Origin | None = field(default=None, validator=instance(Origin))


@final
@frozen
class ToolCall:
    """The model asks for a tool. ``arguments`` is the JSON text as it came, valid or not."""

    id: str = field(validator=text())
    name: str = field(validator=text())
    arguments: str = field(default="{}", validator=_ANY_TEXT)


@final
@frozen
class ToolResult:
    """What a tool answered to the call with the id ``call_id``."""

    call_id: str = field(validator=text())
    content: str = field(default="", validator=_ANY_TEXT)
    is_error: bool = field(default=False, validator=instance(bool))


Part: TypeAlias = Text | Image | Document | Reasoning | ToolCall | ToolResult
"""One piece of a message."""


def _parts(given: str | Part | Iterable[Part]) -> tuple[Part, ...]:
    if isinstance(given, str):
        return (Text(given),)
    return (given,) if isinstance(given, Part) else to_tuple("parts", given)


@final
@frozen
class Message:
    """One turn. A bare text is short for one ``Text`` part.

    >>> Message("user", "why is p99 up?")
    Message(role='user', parts=(Text(text='why is p99 up?'),))
    """

    role: Role = field(validator=one_of(*get_args(Role)))
    parts: tuple[Part, ...] = field(converter=_parts, validator=instances(*get_args(Part)))

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            invalid("parts", "a message says something: give it at least one part")

    @property
    def text(self) -> str:
        """All text of the message, joined."""
        return text_of(self.parts)


def text_of(parts: Iterable[Part]) -> str:
    """Join the plain text of some parts.

    >>> text_of((Text("a"), Reasoning("hm"), Text("b")))
    'ab'
    """
    return "".join(part.text for part in parts if isinstance(part, Text))
