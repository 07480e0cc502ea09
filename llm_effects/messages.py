"""Messages and their parts: what is said to a model and what it says back."""

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, final, get_args

from attrs import field, frozen

from llm_effects.attachments import Document, Image
from llm_effects.values import instance, instances, invalid, number, one_of, text, to_tuple

__all__ = (
    "Citation",
    "Document",
    "Image",
    "Message",
    "Origin",
    "Part",
    "Reasoning",
    "Role",
    "Text",
    "ToolCall",
    "ToolResult",
    "text_of",
)

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
