"""What is shown to a model beside text: pictures and documents, as bytes or as a URL."""

import re
from base64 import b64decode
from typing import Final, final
from urllib.parse import unquote, unquote_to_bytes

from attrs import field, frozen

from llm_effects.media import media_type_of
from llm_effects.values import instance, invalid, shown, text

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
