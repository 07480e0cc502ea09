"""Messages, tools and answers as dictionaries in the shape of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypedDict, TypeVar

from llm_effects.values.messages import Document, Image, Message, Part, Reasoning, Role, Text, ToolCall, ToolResult
from llm_effects.values.requests import Tool
from llm_effects.values.responses import LLMResponse, Usage
from llm_effects.values.validation import InvalidValue, invalid, is_list, is_table, join_path, short_repr, to_tuple

_Made = TypeVar("_Made", bound=Part | Tool)

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def messages_from(messages: Iterable[Mapping[str, object]]) -> tuple[Message, ...]:
    """Return messages in the shape of OpenAI's chat completions as values of ``Message``.

    Roles are ``system`` or ``developer``, ``user`` with text, pictures and files, ``assistant`` with ``tool_calls``,
    and ``tool``. What cannot be read raises ``InvalidValue`` with its place and the remedy.

    >>> messages_from([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Why?"}])[1]
    Message(role='user', parts=(Text(text='Why?'),))
    >>> messages_from([{"role": "user", "contents": "Why?"}])
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: messages[0].content: is missing: give a text or a list of parts
    """
    return tuple(_message(f"messages[{index}]", each) for index, each in enumerate(to_tuple("messages", messages)))


def _message(place: str, message: object) -> Message:
    if not is_table(message):
        invalid(place, f"must be a dictionary, not {type(message).__name__}: pass the model_dump() of an object")
    name = message.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        invalid(f"{place}.role", f"must be one of {', '.join(_ROLES)}, not {short_repr(name)}")
    if role == "assistant":
        return Message(role, _assistant_parts(place, message))
    content = _content(f"{place}.content", message.get("content"))
    return Message(role, (_tool_result(place, message, content),) if role == "tool" else content)


def _content(place: str, content: object) -> tuple[Part, ...]:
    if content is None:
        invalid(place, "is missing: give a text or a list of parts")
    if isinstance(content, str):
        return (Text(content),)
    if not is_list(content):
        invalid(place, f"must be a text or a list of parts, not {type(content).__name__}")
    if not content:
        invalid(place, "must not be empty: give at least one part")
    return tuple(_part(join_path(place, index), part) for index, part in enumerate(content))


def _part(place: str, part: object) -> Part:
    table = _table(place, part)
    kind = table.get("type")
    if kind == "image_url":
        return _image(f"{place}.image_url", table.get("image_url"))
    if kind == "file":
        return _file(f"{place}.file", _table(f"{place}.file", table.get("file")))
    if kind not in ("text", "refusal"):
        invalid(f"{place}.type", f"must be text, image_url or file, not {short_repr(kind)}")
    return Text(_text(f"{place}.{kind}", table.get(kind)))


def _image(place: str, image: object) -> Image:
    url = image if isinstance(image, str) else _table(place, image).get("url")
    return _made(place, Image, url=_text(f"{place}.url", url))


def _file(place: str, file: Mapping[object, object]) -> Document:
    title = file.get("filename")
    data = _text(f"{place}.file_data", file.get("file_data"))
    return _made(place, Document, url=data, title=None if title is None else _text(f"{place}.filename", title))


def _made(place: str, make: Callable[..., _Made], **fields: object) -> _Made:
    try:
        return make(**fields)
    except InvalidValue as problem:
        msg = f"{place}.{problem}"
        raise InvalidValue(msg) from None


def _assistant_parts(place: str, message: Mapping[object, object]) -> tuple[Part, ...]:
    if message.get("function_call") is not None:
        invalid(f"{place}.function_call", "is not supported: write it as one of tool_calls, with an id")
    calls, thoughts, content = message.get("tool_calls"), message.get("reasoning_content"), message.get("content")
    tool_calls = _calls(f"{place}.tool_calls", calls) if calls is not None else ()
    reasoning = (Reasoning(_text(f"{place}.reasoning_content", thoughts)),) if thoughts is not None else ()
    if content is None and (refusal := message.get("refusal")) is not None:
        content = _text(f"{place}.refusal", refusal)
    text = _content(f"{place}.content", content) if content is not None or not tool_calls else ()
    return (*reasoning, *text, *tool_calls)


def _calls(place: str, calls: object) -> tuple[ToolCall, ...]:
    if not is_list(calls):
        invalid(place, f"must be a list of calls, not {type(calls).__name__}")
    return tuple(_call(join_path(place, index), call) for index, call in enumerate(calls))


def _call(place: str, call: object) -> ToolCall:
    table = _table(place, call)
    function = _table(f"{place}.function", table.get("function"))
    return _made(
        place,
        ToolCall,
        id=_text(f"{place}.id", table.get("id")),
        name=_text(f"{place}.function.name", function.get("name")),
        arguments=_text(f"{place}.function.arguments", function.get("arguments", "{}")),
    )


def _tool_result(place: str, message: Mapping[object, object], content: tuple[Part, ...]) -> ToolResult:
    call_id = _text(f"{place}.tool_call_id", message.get("tool_call_id"))
    other = next((part for part in content if not isinstance(part, Text)), None)
    if other is not None:
        invalid(f"{place}.content", f"of a tool must be text, not {type(other).__name__}: send it as a user message")
    text = "".join(part.text for part in content if isinstance(part, Text))
    return _made(place, ToolResult, call_id=call_id, content=text)


def _table(place: str, value: object) -> Mapping[object, object]:
    if not is_table(value):
        invalid(
            place,
            "is missing: give a dictionary" if value is None else f"must be a dictionary, not {type(value).__name__}",
        )
    return value


def _text(place: str, value: object) -> str:
    if not isinstance(value, str):
        invalid(place, "is missing: give a text" if value is None else f"must be a text, not {type(value).__name__}")
    return value


# Tools, and the form of the answer.


def tools_from(tools: Iterable[object]) -> tuple[Tool, ...]:
    """Return tools in the shape of OpenAI's chat completions as values of ``Tool``; only functions are known.

    ``strict`` is left out: each provider gets the form that it enforces. What cannot be read raises ``InvalidValue``.

    >>> tools_from([{"type": "function", "function": {"name": "clock"}}])[0].name
    'clock'
    """
    return tuple(_tool(f"tools[{index}]", each) for index, each in enumerate(to_tuple("tools", tools)))


def _tool(place: str, tool: object) -> Tool:
    table = _table(place, tool)
    if table.get("type") != "function":
        invalid(f"{place}.type", f"must be function, not {short_repr(table.get('type'))}")
    function = _table(f"{place}.function", table.get("function"))
    named = {name: function[name] for name in ("description", "parameters") if function.get(name) is not None}
    return _made(f"{place}.function", Tool, name=_text(f"{place}.function.name", function.get("name")), **named)


def tool_choice_from(choice: object) -> str | None:
    """Return the choice of a tool in the shape of OpenAI's chat completions: a word, or the name of a function.

    >>> tool_choice_from("auto"), tool_choice_from({"type": "function", "function": {"name": "clock"}})
    ('auto', 'clock')
    """
    if choice is None or isinstance(choice, str):
        return choice
    table = _table("tool_choice", choice)
    if table.get("type") != "function":
        invalid("tool_choice.type", f"must be function, not {short_repr(table.get('type'))}")
    return _text("tool_choice.function.name", _table("tool_choice.function", table.get("function")).get("name"))


ANY_OBJECT: Final[Mapping[str, object]] = {"type": "object"}
"""The schema of an answer that is any JSON object."""


def schema_from(response_format: object) -> Mapping[str, object] | None:
    """Return the JSON Schema of an answer by OpenAI's ``response_format``, or ``None`` for plain text.

    >>> schema_from({"type": "text"}), schema_from({"type": "json_object"})
    (None, {'type': 'object'})
    """
    if response_format is None:
        return None
    table = _table("response_format", response_format)
    kind = table.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        invalid("response_format.type", f"must be text, json_object or json_schema, not {short_repr(kind)}")
    if kind != "json_schema":
        return ANY_OBJECT if kind == "json_object" else None
    form = _table("response_format.json_schema", table.get("json_schema"))
    schema = _table("response_format.json_schema.schema", form.get("schema", ANY_OBJECT))
    return {str(name): value for name, value in schema.items()}


# Answers.


class ChatChoice(TypedDict):
    """The one choice of an answer."""

    index: int
    message: dict[str, object]
    finish_reason: str
    logprobs: None


class ChatCompletion(TypedDict):
    """An answer in the shape of OpenAI's chat completions; ``usage`` is ``None`` where it is unknown."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: dict[str, object] | None


def to_openai(response: LLMResponse, *, created: int = 0) -> ChatCompletion:
    """Return an answer in the shape of OpenAI's chat completions; ``created`` is in seconds since 1970.

    Reasoning is in ``reasoning_content``. ``messages_from`` reads the message again.

    >>> from llm_effects.testing import answer
    >>> completion = to_openai(answer("Logs."))
    >>> completion["choices"][0]["message"]
    {'role': 'assistant', 'content': 'Logs.', 'refusal': None}
    >>> completion["usage"]["total_tokens"]
    11
    """
    choice = ChatChoice(
        index=0, message=_answer_message(response), finish_reason=response.finish_reason.value, logprobs=None
    )
    return ChatCompletion(
        id=response.request_id or "",
        object="chat.completion",
        created=created,
        model=response.served_model or response.model,
        choices=[choice],
        usage=_usage(response.usage),
    )


def _answer_message(response: LLMResponse) -> dict[str, object]:
    calls, reasoning = response.tool_calls, [part.text for part in response.parts if isinstance(part, Reasoning)]
    content = response.content or (None if calls else "")
    message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return {**message, "reasoning_content": "".join(reasoning)} if any(reasoning) else message


def _usage(usage: Usage) -> dict[str, object] | None:
    if usage.total_tokens is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
