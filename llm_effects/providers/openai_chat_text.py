"""The short way for nearly all events of a stream: a chunk that holds text and nothing else.

The classes spell out such a chunk: a field of type ``None`` may be there, but must hold nothing. A chunk that
says more does not fit them, and goes the long way.
"""

from typing import Final, Literal

import msgspec


class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str
    role: str | None = None
    refusal: None = None
    reasoning: None = None
    reasoning_content: None = None
    tool_calls: None = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    index: Literal[0] = 0
    finish_reason: None = None
    error: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    object: Literal["chat.completion.chunk"]
    usage: None = None
    x_groq: None = None
    error: None = None
    type: None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


def just_text(data: str) -> str:
    """Give the text of a chunk that holds nothing else, and an empty one for any other data.

    >>> just_text('{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}')
    'Hi'
    >>> just_text("[DONE]"), just_text('{"object":"chat.completion.chunk","choices":[{"delta":{"refusal":"No"}}]}')
    ('', '')
    """
    try:
        return _CHUNK.decode(data).choices[0].delta.content
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
