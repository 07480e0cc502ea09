"""What a turn of each role may hold, whatever the protocol, and the refusal of a request that holds anything else."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve

from llm_effects.providers.target import Target
from llm_effects.values.errors import InvalidRequest
from llm_effects.values.json import dump, parse, record
from llm_effects.values.messages import Document, Image, Message, Part, Reasoning, Role, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest
from llm_effects.values.validation import short_repr

_PLACES: Final[Mapping[Role, tuple[type[Part], ...]]] = {
    "system": (Text,),
    "user": (Text, Image, Document, ToolResult),
    "tool": (Text, Image, Document, ToolResult),
    "assistant": (Text, Reasoning, ToolCall),
}


def misplaced(request: LLMRequest) -> str | None:
    """The first part that its turn cannot hold, and the remedy.

    >>> from llm_effects import Message
    >>> misplaced(LLMRequest(messages=(Message("user", (ToolCall("id", "weather"),)),)))
    "messages[0].parts[0]: a turn of role 'user' holds Text or Image or Document or ToolResult here"
    """
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            if type(part) not in _PLACES[message.role]:
                kinds = " or ".join(kind.__name__ for kind in _PLACES[message.role])
                return f"messages[{at}].parts[{place}]: a turn of role {message.role!r} holds {kinds} here"
    return None


def unpaired(request: LLMRequest) -> str | None:
    """The first call of a tool without its result, or result without its call, and the remedy.

    Providers refuse the one, or answer it with nothing.

    >>> from llm_effects import Message
    >>> call = Message("assistant", (ToolCall("id", "weather"),))
    >>> unpaired(LLMRequest(messages=(Message("user", "hm?"), call, Message("user", "well?"))))
    "messages[1].parts[0]: the call 'id' has no result: give a ToolResult for it, or leave the call out"
    """
    waiting = dict[str, str]()
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            here = f"messages[{at}].parts[{place}]"
            if isinstance(part, ToolCall):
                waiting[part.id] = here
            elif isinstance(part, ToolResult) and waiting.pop(part.call_id, None) is None:
                return f"{here}: no call {short_repr(part.call_id)} waits for a result before it: leave the result out"
    left = next(iter(waiting.items()), None)
    remedy = "give a ToolResult for it, or leave the call out"
    return None if left is None else f"{left[1]}: the call {short_repr(left[0])} has no result: {remedy}"


def unsendable(request: LLMRequest, turns: Sequence[object]) -> str | None:
    """What is wrong with the messages of a request that became these turns, if anything is."""
    nothing = None if turns else "messages: hold nothing that can be sent: end with a user's turn"
    return misplaced(request) or nothing or unpaired(request)


def invalid(target: Target, request: LLMRequest, message: str) -> InvalidRequest:
    """The refusal of a request that cannot be written for this target."""
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message, request=request)


# Calls of tools on their way back to a model, as servers take them: their ids, and arguments that are an object.


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

    >>> from llm_effects.values.messages import Message
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


# How OpenAI's protocols are shown a picture or a document: inside a URL, or, where it is text, as text.


_ENDINGS: Final = {"application/pdf": ".pdf"}


def data_url(part: Image | Document) -> str:
    """Give its URL, or all of it inside of one.

    >>> data_url(Image(b"GIF89a"))
    'data:image/gif;base64,R0lGODlh'
    """
    return part.url or f"data:{part.media_type};base64,{b64encode(part.data or b'').decode()}"


def file_name(document: Document) -> str:
    """Name a document, with the ending by which its kind is known there.

    >>> file_name(Document(b"%PDF-1.7", title="Report"))
    'Report.pdf'
    """
    name, ending = document.title or "document", _ENDINGS.get(document.media_type or "", "")
    return name if name.lower().endswith(ending) else name + ending


def read_out(part: Part) -> Part:
    r"""Put the text of a plain document in its place, below its title; any other part stays as it is.

    >>> read_out(Document(b"disk: 97 %", "text/plain", title="df")).text
    'df:\n\ndisk: 97 %\n\n'
    """
    if not isinstance(part, Document) or not part.plain:
        return part
    return Text(f"{part.title or 'document'}:\n\n{part.text}\n\n")
