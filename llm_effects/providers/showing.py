"""Which pictures and documents a model can be shown: kinds and sizes, as rows of data."""

from collections.abc import Mapping
from typing import Final, final

from attrs import frozen

from llm_effects.config import Family
from llm_effects.messages import Document, Image, Part
from llm_effects.providers.targets import Target

_MB: Final = 2**20
_ALL_PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@final
@frozen(kw_only=True)
class _Takes:
    """Media types, and bytes at the most, of one picture and of one document that is no plain text.

    A size is counted in base64, as it goes over the wire; ``None`` is unknown, which passes.
    """

    pictures: frozenset[str] | None = None
    picture_bytes: int | None = None
    documents: frozenset[str] | None = None
    document_bytes: int | None = None


# Anthropic: the guides to vision (5 MB a picture) and to PDF support (32 MB a request). OpenAI: the guides to images
# and to file inputs (50 MB a request).
_TAKES: Final[Mapping[Family, _Takes]] = {
    "claude": _Takes(
        pictures=_ALL_PICTURES,
        picture_bytes=5 * _MB,
        documents=frozenset({"application/pdf"}),
        document_bytes=32 * _MB,
    ),
    "gpt": _Takes(
        pictures=_ALL_PICTURES,
        picture_bytes=50 * _MB,
        documents=frozenset({"application/pdf"}),
        document_bytes=50 * _MB,
    ),
}


def unshowable(target: Target, part: Part) -> str:
    """Say why a model cannot be shown a part, or nothing.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")).unwrap()
    >>> unshowable(claude, Image(b"BM", "image/bmp"))
    'it does not take image/bmp'
    """
    can, takes = target.capabilities, _TAKES.get(target.preset.family, _Takes())
    match part:
        case Image():
            if can.images is False:
                return "it does not take images"
            return _fetching(target, part) or _refused(part, takes.pictures, takes.picture_bytes)
        case Document(plain=False):
            if can.documents is False:
                return "it does not take documents, but for plain text"
            return _fetching(target, part) or _refused(part, takes.documents, takes.document_bytes)
        case _:
            return ""


def _fetching(target: Target, part: Image | Document) -> str:
    """The model in this process fetches nothing, and chat completions no document."""
    if part.url is None:
        return ""
    if target.preset.wire == "llama":
        return "it does not fetch what is at a URL"
    by_chat = target.preset.wire == "openai-chat" and not target.preset.responses
    return "it does not fetch documents" if by_chat and isinstance(part, Document) else ""


def _refused(part: Image | Document, kinds: frozenset[str] | None, most: int | None) -> str:
    if part.data is None:
        return ""
    if kinds is not None and part.media_type not in kinds:
        return f"it does not take {part.media_type}"
    size = (len(part.data) + 2) // 3 * 4
    too_large = most is not None and size > most
    return f"{part.media_type} of {size} bytes, as it is sent, is more than its {most}" if too_large else ""
