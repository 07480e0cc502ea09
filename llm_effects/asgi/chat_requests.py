"""The requests of chat completions, read from JSON: which fields are carried, refused and ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, cast, final

from attrs import evolve, frozen
from returns.result import Failure, Result

from llm_effects.config import LLMConfig
from llm_effects.config.models import entry_of
from llm_effects.values.errors import InvalidRequest, LLMError, ModelUnavailable, checked
from llm_effects.values.json import Unreadable, parse
from llm_effects.values.openai import messages_from, schema_from, tool_choice_from, tools_from
from llm_effects.values.requests import LLMRequest, Preferences
from llm_effects.values.validation import invalid, is_list, is_table, short_repr, suggestion

AUTO: Final = "auto"
"""The name of a model that leaves the choice to routing."""


@final
@frozen
class ChatRequest:
    """A chat completion as it was asked for: the ``request``, whether to stream it, and the fields without effect.

    ``include_usage`` asks for the usage at the end of a stream.
    """

    request: LLMRequest
    streamed: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()


_PREFERENCES: Final = ("max_tokens", "temperature", "top_p", "stop", "seed", "reasoning_effort")
_CARRIED: Final = frozenset(
    (
        *_PREFERENCES,
        *("messages", "model", "max_completion_tokens", "tools", "tool_choice", "response_format", "metadata"),
        *("stream", "stream_options", "prompt_cache_key", "llm_effects"),
    )
)
_FIELDS: Final = ("task_type", "tags", "cache", "stays")
_OWN: Final = (*_FIELDS, "timeout_ms")

_REFUSED: Final[Mapping[str, str]] = {
    "n": "must be 1: send a request for each answer",
    "logprobs": "are not available here: leave them out",
    "top_logprobs": "are not available here: leave them out",
    "functions": "are not supported: write them as tools",
    "function_call": "is not supported: write tool_choice",
    "modalities": "must be text only",
    "audio": "is not available here: leave it out",
    "web_search_options": "are not available here: search with a tool of your own",
    "moderation": "is not available here: leave it out",
}
"""Fields without which an answer is not what was asked for, with the remedy."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"], []),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Values of fields that ask for nothing but the usual."""


def read_chat_request(body: bytes, config: LLMConfig, owner: str | None = None) -> Result[ChatRequest, LLMError]:
    """Read the body of a chat completion; what is wrong is an ``InvalidRequest`` with its place and the remedy.

    A field that would change what the answer is, such as ``n``, is refused. Any other without an effect here is
    ignored, and named in ``ignored``. ``llm_effects`` holds fields of this library: ``task_type``, ``tags``, ``cache``,
    ``stays`` and ``timeout_ms`` (milliseconds).

    >>> from llm_effects.testing.scripted import ONE_MODEL
    >>> body = b'{"model": "auto", "messages": [{"role": "user", "content": "Why?"}], "user": "u1"}'
    >>> asked = read_chat_request(body, ONE_MODEL).unwrap()
    >>> asked.request.messages[0].text, asked.ignored
    ('Why?', ('user',))
    >>> read_chat_request(b'{"model": "auto", "messages": [], "n": 2}', ONE_MODEL).failure().message
    'n: must be 1: send a request for each answer'
    """
    value = parse(body)
    if isinstance(value, Unreadable) or not is_table(value):
        reason = f": {value.reason}" if isinstance(value, Unreadable) else ""
        return Failure(InvalidRequest(message=f"the body must be a JSON object{reason}"))
    fields = {str(name): each for name, each in value.items() if each is not None and not _is_neutral(name, each)}
    unknown = _unknown_model(fields.get("model"), config)
    if unknown is not None:
        return Failure(unknown)
    return checked(_chat_request, fields, owner).alt(partial(_in_terms_of, fields))


def _is_neutral(name: object, value: object) -> bool:
    return isinstance(name, str) and any(value == each for each in _NEUTRAL.get(name, ()))


_NAMES: Final = {
    "conversation": "prompt_cache_key",
    "response_schema": "response_format",
    "include_usage": "stream_options.include_usage",
    **{name: f"llm_effects.{name}" for name in _OWN},
}
"""The fields of a client by their names in this library, which its messages begin with."""


def _in_terms_of(fields: Mapping[str, object], error: LLMError) -> LLMError:
    """Return an error whose message begins with the field that the client wrote."""
    if not isinstance(error, InvalidRequest):
        return error
    name = error.message.partition(":")[0].partition("[")[0]
    longer = {"max_tokens": "max_completion_tokens"} if "max_completion_tokens" in fields else {}
    return evolve(error, message=(_NAMES | longer).get(name, name) + error.message.removeprefix(name))


def _unknown_model(name: object, config: LLMConfig) -> LLMError | None:
    """Return an error unless this is a name by which a request may be pinned: of a model, its entry or its provider."""
    known = {AUTO, *config.models, *model_names(config), *(each.model for each in config.models.values())}
    if isinstance(name, str) and name in known:
        return None
    return no_such_model(name, config)


def no_such_model(name: object, config: LLMConfig) -> LLMError:
    """Return the error of a request for a model that is not known here; it lists those that are."""
    names = ", ".join((AUTO, *model_names(config)))
    if name is None:
        return InvalidRequest(message=f"model: is missing: the names are {names}")
    message = f"model: {short_repr(name)} is not known here: the names are {names}"
    return ModelUnavailable(message=message, reason="unknown_model")


def _chat_request(fields: Mapping[str, object], owner: str | None) -> ChatRequest:
    for name in _REFUSED:
        if name in fields:
            invalid(name, _REFUSED[name])
    own = _table(fields, "llm_effects")
    for name in own:
        if name not in _OWN:
            invalid(f"llm_effects.{name}", f"unknown key: {suggestion(name, _OWN)}")
    for name, each in (("tools", fields.get("tools")), ("llm_effects.tags", own.get("tags"))):
        if each is not None and not is_list(each):
            invalid(name, f"must be a list, not {short_repr(each)}")
    if not (isinstance(stop := fields.get("stop", ""), str) or is_list(stop)):
        invalid("stop", f"must be a text or a list of texts, not {short_repr(stop)}")
    return ChatRequest(
        request=_request(fields, own, owner),
        streamed=_flag(fields, "stream"),
        include_usage=_flag(_table(fields, "stream_options"), "include_usage"),
        ignored=tuple(name for name in fields if name not in _CARRIED),
    )


def _request(fields: Mapping[str, object], own: Mapping[str, object], owner: str | None) -> LLMRequest:
    messages, model = fields.get("messages"), fields["model"]
    if not is_list(messages) or not messages:
        invalid("messages", "must be a list of at least one message")
    # What is cast is checked by the classes themselves.
    return LLMRequest(
        messages=messages_from(cast("list[Mapping[str, object]]", messages)),
        model=None if model == AUTO else cast("str", model),
        preferences=_preferences(fields, own),
        tools=tools_from(cast("Iterable[object]", fields.get("tools", ()))),
        tool_choice=tool_choice_from(fields.get("tool_choice")),
        response_schema=schema_from(fields.get("response_format")),
        owner=owner,
        conversation=cast("str | None", fields.get("prompt_cache_key")),
        metadata=cast("Mapping[str, str]", fields.get("metadata", {})),
        **cast("dict[str, Any]", {name: own[name] for name in _FIELDS if name in own}),
    )


def _preferences(fields: Mapping[str, object], own: Mapping[str, object]) -> Preferences:
    values = {name: fields[name] for name in _PREFERENCES if name in fields}
    if "max_completion_tokens" in fields:
        values["max_tokens"] = fields["max_completion_tokens"]
    return Preferences(**cast("dict[str, Any]", {**values, "timeout_ms": own.get("timeout_ms")}))


def model_names(config: LLMConfig) -> tuple[str, ...]:
    """Return the names of the models that answer; one with several keys has one name.

    >>> from llm_effects.testing.scripted import ONE_MODEL
    >>> model_names(ONE_MODEL)
    ('scripted',)
    """
    answering = (name for name, each in config.models.items() if not each.capabilities.embeddings)
    return tuple(dict.fromkeys(map(entry_of, answering)))


def _table(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name, {})
    if not is_table(value):
        invalid(name, f"must be an object, not {type(value).__name__}")
    return {str(key): each for key, each in value.items() if each is not None}


def _flag(fields: Mapping[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        invalid(name, f"must be true or false, not {short_repr(value)}")
    return value
