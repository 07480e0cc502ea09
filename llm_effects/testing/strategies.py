"""Strategies of hypothesis: requests, answers, errors and streams as callers and models produce them.

Needs hypothesis: ``pip install hypothesis``.
"""

from __future__ import annotations

from typing import Final, TypeVar, get_args

from attrs import evolve

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as _problem:
    _message = "llm_effects.testing.strategies needs hypothesis: pip install hypothesis"
    raise ModuleNotFoundError(_message, name=_problem.name) from _problem

from llm_effects.testing import Chunks
from llm_effects.values.errors import (
    AuthenticationFailed,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    NetworkPhase,
    RateLimitExceeded,
    RequestTimeout,
    UnavailableReason,
)
from llm_effects.values.messages import Image, Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import Allow, LLMRequest, Preferences, Recovery, TaskType, Tool
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

_Value = TypeVar("_Value")

# Texts have every character but half surrogates, which no JSON holds.
_TEXTS: Final = st.text(st.characters(codec="utf-8"), max_size=40)
_FULL: Final = _TEXTS.filter(str.strip)
_NAMES: Final = st.from_regex(r"[a-z][a-z_]{0,15}", fullmatch=True)
_IDS: Final = st.from_regex(r"call-[0-9a-f]{8}", fullmatch=True)
_ARGUMENTS: Final = st.sampled_from(["{}", '{"disk": "a"}', '{"n": 1}', '{"cut', ""])
_COUNTS: Final = st.integers(0, 100_000)
_GIF: Final = b"GIF89a"


def _maybe(strategy: st.SearchStrategy[_Value]) -> st.SearchStrategy[_Value | None]:
    return st.none() | strategy


def _preferences() -> st.SearchStrategy[Preferences]:
    return st.builds(
        Preferences,
        max_tokens=_maybe(st.integers(1, 100_000)),
        temperature=_maybe(st.floats(0, 2)),
        top_p=_maybe(st.floats(0, 1, exclude_min=True)),
        stop=st.lists(_FULL, max_size=2).map(tuple),
        seed=_maybe(st.integers(0, 2**31)),
        timeout_ms=_maybe(st.floats(1, 600_000)),
    )


def _tools() -> st.SearchStrategy[tuple[Tool, ...]]:
    return st.lists(_NAMES, max_size=2, unique=True).map(lambda names: tuple(map(Tool, names)))


def _turns() -> st.SearchStrategy[tuple[Message, ...]]:
    """Return exchanges, in which each tool call is followed by its result, and a last question."""
    asked = _FULL.map(lambda text: (Message("user", text),))
    shown = st.binary(max_size=20).map(lambda data: (Message("user", (Text("?"), Image(_GIF + data))),))
    talked = st.tuples(_FULL, _FULL).map(lambda texts: (Message("user", texts[0]), Message("assistant", texts[1])))
    worked = st.tuples(_IDS, _NAMES, _TEXTS).map(
        lambda call: (
            Message("user", "?"),
            Message("assistant", (ToolCall(call[0], call[1]),)),
            Message("tool", (ToolResult(call[0], call[2]),)),
        )
    )
    before = st.lists(talked | worked, max_size=3).map(lambda turns: tuple(each for turn in turns for each in turn))
    return st.tuples(before, asked | shown).map(lambda turns: turns[0] + turns[1])


def requests() -> st.SearchStrategy[LLMRequest]:
    """Return a strategy of valid requests: prompts and conversations, with tools, pictures and settings.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10)
    ... @given(requests())
    ... def is_a_question(request):
    ...     assert request.prompt or request.messages
    >>> is_a_question()
    """
    settings = {
        "system": _maybe(_FULL),
        "task_type": st.sampled_from([TaskType.GENERAL, TaskType.ANALYSIS, TaskType("triage")]),
        "preferences": _preferences(),
        "tools": _tools(),
        "recovery": st.sampled_from(Recovery),
        "allow": st.frozensets(st.sampled_from(Allow)),
        "owner": _maybe(_NAMES),
        "tags": st.lists(_NAMES, max_size=2).map(tuple),
    }
    return st.builds(LLMRequest, prompt=_FULL, **settings) | st.builds(LLMRequest, messages=_turns(), **settings)


def _usages() -> st.SearchStrategy[Usage]:
    return st.builds(
        Usage,
        input_tokens=_maybe(_COUNTS),
        cache_read_tokens=_COUNTS,
        cache_write_tokens=_COUNTS,
        output_tokens=_maybe(_COUNTS),
    )


def answers() -> st.SearchStrategy[LLMResponse]:
    """Return a strategy of answers: text, reasoning and tool calls, whole or cut off.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10)
    ... @given(answers())
    ... def holds_together(answer):
    ...     assert answer.content == "".join(part.text for part in answer.parts if isinstance(part, Text))
    >>> holds_together()
    """
    texts = st.lists(st.builds(Text, _FULL), max_size=2)
    thoughts = st.lists(st.builds(Reasoning, _FULL), max_size=1)
    calls = st.lists(st.builds(ToolCall, _IDS, _NAMES, _ARGUMENTS), max_size=2, unique_by=lambda call: call.id)
    parts = st.tuples(thoughts, texts, calls).map(lambda kinds: tuple(part for kind in kinds for part in kind))
    cut = st.sampled_from([FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH])
    return st.builds(_answer, parts, cut, _usages())


def _answer(parts: tuple[Part, ...], finish_reason: FinishReason, usage: Usage) -> LLMResponse:
    called = any(isinstance(part, ToolCall) for part in parts)
    return LLMResponse(
        content="".join(part.text for part in parts if isinstance(part, Text)),
        parts=parts,
        model="scripted",
        provider="scripted",
        finish_reason=FinishReason.TOOL_CALLS if called else finish_reason,
        usage=usage,
    )


def errors() -> st.SearchStrategy[LLMError]:
    """Return a strategy of errors that a model, its server or the network cause.

    >>> from hypothesis import given, settings
    >>> from llm_effects import describe
    >>> @settings(max_examples=10)
    ... @given(errors())
    ... def reads_as_a_line(error):
    ...     assert len(describe(error).splitlines()) == 1
    >>> reads_as_a_line()
    """
    message, status, limited = _NAMES, _maybe(st.sampled_from([400, 408, 429, 500, 503, 529])), st.just(429)
    retry_after = _maybe(st.floats(0, 3600))
    reasons = st.sampled_from([reason for reason in get_args(UnavailableReason) if reason != "breaker_open"])
    return st.one_of(
        st.builds(ModelUnavailable, message=message, reason=reasons, status=status, retry_after=retry_after),
        st.builds(RateLimitExceeded, message=message, status=limited, retry_after=retry_after, quota=st.booleans()),
        st.builds(NetworkError, message=message, phase=st.sampled_from(get_args(NetworkPhase))),
        st.builds(RequestTimeout, timeout_ms=st.floats(1, 600_000), phase=st.sampled_from(["connect", "attempt"])),
        st.builds(MalformedResponse, message=message),
        st.builds(AuthenticationFailed, message=message, status=st.sampled_from([401, 403])),
        st.builds(InvalidRequest, message=message, status=st.just(400)),
        st.builds(ContextTooLarge, token_count=_maybe(_COUNTS), limit=_maybe(_COUNTS), status=st.just(400)),
        st.builds(ContentRefused, message=message, category=_maybe(_NAMES)),
    )


def streams() -> st.SearchStrategy[Chunks]:
    """Return a strategy of streams for ``scripted``: some pieces with pauses between them, whole or broken by an error.

    >>> from hypothesis import given, settings
    >>> @settings(max_examples=10)
    ... @given(streams())
    ... def is_whole_or_broken(stream):
    ...     assert stream.pieces or stream.then is not None
    >>> is_whole_or_broken()
    """
    pieces = st.lists(_TEXTS.filter(bool), max_size=6).map(tuple)
    streams = st.builds(Chunks, pieces, _maybe(errors()), st.sampled_from([0.0, 0.01, 1.0, 30.0]))
    return streams.map(lambda stream: stream if stream.pieces or stream.then else evolve(stream, pieces=("ok",)))
