"""Calls of tools on their way back to a model, as servers take them: their ids, and arguments that are an object."""

import hashlib
import re
from typing import Final

from attrs import evolve

from llm_effects.jsons import dump
from llm_effects.messages import Message, Part, ToolCall, ToolResult
from llm_effects.providers.reading import parse, record
from llm_effects.requests import LLMRequest

_SHORT: Final = re.compile(r"[a-zA-Z0-9]{9}")


def sent_arguments(arguments: str) -> str:
    r"""Give the arguments of a call as JSON text of an object: some servers break on anything else.

    What a model cut or garbled is wrapped, so that it can see its slip; an empty text stood for no arguments.

    >>> sent_arguments(' {"q":1}'), sent_arguments(""), sent_arguments('{"q":')
    ('{"q":1}', '{}', '{"INVALID_JSON":"{\\"q\\":"}')
    """
    given = parse(arguments)
    if given == {} or record(given):
        return arguments.strip()
    return "{}" if arguments.strip() in {"", "null"} else dump({"INVALID_JSON": arguments}).decode()


def shortened(request: LLMRequest) -> LLMRequest:
    """Give every call and its result an id of nine letters and digits, always the same for the same id.

    Mistral refuses any other, and so a conversation that another provider began.

    >>> from llm_effects.messages import Message
    >>> turns = (Message("assistant", ToolCall("call_0", "look")), Message("tool", ToolResult("call_0")))
    >>> [message.parts[0] for message in shortened(LLMRequest(messages=turns)).messages]
    [ToolCall(id='c557a85a0', name='look', arguments='{}'), ToolResult(call_id='c557a85a0', content='', is_error=False)]
    """
    return evolve(request, messages=tuple(map(_message, request.messages))) if request.messages else request


def _message(message: Message) -> Message:
    return evolve(message, parts=tuple(map(_part, message.parts)))


def _part(part: Part) -> Part:
    if isinstance(part, ToolCall):
        return evolve(part, id=_short(part.id))
    return evolve(part, call_id=_short(part.call_id)) if isinstance(part, ToolResult) else part


def _short(given: str) -> str:
    return given if _SHORT.fullmatch(given) else hashlib.sha256(given.encode(errors="replace")).hexdigest()[:9]
