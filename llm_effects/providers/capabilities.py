"""The capabilities of models, as rows of data: the first pattern that matches a model's name wins.

A row holds only what is known; ``None`` is unknown and passes every filter. The configuration takes precedence over
any row, field by field.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, final, get_args

import attrs
from attrs import frozen

from llm_effects.config.models import Capabilities, Family, ModelConfig
from llm_effects.providers.target import Preset, Target
from llm_effects.values.messages import Document, Image, Part
from llm_effects.values.requests import ReasoningEffort
from llm_effects.values.value import Value

_MILLION: Final = 1_000_000

_GPT: Final = Capabilities(images=True, documents=True, schema=True, prefill=False)
_REASONING_GPT: Final = attrs.evolve(_GPT, reasoning=True, sampling=False, tools=True)
_GPT_5_6: Final = attrs.evolve(_REASONING_GPT, context_length=1_050_000, max_output=128_000)
_OPT_IN_GPT: Final = attrs.evolve(_GPT, reasoning=True, sampling=True, tools=True)
_PLAIN_GPT: Final = attrs.evolve(_GPT, reasoning=False, sampling=True, tools=True)

_GPT_ROWS: Final[tuple[tuple[str, Capabilities], ...]] = (
    (r"gpt-6|gpt-5\.6", _GPT_5_6),
    (r"gpt-5\.5", attrs.evolve(_REASONING_GPT, context_length=_MILLION)),
    (r"gpt-5\.4-(mini|nano)", attrs.evolve(_OPT_IN_GPT, context_length=400_000)),
    (r"gpt-5\.4", attrs.evolve(_OPT_IN_GPT, context_length=1_050_000)),
    (r"gpt-5\.[1-3]", _OPT_IN_GPT),
    (r"gpt-5(?!\.)", _REASONING_GPT),
    (r"o[1-9](-|$)", attrs.evolve(_REASONING_GPT, images=None, documents=None, schema=None)),
    (r"gpt-4\.1", attrs.evolve(_PLAIN_GPT, context_length=_MILLION)),
    (r"gpt-4o", _PLAIN_GPT),
)

_CLAUDE: Final = Capabilities(
    tools=True, images=True, documents=True, schema=True, reasoning=True, sampling=False, prefill=False
)
_CLAUDE_5: Final = attrs.evolve(_CLAUDE, context_length=_MILLION, max_output=128_000)
_CLAUDE_4_6: Final = attrs.evolve(_CLAUDE, sampling=True)
_CLAUDE_4_5: Final = attrs.evolve(_CLAUDE, sampling=True, prefill=True)
_CLAUDE_4: Final = attrs.evolve(_CLAUDE_4_5, schema=False)

_CLAUDE_ROWS: Final[tuple[tuple[str, Capabilities], ...]] = (
    (r"claude-(fable|mythos)-5-[12]|claude-(opus|sonnet|haiku)-5-5|claude-opus-5", _CLAUDE_5),
    (r"claude-(fable|mythos|sonnet-5|haiku-5)", _CLAUDE),
    (r"claude-opus-4-7", _CLAUDE_5),
    (r"claude-opus-4-[89]", _CLAUDE),
    (r"claude-sonnet-4-6", attrs.evolve(_CLAUDE_4_6, context_length=_MILLION, max_output=128_000)),
    (r"claude-opus-4-6", _CLAUDE_4_6),
    (r"claude-haiku-4-5", attrs.evolve(_CLAUDE_4_5, context_length=200_000, max_output=64_000)),
    (r"claude-(opus|sonnet)-4-5", _CLAUDE_4_5),
    (r"claude-(opus|sonnet)-4|claude-3-7", _CLAUDE_4),
    (r"claude-(3|2|instant)", attrs.evolve(_CLAUDE_4, reasoning=False, documents=None)),
)

_ROWS: Final = {"gpt": _GPT_ROWS, "claude": _CLAUDE_ROWS}


def capabilities_of(preset: Preset, model: ModelConfig) -> Capabilities:
    """Return what a configured model can do, from its configuration first, then from the row of its name.

    >>> gpt, claude = Preset(name="openai", wire="openai-chat", family="gpt"), Preset(
    ...     name="anthropic", wire="anthropic", family="claude"
    ... )
    >>> capabilities_of(gpt, ModelConfig(provider="openai", model="gpt-6-luna")).context_length
    1050000
    >>> capabilities_of(claude, ModelConfig(provider="anthropic", model="claude-haiku-4-5")).sampling
    False
    """
    configured = _first_known(model.capabilities, Capabilities(context_length=model.context_length))
    return _first_known(configured, _by_wire(preset, model, _row(preset.family, model.model or "")))


_EMBEDDER: Final = Capabilities(
    embeddings=True, tools=False, images=False, documents=False, schema=False, reasoning=False, prefill=False
)


def _row(family: str, name: str) -> Capabilities:
    if "embed" in name.lower():  # in the names of nearly all embedding models
        return _EMBEDDER
    rows = _ROWS.get(family, ())
    bare = name.rpartition("/")[2]
    return next((row for pattern, row in rows if re.match(pattern, bare)), Capabilities())


def _by_wire(preset: Preset, model: ModelConfig, row: Capabilities) -> Capabilities:
    """Apply the limits of a protocol to a model's row.

    The in-process model sees no images: its projector is not loaded. The newer version of Anthropic's protocol accepts
    no sampling settings, and chat completions do not accept tools for every model.
    """
    if preset.wire == "llama":
        return attrs.evolve(row, images=False, documents=False)
    if preset.family == "local":
        return attrs.evolve(row, documents=False)
    if preset.wire == "anthropic" and model.wire_version != "2023-06-01":
        return attrs.evolve(row, sampling=False)
    if preset.family == "gpt" and preset.wire == "openai-chat" and not preset.responses:
        toolless = gpt_rules(model.model or "").responses in {"tools", "always"}
        return attrs.evolve(row, tools=False) if toolless else row
    return row


def _first_known(first: Capabilities, second: Capabilities) -> Capabilities:
    known = attrs.asdict(first, filter=lambda _, value: value is not None)
    return attrs.evolve(second, **known)


@final
@frozen(kw_only=True, eq=False, repr=False)
class ClaudeRules(Value):
    """The reasoning settings of a Claude model.

    ``thinking`` is ``adaptive`` (set by effort), ``budget`` (set in tokens) or ``never``; ``off`` is the value that
    switches it off, ``None`` where it is always on. ``by_default``: the model reasons without being asked to;
    ``xhigh``: it accepts that effort; ``forced_choice``: it can be forced to call a tool.
    """

    thinking: Literal["adaptive", "budget", "never"] = "adaptive"
    off: Literal["disabled", "between_tools"] | None = "disabled"
    by_default: bool = True
    xhigh: bool = True
    forced_choice: bool = True


_OLD: Final = ClaudeRules(thinking="budget", by_default=False, xhigh=False)

_CLAUDE_RULES: Final[tuple[tuple[str, ClaudeRules], ...]] = (
    (r"claude-(fable|mythos)-5-[12]|claude-opus-5-5", ClaudeRules(off=None, forced_choice=False)),
    (r"claude-(fable|mythos)", ClaudeRules(off=None)),
    (r"claude-sonnet-5-5", ClaudeRules(off="between_tools", forced_choice=False)),
    (r"claude-(opus|sonnet|haiku)-5", ClaudeRules()),
    (r"claude-opus-4-[7-9]", ClaudeRules(by_default=False)),
    (r"claude-(opus|sonnet)-4-6", ClaudeRules(by_default=False, xhigh=False)),
    (r"claude-(opus|sonnet|haiku)-4|claude-3-7", _OLD),
    (r"claude-(3|2|instant)", attrs.evolve(_OLD, thinking="never")),
)


@lru_cache(maxsize=256)
def claude_rules(name: str) -> ClaudeRules:
    """Return the rules of a Claude model by its name; an unknown model gets those of the newest.

    >>> claude_rules("claude-sonnet-5-5").off
    'between_tools'
    """
    bare = name.rpartition("/")[2]
    return next((rules for pattern, rules in _CLAUDE_RULES if re.match(pattern, bare)), ClaudeRules())


EFFORTS: Final[tuple[ReasoningEffort, ...]] = get_args(ReasoningEffort)
"""All efforts, in ascending order."""


def nearest_effort(effort: ReasoningEffort, accepted: tuple[ReasoningEffort, ...]) -> ReasoningEffort:
    """Return the next higher effort that a model accepts, or else the highest.

    >>> nearest_effort("minimal", ("none", "low", "high")), nearest_effort("max", ("low", "high"))
    ('low', 'high')
    """
    for candidate in accepted:
        if EFFORTS.index(candidate) > EFFORTS.index(effort):
            return candidate
    return accepted[-1]


@final
@frozen(kw_only=True, eq=False, repr=False)
class GptRules(Value):
    """The protocol that a GPT model needs, and the efforts that it accepts.

    ``responses`` is when a request needs Responses instead of chat completions: ``never``, with ``tools``, with tools
    and any effort but ``none`` (``thinking_tools``), or ``always``. ``efforts`` are in ascending order.
    """

    responses: Literal["never", "thinking_tools", "tools", "always"] = "never"
    efforts: tuple[ReasoningEffort, ...] = EFFORTS


_ALWAYS_THINKS: Final = EFFORTS[EFFORTS.index("low") :]
_NO_MINIMAL: Final = ("none", *_ALWAYS_THINKS)

_GPT_RULES: Final[tuple[tuple[str, GptRules], ...]] = (
    (r"gpt-5-pro", GptRules(responses="always", efforts=("high",))),
    (r"codex-|(gpt-|o\d).*(-pro|-codex|-deep-research)(-|$)", GptRules(responses="always")),
    (r"gpt-6\.2|gpt-6\.1-sol|gpt-6-astra", GptRules(responses="tools", efforts=_ALWAYS_THINKS)),
    (r"gpt-[6-9]|gpt-5\.[6-9]", GptRules(responses="thinking_tools", efforts=_NO_MINIMAL)),
    (r"gpt-5\.[45]", GptRules(responses="thinking_tools")),
    (r"gpt-5(?!\.)", GptRules(efforts=("minimal", "low", "medium", "high"))),
    (r"o[1-9](-|$)", GptRules(efforts=("low", "medium", "high"))),
)


@lru_cache(maxsize=256)
def gpt_rules(name: str) -> GptRules:
    """Return the rules of a GPT model by its name; nothing is assumed about an unknown one.

    >>> gpt_rules("gpt-6.2-astra").responses, gpt_rules("gpt-4o").responses
    ('tools', 'never')
    """
    bare = name.rpartition("/")[2]
    return next((rules for pattern, rules in _GPT_RULES if re.match(pattern, bare)), GptRules())


# --- Images and documents that a model accepts: media types and sizes, as rows of data

_MB: Final = 2**20
_IMAGE_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@final
@frozen(kw_only=True, eq=False, repr=False)
class _MediaSupport(Value):
    """The media types, and the most bytes, of one image and of one document that is not plain text.

    Sizes count the base64 text that is sent; ``None`` is unknown, which passes.
    """

    images: frozenset[str] | None = None
    image_bytes: int | None = None
    documents: frozenset[str] | None = None
    document_bytes: int | None = None


# Anthropic: the guides to vision (5 MB an image) and to PDF support (32 MB a request). OpenAI: the guides to images
# and to file inputs (50 MB a request).
_MEDIA_SUPPORT: Final[Mapping[Family, _MediaSupport]] = {
    "claude": _MediaSupport(
        images=_IMAGE_TYPES,
        image_bytes=5 * _MB,
        documents=frozenset({"application/pdf"}),
        document_bytes=32 * _MB,
    ),
    "gpt": _MediaSupport(
        images=_IMAGE_TYPES,
        image_bytes=50 * _MB,
        documents=frozenset({"application/pdf"}),
        document_bytes=50 * _MB,
    ),
}


def unsupported_media(target: Target, part: Part) -> str:
    """Return why a model does not accept an image or a document, or an empty text.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")).unwrap()
    >>> unsupported_media(claude, Image(b"BM", "image/bmp"))
    'it does not take image/bmp'
    """
    can, support = target.capabilities, _MEDIA_SUPPORT.get(target.preset.family, _MediaSupport())
    match part:
        case Image():
            if can.images is False:
                return "it does not take images"
            return _fetch_problem(target, part) or _data_problem(part, support.images, support.image_bytes)
        case Document(plain=False):
            if can.documents is False:
                return "it does not take documents except plain text"
            return _fetch_problem(target, part) or _data_problem(part, support.documents, support.document_bytes)
        case _:
            return ""


def _fetch_problem(target: Target, part: Image | Document) -> str:
    """Return why a URL is not fetched: not by the in-process model, and for documents not by chat completions."""
    if part.url is None:
        return ""
    if target.preset.wire == "llama":
        return "it does not fetch URLs"
    by_chat = target.preset.wire == "openai-chat" and not target.preset.responses
    return "it does not fetch documents" if by_chat and isinstance(part, Document) else ""


def _data_problem(part: Image | Document, types: frozenset[str] | None, limit: int | None) -> str:
    if part.data is None:
        return ""
    if types is not None and part.media_type not in types:
        return f"it does not take {part.media_type}"
    size = (len(part.data) + 2) // 3 * 4
    too_large = limit is not None and size > limit
    return f"{part.media_type} of {size} bytes, as sent, is more than its {limit}" if too_large else ""
