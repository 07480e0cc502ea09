"""Encoding that the protocols share: checks of messages, tool calls, media and settings."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final, TypeAlias

import msgspec
from attrs import evolve

from llm_effects.providers.target import Target
from llm_effects.values.errors import InvalidRequest
from llm_effects.values.json import as_list, as_object, as_string, dump, json_text, parse
from llm_effects.values.messages import (
    Document,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
)
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.validation import short_repr

Encoded: TypeAlias = Mapping[str, object] | msgspec.Raw
"""A JSON object to send; a raw one is sent byte for byte as it was received."""

Settings: TypeAlias = tuple[Mapping[str, object], tuple[str, ...]]
"""Fields of a body, and warnings about what was dropped or changed to encode them."""

NO_SETTINGS: Final[Settings] = ({}, ())


# --- Checks of messages

_PARTS_OF_ROLE: Final[Mapping[Role, tuple[type[Part], ...]]] = {
    "system": (Text,),
    "user": (Text, Image, Document, ToolResult),
    "tool": (Text, Image, Document, ToolResult),
    "assistant": (Text, Reasoning, ToolCall),
}


def misplaced_part(request: LLMRequest) -> str | None:
    """Return the problem of the first part that its message cannot hold, with the remedy.

    >>> from llm_effects import Message
    >>> misplaced_part(LLMRequest(messages=(Message("user", (ToolCall("id", "weather"),)),)))
    "messages[0].parts[0]: a message of role 'user' holds Text or Image or Document or ToolResult"
    """
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            if type(part) not in _PARTS_OF_ROLE[message.role]:
                kinds = " or ".join(kind.__name__ for kind in _PARTS_OF_ROLE[message.role])
                return f"messages[{at}].parts[{place}]: a message of role {message.role!r} holds {kinds}"
    return None


def unpaired_call(request: LLMRequest) -> str | None:
    """Return the problem of the first tool call without a result, or result without a call, with the remedy.

    Providers refuse such a conversation, or return an empty answer.

    >>> from llm_effects import Message
    >>> call = Message("assistant", (ToolCall("id", "weather"),))
    >>> unpaired_call(LLMRequest(messages=(Message("user", "hm?"), call, Message("user", "well?"))))
    "messages[1].parts[0]: the call 'id' has no result: add a ToolResult for it, or remove the call"
    """
    waiting: dict[str, str] = {}
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            here = f"messages[{at}].parts[{place}]"
            if isinstance(part, ToolCall):
                waiting[part.id] = here
            elif isinstance(part, ToolResult) and waiting.pop(part.call_id, None) is None:
                return f"{here}: no call {short_repr(part.call_id)} before it waits for a result: remove the result"
    first = next(iter(waiting.items()), None)
    remedy = "add a ToolResult for it, or remove the call"
    return None if first is None else f"{first[1]}: the call {short_repr(first[0])} has no result: {remedy}"


def message_problem(request: LLMRequest, turns: Sequence[object]) -> str | None:
    """Return the problem of the messages that were encoded as these turns, if there is one."""
    empty = None if turns else "messages: there is nothing to send: end with a user message"
    return misplaced_part(request) or empty or unpaired_call(request)


def invalid(target: Target, request: LLMRequest, message: str) -> InvalidRequest:
    """Return the error of a request that cannot be encoded for this target."""
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message, request=request)


# --- Tools and tool calls

_SHORT_ID: Final = r"[a-zA-Z0-9]{9}"


def tool_head(tool: Tool) -> dict[str, object]:
    """Return the name of a tool, and its description if it has one."""
    return {"name": tool.name, **({"description": tool.description} if tool.description else {})}


def encode_arguments(arguments: str) -> str:
    r"""Return the arguments of a call as the JSON text of an object: some servers fail on anything else.

    Malformed arguments are wrapped, so that the model can see its mistake; an empty text stands for no arguments.

    >>> encode_arguments(' {"q":1}'), encode_arguments(""), encode_arguments('{"q":')
    ('{"q":1}', '{}', '{"INVALID_JSON":"{\\"q\\":"}')
    """
    value = parse(arguments)
    if value == {} or as_object(value):
        return arguments.strip()
    return "{}" if arguments.strip() in {"", "null"} else dump({"INVALID_JSON": arguments}).decode()


def shorten_call_ids(request: LLMRequest) -> LLMRequest:
    """Replace the id of every call and its result by nine letters and digits, always the same for the same id.

    Mistral refuses other ids, and so any conversation that another provider started.

    >>> from llm_effects.values.messages import Message
    >>> turns = (Message("assistant", ToolCall("call_0", "look")), Message("tool", ToolResult("call_0")))
    >>> [message.parts[0] for message in shorten_call_ids(LLMRequest(messages=turns)).messages]
    [ToolCall(id='c557a85a0', name='look'), ToolResult(call_id='c557a85a0')]
    """
    return evolve(request, messages=tuple(map(_short_message, request.messages))) if request.messages else request


def _short_message(message: Message) -> Message:
    return evolve(message, parts=tuple(map(_short_part, message.parts)))


def _short_part(part: Part) -> Part:
    if isinstance(part, ToolCall):
        return evolve(part, id=_short_id(part.id))
    return evolve(part, call_id=_short_id(part.call_id)) if isinstance(part, ToolResult) else part


def _short_id(call_id: str) -> str:
    if re.fullmatch(_SHORT_ID, call_id):
        return call_id
    return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]


# --- Thinking that goes back to its server
#
# In chat completions it has no form of its own: it is in fields of the message (DeepSeek, GLM and Qwen: a text;
# OpenRouter: a list) and, at Gemini, in a field of each tool call. A part of reasoning seals the fields of a message,
# or those of one call together with its id.


@lru_cache(maxsize=1024)
def own_origin(target: Target) -> Origin | None:
    """Return the only origin whose sealed thinking may be sent to the target: the same model at the same provider."""
    return None if target.wire_model is None else Origin(target.preset.name, target.wire_model)


_ALIAS: Final = r"(?:-0|-latest|-20\d{6})$"


def is_same_model(origin: Origin, target: Target) -> bool:
    """Return whether Claude's thinking comes from the target: it may be configured by an alias, without a date.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("c", ModelConfig(provider="anthropic", model="claude-haiku-4-5", api_key="k")).unwrap()
    >>> is_same_model(Origin("anthropic", "claude-haiku-4-5-20251001"), claude)
    True
    """
    model = re.sub(_ALIAS, "", target.wire_model or target.name)
    return origin.provider == target.preset.name and re.sub(_ALIAS, "", origin.model) == model


def collect_sealed(sealed: dict[str, list[object]], message: Mapping[str, object], *, complete: bool) -> None:
    """Collect the fields of a ``complete`` message, or of a piece of one, that its server wants back."""
    thought, details, extra = (message.get(name) for name in ("reasoning_content", "reasoning_details", _EXTRA))
    if isinstance(thought, str):
        sealed.setdefault("reasoning_content", []).append(thought)
    if fragments := as_list(details):
        sealed.setdefault("reasoning_details" if complete else _FRAGMENTS, []).extend(fragments)
    if any(as_object(each).get("thought_signature") for each in as_object(extra).values()):
        sealed.setdefault(_EXTRA, []).append(extra)


def seal_message(sealed: Mapping[str, list[object]], *, calls: bool) -> str | None:
    """Return the collected fields as JSON text; an empty thought counts only with ``calls``, where servers require it.

    >>> seal_message({"reasoning_content": ["h", "m"]}, calls=False)
    '{"reasoning_content":"hm"}'
    """
    thought = "".join(map(as_string, sealed.get("reasoning_content", ())))
    details = (*sealed.get("reasoning_details", ()), *_merge_fragments(sealed.get(_FRAGMENTS, ())))
    extras = sealed.get(_EXTRA, ())
    fields = {
        **({"reasoning_details": details} if details else {}),
        **({"reasoning_content": thought} if thought or (calls and "reasoning_content" in sealed) else {}),
        **({_EXTRA: extras[-1]} if extras else {}),
    }
    return json_text(fields) if fields else None


def seal_call(call_id: str, extra: str) -> str:
    """Return the extra content of a tool call (JSON text) together with the id of the call."""
    return json_text({_CALL: call_id, _EXTRA: msgspec.Raw(extra.encode())})


Sealed: TypeAlias = Mapping[str, msgspec.Raw]
"""Fields to send back byte for byte."""


def unseal(parts: Iterable[Part], origin: Origin | None) -> tuple[Sealed, Mapping[str, Sealed]]:
    """Return the fields of a message, and those of its calls by id, that the ``origin`` itself made."""
    message, calls = dict[str, msgspec.Raw](), dict[str, Sealed]()
    for part in parts:
        if isinstance(part, Reasoning) and part.opaque and origin is not None and part.origin == origin:
            fields = _unseal(part.opaque)
            call_id = fields.pop(_CALL, None)
            if call_id is None:
                message.update(fields)
            else:
                calls[as_string(parse(bytes(call_id)))] = fields
    return message, calls


_EXTRA: Final = "extra_content"
_CALL: Final = "tool_call_id"
_SEALED: Final = frozenset({"reasoning_content", "reasoning_details", _EXTRA, _CALL})
_FRAGMENTS: Final = "fragments"
_CUT: Final = frozenset({"reasoning.text", "reasoning.summary"})
_TEXTS: Final = frozenset({"text", "summary"})
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _merge_fragments(fragments: Iterable[object]) -> Iterator[Mapping[str, object]]:
    """Join what a stream cut: neighbours of one kind and index, of which sealed ones are always whole."""
    for _, group in groupby(map(as_object, fragments), lambda each: (each.get("type"), each.get("index"))):
        pieces = tuple(group)
        yield from (_join(pieces),) if as_string(pieces[0].get("type")) in _CUT else pieces


def _join(fragments: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    fields = dict[str, object]()
    for fragment in fragments:
        fields.update({name: value for name, value in fragment.items() if value or name not in fields})
    return {
        **fields,
        **{key: "".join(as_string(each.get(key)) for each in fragments) for key in _TEXTS & fields.keys()},
    }


def _unseal(opaque: str) -> dict[str, msgspec.Raw]:
    """Return the fields in a seal; those of other protocols have other names."""
    try:
        fields = _FIELDS.decode(opaque)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return {name: value for name, value in fields.items() if name in _SEALED}


# --- Images and documents in OpenAI's protocols: as data URLs, or, where they are plain text, as text

_SUFFIXES: Final = {"application/pdf": ".pdf"}


def data_url(part: Image | Document) -> str:
    """Return the URL of a part, or a data URL that holds its bytes.

    >>> data_url(Image(b"GIF89a"))
    'data:image/gif;base64,R0lGODlh'
    """
    return part.url or f"data:{part.media_type};base64,{b64encode(part.data or b'').decode()}"


def file_name(document: Document) -> str:
    """Return a file name for a document, with the suffix by which OpenAI knows its media type.

    >>> file_name(Document(b"%PDF-1.7", title="Report"))
    'Report.pdf'
    """
    name, suffix = document.title or "document", _SUFFIXES.get(document.media_type or "", "")
    return name if name.lower().endswith(suffix) else name + suffix


def inline_document(part: Part) -> Part:
    r"""Replace a plain-text document by its text, below its title; return any other part unchanged.

    >>> inline_document(Document(b"disk: 97 %", "text/plain", title="df")).text
    'df:\n\ndisk: 97 %\n\n'
    """
    if not isinstance(part, Document) or not part.plain:
        return part
    return Text(f"{part.title or 'document'}:\n\n{part.text}\n\n")


# --- Settings


def merge_settings(settings: Iterable[Settings]) -> Settings:
    """Merge settings into one, in their order."""
    fields: dict[str, object] = {}
    warnings: list[str] = []
    for more_fields, more_warnings in settings:
        fields.update(more_fields)
        warnings.extend(more_warnings)
    return fields, tuple(warnings)


def output_limit(target: Target, request: LLMRequest) -> int | None:
    """Return the cap on output tokens that the request sets, or else the configuration."""
    return request.preferences.max_tokens or target.config.max_tokens


def sampling(target: Target, request: LLMRequest) -> dict[str, float]:
    """Return the ``temperature`` and ``top_p`` that are set; the request takes precedence over the configuration."""
    temperature, top_p = request.preferences.temperature, request.preferences.top_p
    values = {"temperature": target.config.temperature if temperature is None else temperature, "top_p": top_p}
    return {name: value for name, value in values.items() if value is not None}
