"""Messages and their parts, to and from a model."""

import re
import struct
from base64 import b64decode
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, final, get_args
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from attrs import Attribute, evolve, field, frozen

from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.validation import (
    METADATA_HOST,
    explain_arguments,
    instance,
    instances,
    invalid,
    is_metadata_host,
    number,
    one_of,
    short_repr,
    text,
    to_tuple,
)
from llm_effects.values.value import Value

# The label of what must not leave this machine.

Stays: TypeAlias = Literal["machine"]
"""Where some content stays: on this ``machine``. Only models that run on it receive that, or what is made of it."""


def valid_stays(_: object, attribute: "Attribute[Stays | None]", value: object) -> None:
    """Accept the label or ``None``; a validator of attrs."""
    if value is not None and value != "machine":
        invalid(attribute.name, f"must be 'machine' or None, not {short_repr(value)}")


# Media: the type of some bytes, the size of a picture, the pages of a document.


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

# Patterns, each compiled by its first use.
_PNG: Final = rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{8})"
_GIF: Final = rb"GIF8[79]a(.{4})"
_WEBP: Final = rb"RIFF.{4}WEBPVP8(?: .{10}(?P<lossy>.{4})|L.{5}(?P<lossless>.{4})|X.{8}(?P<extended>.{6}))"
_SEGMENT: Final = re.compile(rb"\xff++([\x01-\xfe])(..)?", re.DOTALL)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers whose segment holds the size
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a segment

_PAGE: Final = rb"/Type\s*+/Page(?![a-zA-Z])"


def media_type_of(data: bytes) -> str | None:
    """Return the media type of a picture or a PDF, by its first bytes; ``None`` for anything else.

    >>> media_type_of(b"%PDF-1.7 ..."), media_type_of(b"plain")
    ('application/pdf', None)
    """
    return next((media_type for magic, media_type in _MAGIC if re.match(magic, data, re.DOTALL)), None)


def dimensions_of(data: bytes) -> tuple[int, int] | None:
    """Return the width and height of a PNG, GIF, JPEG or WebP in pixels, from its header; ``None`` if it has none.

    >>> dimensions_of(b"GIF89a" + bytes([64, 1, 240, 0]))
    (320, 240)
    """
    if png := re.match(_PNG, data, re.DOTALL):
        width, height = struct.unpack(">II", png[1])
        return width, height
    if gif := re.match(_GIF, data, re.DOTALL):
        width, height = struct.unpack("<HH", gif[1])
        return width, height
    return _jpeg_size(data) if data.startswith(b"\xff\xd8") else _webp_size(data)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the size as in RFC 9649: three kinds of chunk, each with its own encoding."""
    match = re.match(_WEBP, data, re.DOTALL)
    if match is None:
        return None
    if lossy := match["lossy"]:
        width, height = struct.unpack("<HH", lossy)
        return width & 0x3FFF, height & 0x3FFF
    if lossless := match["lossless"]:
        bits = int.from_bytes(lossless, "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(match["extended"][:3], "little") + 1, int.from_bytes(match["extended"][3:], "little") + 1


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk through the segments (ITU T.81, annex B) up to the one with the size; a picture has few before it."""
    position = 2
    for _ in range(caps.PICTURE_SEGMENTS):
        segment = _SEGMENT.match(data, position)
        if segment is None:
            return None
        marker = segment[1][0]
        start = position = segment.end(1)
        if marker in _BARE:
            continue
        if marker in _FRAMES and len(data) >= start + 7:
            height, width = struct.unpack_from(">HH", data, start + 3)
            return width, height
        if segment[2] is None or marker == 0xDA:
            return None
        position = start + max(2, int.from_bytes(segment[2], "big"))
    return None


def page_count(data: bytes) -> int:
    """Return the number of pages of a PDF that are visible without decompressing it; at least 1.

    >>> page_count(b"%PDF-1.4 << /Type /Pages >> << /Type /Page >> << /Type/Page >>")
    2
    """
    return max(1, sum(1 for _ in re.finditer(_PAGE, data)))


# Pictures and documents, as bytes or as a URL.


_PLAIN_TYPES: Final = ("text/", "application/json", "application/xml", "application/yaml", "application/toml")
_WEB_SCHEMES: Final = ("http://", "https://")
_DATA_URL: Final = r"data:([^;,]*)(?:;(?!base64,)[^;,]*)*(;base64)?,(.*)"
"""RFC 2397: a media type, its parameters, and the data."""

_STANDARD_TYPES: Final = {"image/jpg": "image/jpeg", "image/heif": "image/heic"}
"""Standard names of media types for the aliases that not every provider knows."""


@final
@frozen(eq=False, repr=False)
class Image(Value):
    """A picture, as bytes with their media type (``image/png``) or as a URL that the provider fetches.

    The media type of common pictures is read from their bytes; a different ``media_type`` is rejected. A ``data:`` URL
    is replaced by the bytes in it.

    >>> Image(url="data:image/gif;base64,R0lGODlh").data
    b'GIF89a'
    """

    data: bytes | None = field(default=None, validator=instance(bytes), repr=False)
    media_type: str | None = field(default=None, validator=text())
    url: str | None = field(default=None, validator=text())
    cache: bool = field(default=False, validator=instance(bool), kw_only=True)
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_source(self)
        if self.data is not None and not (self.media_type or "").startswith("image/"):
            invalid("media_type", f"must be that of a picture, not {self.media_type}: use a Document")


@final
@frozen(eq=False, repr=False)
class Document(Value):
    """A document, as bytes with their media type (``application/pdf``, ``text/plain``) or as a URL to fetch.

    ``title`` is its name. ``cite`` asks the model to cite it, if the provider supports that.
    """

    data: bytes | None = field(default=None, validator=instance(bytes), repr=False)
    media_type: str | None = field(default=None, validator=text())
    url: str | None = field(default=None, validator=text())
    title: str | None = field(default=None, validator=text())
    cite: bool = field(default=False, validator=instance(bool))
    cache: bool = field(default=False, validator=instance(bool), kw_only=True)
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_source(self)
        if (self.media_type or "").startswith("image/"):
            invalid("media_type", f"must be that of a document, not {self.media_type}: use an Image")
        if self.plain and self.data is not None:
            _check_utf8(self.data)

    @property
    def plain(self) -> bool:
        """Whether it is text, which every model can read."""
        return self.data is not None and (self.media_type or "").startswith(_PLAIN_TYPES)

    @property
    def text(self) -> str:
        """The text of a plain document, else an empty one."""
        return (self.data or b"").decode() if self.plain else ""


def _check_source(part: Image | Document) -> None:
    """Require either bytes of a known media type or a URL that a provider can fetch."""
    if (part.data is None) == (part.url is None):
        invalid("data", "give either data (with media_type) or url, and only one of them")
    if part.url is not None and part.url[:5].lower() == "data:":
        _decode_data_url(part, part.url)
    elif part.url is not None and not part.url.lower().startswith(_WEB_SCHEMES):
        invalid("url", f"must begin with https:// or data:, not {short_repr(part.url)}: read a file with read_image")
    elif part.url is not None and is_metadata_host(_host_of(part.url)):
        invalid("url", f"{METADATA_HOST}: no server is asked to fetch it")
    if part.data is None:
        return
    detected, declared = media_type_of(part.data), (part.media_type or "").lower()
    media_type = _STANDARD_TYPES.get(declared, declared) or detected
    if media_type is None:
        invalid("media_type", "give the type of the data, such as 'image/png'")
    if detected not in {None, media_type}:
        invalid("media_type", f"the data is {detected}, not {part.media_type}")
    object.__setattr__(part, "media_type", media_type)


def _host_of(url: str) -> str:
    """Return the host that a lenient reader finds in a web URL, as browsers and some servers read it."""
    try:
        return urlsplit(re.sub(r"(?i)^(https?:)/*", r"\1//", url.replace("\\", "/"))).hostname or ""
    except ValueError:  # no reader finds one
        return ""


def _decode_data_url(part: Image | Document, url: str) -> None:
    """Move the data out of the URL: its type and size become known, and it stays out of reprs and logs."""
    match = re.fullmatch(_DATA_URL, url, re.DOTALL | re.IGNORECASE)
    if match is None:
        invalid("url", "must have a comma before its data")
    media_type, base64, body = match.groups()
    try:
        data = b64decode("".join(unquote(body).split()), validate=True) if base64 else unquote_to_bytes(body)
    except ValueError:
        invalid("url", "must have base64 after its comma")
    for name, value in {"data": data, "media_type": part.media_type or media_type or None, "url": None}.items():
        object.__setattr__(part, name, value)


def _check_utf8(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as problem:
        invalid("data", f"must be UTF-8, but byte {problem.start} is not: encode the text in UTF-8")


# Messages.


Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
"""The author of a message."""

_ANY_TEXT: Final = text(empty=True)


@final
@frozen(eq=False, repr=False)
class Origin(Value):
    """The provider and model that made an opaque part; no other can read it."""

    provider: str = field(validator=_ANY_TEXT)
    model: str = field(validator=_ANY_TEXT)


@final
@frozen(kw_only=True, eq=False, repr=False)
class Citation(Value):
    """The source of a passage of an answer.

    The passage goes from ``start`` up to ``end``, in characters of the part's text. ``quote`` is the cited text,
    ``title`` and ``url`` describe its source, ``document`` is the index of that document in the request, from 0.
    ``source`` is the provider's own record (JSON text), unchanged.
    """

    start: int = field(validator=number(at_least=0, whole=True))
    end: int = field(validator=number(at_least=0, whole=True))
    quote: str = field(default="", validator=_ANY_TEXT)
    title: str | None = field(default=None, validator=_ANY_TEXT)
    url: str | None = field(default=None, validator=_ANY_TEXT)
    document: int | None = field(default=None, validator=number(at_least=0, whole=True))
    source: str = field(default="", validator=_ANY_TEXT, repr=False)


def _citations(value: Iterable[Citation]) -> tuple[Citation, ...]:
    return to_tuple("citations", value)


@final
@frozen
class Text:
    """Plain text; the text of an answer may have ``citations``.

    ``cache`` marks the end of a prefix that later requests share, for providers that cache at marks. ``stays`` keeps
    the text, and all that is made of it, on this machine: only models that run on it are asked. The other parts have
    both too, where they make sense.

    >>> Text("disk is 97 % full").text
    'disk is 97 % full'
    """

    __repr__ = shown

    text: str = field(validator=_ANY_TEXT)
    citations: tuple[Citation, ...] = field(default=(), converter=_citations, validator=instances(Citation), repr=False)
    cache: bool = field(default=False, validator=instance(bool), kw_only=True)
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)


@final
@frozen(eq=False, repr=False)
class Reasoning(Value):
    """A model's reasoning. ``opaque`` is the provider's own block (JSON text), replayed byte for byte.

    ``opaque`` is sent only to its ``origin``; for any other model it is removed.
    """

    text: str = field(default="", validator=_ANY_TEXT)
    opaque: str | None = field(default=None, validator=_ANY_TEXT, repr=False)
    origin: Origin | None = field(default=None, validator=instance(Origin))
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)


@final
@frozen(eq=False, repr=False)
class ToolCall(Value):
    """A model's call of a tool. ``arguments`` is the JSON text as received, valid or not."""

    id: str = field(validator=text())
    name: str = field(validator=text())
    arguments: str = field(default="{}", validator=_ANY_TEXT)
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)


@final
@frozen(eq=False, repr=False)
class ToolResult(Value):
    """The result of the tool call ``call_id``.

    One that is not ``trusted`` holds content that others wrote, such as a web page or a mail. No model receives this
    mark; policies of approval do.
    """

    call_id: str = field(validator=text())
    content: str = field(default="", validator=_ANY_TEXT)
    is_error: bool = field(default=False, validator=instance(bool))
    cache: bool = field(default=False, validator=instance(bool), kw_only=True)
    trusted: bool = field(default=True, validator=instance(bool), kw_only=True)
    stays: Stays | None = field(default=None, validator=valid_stays, kw_only=True)


Part: TypeAlias = Text | Image | Document | Reasoning | ToolCall | ToolResult
"""One piece of a message."""


def _parts(value: str | Part | Iterable[Part]) -> tuple[Part, ...]:
    if isinstance(value, str):
        return (Text(value),)
    return (value,) if isinstance(value, Part) else to_tuple("parts", value)


@final
@frozen
class Message:
    """One message. A bare text is short for one ``Text`` part.

    >>> Message("user", "why is p99 up?")
    Message(role='user', parts=(Text(text='why is p99 up?'),))
    """

    __repr__ = shown

    role: Role = field(validator=one_of(*get_args(Role)))
    parts: tuple[Part, ...] = field(converter=_parts, validator=instances(*get_args(Part)))

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            invalid("parts", "must not be empty: give at least one part")

    @property
    def text(self) -> str:
        """All text of the message, joined."""
        return text_of(self.parts)


explain_arguments(
    Message,
    'Message("user", "why?")',
    {
        **dict.fromkeys(("content", "text"), 'the text is its parts, as in Message("user", "why?")'),
        "stays": 'write it on a part, as in Text("why?", stays="machine")',
    },
)


def text_of(parts: Iterable[Part]) -> str:
    """Return the plain text of some parts, joined.

    >>> text_of((Text("a"), Reasoning("hm"), Text("b")))
    'ab'
    """
    return "".join(part.text for part in parts if isinstance(part, Text))


def stays_of(parts: Iterable[Part]) -> Stays | None:
    """Return the label of some parts together: that of any of them.

    >>> stays_of((Text("a"), Text("b", stays="machine"))), stays_of((Text("a"),))
    ('machine', None)
    """
    return next((part.stays for part in parts if part.stays is not None), None)


def staying(message: Message, stays: Stays | None) -> Message:
    """Return a message of which each part has the label, if there is one.

    >>> staying(Message("user", "why?"), "machine").parts
    (Text(text='why?', stays='machine'),)
    """
    return message if stays is None else evolve(message, parts=staying_parts(message.parts, stays))


def staying_parts(parts: Iterable[Part], stays: Stays | None) -> tuple[Part, ...]:
    """Return the parts, each with the label if there is one."""
    return tuple(part if stays in {None, part.stays} else evolve(part, stays=stays) for part in parts)
