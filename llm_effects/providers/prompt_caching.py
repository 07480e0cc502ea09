"""Prompt caching at providers: where Claude writes its cache, and the key by which GPT finds its own.

A provider that read the beginning of a prompt before reads it again for a tenth of the price or less. GPT writes its
cache by itself; Claude writes it where a block is marked, for a quarter more than fresh input (5 minutes) or twice as
much (an hour). So marks are set where a later request will read them: in conversations and in tool loops.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec

from llm_effects.providers.target import Target
from llm_effects.values.json import dump
from llm_effects.values.messages import Message, Part, Text
from llm_effects.values.requests import LLMRequest, PromptCache, is_growing
from llm_effects.values.secrets import Secret
from llm_effects.values.tokens import CHARACTERS_PER_TOKEN, estimate_tokens

_Object: TypeAlias = Mapping[str, object]
_Block: TypeAlias = _Object | msgspec.Raw

MAX_BREAKPOINTS: Final = 4
"""How many blocks of a request Claude accepts marks on."""

_MARK: Final = "cache_control"
_KEPT: Final[Mapping[PromptCache, _Object]] = {
    "5m": {"type": "ephemeral"},
    "1h": {"type": "ephemeral", "ttl": "1h"},
}

# Anthropic's guide to prompt caching and reports about it. A shorter prefix is not cached, which costs nothing and is
# no error, so the lowest number that is known stands for models whose own is not.
_LOWEST: Final = 512
_MINIMUMS: Final = (
    (r"claude-(opus|haiku)-4-[56]", 4096),
    (r"claude-opus-4-7|claude-haiku-3|claude-3(-5)?-haiku", 2048),
    (r"claude-(opus|sonnet)-4|claude-sonnet-5(?!-[1-9](-|$))|claude-3", 1024),
    (r"claude-(opus|fable|mythos)-5", _LOWEST),
)

GPT_MINIMUM: Final = 1024
"""Tokens of the shortest prefix that OpenAI caches."""


@lru_cache(maxsize=256)
def minimum_prefix(model: str) -> int:
    """Return the tokens of the shortest prefix that a Claude model caches; the lowest known for an unknown model.

    >>> [minimum_prefix(f"claude-{name}") for name in ("haiku-4-5-20251001", "sonnet-4-6", "opus-5")]
    [4096, 1024, 512]
    """
    bare = model.rpartition("/")[2]
    return next((tokens for pattern, tokens in _MINIMUMS if re.match(pattern, bare)), _LOWEST)


def kept_for(target: Target, request: LLMRequest) -> PromptCache:
    """Return how long a prefix is kept: by the request, else by the configuration of the model."""
    return request.prompt_cache or target.config.prompt_cache


# --- Claude: marks on blocks


def marked(part: Part, block: _Block | None) -> _Block | None:
    """Return the block of a part, with a mark if the part has one.

    >>> marked(Text("a", cache=True), {"type": "text"})
    {'type': 'text', 'cache_control': {'type': 'ephemeral'}}
    """
    if not getattr(part, "cache", False) or block is None or isinstance(block, msgspec.Raw):
        return block
    return _mark(block, "5m")


def _mark(block: _Object, kept: PromptCache) -> _Object:
    return {**block, _MARK: _KEPT[kept]}


Breakpoints: TypeAlias = tuple[_Object, tuple[str, ...]]
"""The fields of a body with its marks, and a warning about marks that were left out."""


def with_breakpoints(target: Target, request: LLMRequest, body: _Object) -> Breakpoints:
    """Return a body of the Messages API with at most four marks: those of the parts, and then those that pay.

    In a conversation or a tool loop these are the end of the last turn, the end of the system text, the turn before
    (the end of what the last request wrote), and the last tool. A single prompt has none.
    """
    if request.prompt is not None and request.conversation is None:
        return body, ()
    kept, own = kept_for(target, request), _own_places(request, body)
    if kept == "off":
        return (_with_marks(request, body, (), own, kept) if own else body), ()
    chosen = own[-MAX_BREAKPOINTS:]
    if is_growing(request):
        found = _places_that_pay(target, request, body)
        chosen = (*chosen, *(each for each in found if each not in chosen))[:MAX_BREAKPOINTS]
    if not chosen:
        return body, ()
    left_out = len(own) - MAX_BREAKPOINTS
    note = f"cache: of {len(own)} marks the last {MAX_BREAKPOINTS} are sent, as many as the provider accepts"
    return _with_marks(request, body, chosen, own, kept), ((note,) if left_out > 0 else ())


_Place: TypeAlias = tuple[int, int]
"""A block by its turn and its position there; the system text and the tools come before all turns."""

_TOOLS: Final[_Place] = (-2, 0)
_SYSTEM: Final[_Place] = (-1, 0)


def _own_places(request: LLMRequest, body: _Object) -> tuple[_Place, ...]:
    """Return the places that parts mark, in order."""
    system = (_SYSTEM,) if any(map(_is_marked, _system_messages(request))) else ()
    blocks = (
        (at, place)
        for at, turn in enumerate(_turns(body))
        for place, block in enumerate(_content(turn))
        if not isinstance(block, msgspec.Raw) and _MARK in block
    )
    return (*system, *blocks)


def _system_messages(request: LLMRequest) -> tuple[Message, ...]:
    return tuple(message for message in request.messages if message.role == "system")


def _is_marked(message: Message) -> bool:
    return any(isinstance(part, Text) and part.cache for part in message.parts)


def _places_that_pay(target: Target, request: LLMRequest, body: _Object) -> Iterator[_Place]:
    """Yield the places where a write pays, the most important first, if the prefix before them is long enough."""
    opening = _opening_tokens(request, body)
    whole = _is_long(target, estimate_tokens(request))
    ends = [(at, len(_content(turn)) - 1) for at, turn in enumerate(_turns(body)) if turn["role"] == "user"]
    if whole and ends:
        yield ends[-1]
    if "system" in body and _is_long(target, opening):
        yield _SYSTEM
    if whole and len(ends) > 1:  # Claude looks for earlier writes only in the 20 blocks before a mark
        yield ends[-2]
    if "tools" in body and _is_long(target, _tool_tokens(body)):
        yield _TOOLS


_DOUBT: Final = 2  # the real count may be twice the estimate, and a useless mark costs nothing


def _is_long(target: Target, tokens: int) -> bool:
    return _DOUBT * tokens >= minimum_prefix(target.wire_model or target.name)


def _opening_tokens(request: LLMRequest, body: _Object) -> int:
    system = sum(len(message.text) for message in _system_messages(request)) + len(request.system or "")
    return _tool_tokens(body) + system // CHARACTERS_PER_TOKEN


def _tool_tokens(body: _Object) -> int:
    return len(dump(body["tools"])) // CHARACTERS_PER_TOKEN if "tools" in body else 0


def _with_marks(
    request: LLMRequest, body: _Object, places: Sequence[_Place], own: Sequence[_Place], kept: PromptCache
) -> _Object:
    """Return a body with marks at these places, and without those of the parts elsewhere."""
    fields = dict(body)
    if _SYSTEM in places:
        fields["system"] = _system_blocks(request, kept)
    if _TOOLS in places:
        *tools, last = cast("Sequence[_Object]", body["tools"])
        fields["tools"] = [*tools, _mark(last, kept)]
    turns = list(_turns(body))  # of a long conversation, nearly all stay as they are
    for at in {at for at, _ in (*places, *own) if at >= 0}:
        blocks = [_remark(block, (at, place) in places, kept) for place, block in enumerate(_content(turns[at]))]
        turns[at] = {**turns[at], "content": blocks}
    return {**fields, "messages": turns}


def _remark(block: _Block, chosen: bool, kept: PromptCache) -> _Block:
    """Return a block with a mark if it was chosen, and without one if not."""
    if isinstance(block, msgspec.Raw):
        return block
    if chosen:
        return _mark(block, kept)
    return {name: value for name, value in block.items() if name != _MARK} if _MARK in block else block


def _system_blocks(request: LLMRequest, kept: PromptCache) -> list[_Object]:
    """Return the system text, marked at the end of its last marked message, or else at its own end."""
    messages = _system_messages(request)
    texts = [request.system or "", *(message.text for message in messages)]
    marked_at = max((at for at, message in enumerate(messages, 1) if _is_marked(message)), default=len(messages))
    stable, rest = ("\n\n".join(filter(None, part)) for part in (texts[: marked_at + 1], texts[marked_at + 1 :]))
    first = _mark({"type": "text", "text": stable}, kept)
    return [first, {"type": "text", "text": f"\n\n{rest}"}] if rest else [first]


def _turns(body: _Object) -> Sequence[_Object]:
    return cast("Sequence[_Object]", body["messages"])


def _content(turn: _Object) -> Sequence[_Block]:
    return cast("Sequence[_Block]", turn["content"])


# --- GPT: the key of a conversation

_OPENAI_HOST: Final = "openai.com"


@lru_cache(maxsize=1024)
def takes_cache_key(target: Target) -> bool:
    """Return whether a server is known to accept ``prompt_cache_key``: OpenAI and Azure; others may refuse it.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")
    >>> proxy = ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x", endpoint="https://llm.example/v1")
    >>> takes_cache_key(target_of("gpt", gpt).unwrap()), takes_cache_key(target_of("gpt", proxy).unwrap())
    (True, False)
    """
    host = urlsplit(target.endpoint).hostname or ""
    own = target.preset.endpoint is None or host == _OPENAI_HOST or host.endswith(f".{_OPENAI_HOST}")
    return target.preset.prompt_cache_key and own


def cache_key_of(target: Target, request: LLMRequest) -> dict[str, object]:
    """Return the field that sends the requests of one conversation to the same cache, where the server takes it.

    The key is a hash of the owner and the conversation, keyed with the API key: it names neither of them. A key that
    rotates would change it, so the endpoint stands for that.
    """
    if request.conversation is None or kept_for(target, request) == "off" or not takes_cache_key(target):
        return {}
    key = target.config.api_key
    secret = key.reveal() if isinstance(key, Secret) else target.endpoint
    name = dump([request.owner, request.conversation])
    return {"prompt_cache_key": hmac.new(secret.encode(), name, hashlib.sha256).hexdigest()[:32]}


# --- What ``explain`` says


def describe_caching(target: Target, request: LLMRequest, tokens: int) -> str:
    """Return whether a provider would cache the beginning of a prompt of about so many tokens, and why not."""
    kept, growing = kept_for(target, request), is_growing(request)
    if target.preset.wire == "llama":
        return "yes: this process keeps the prefix of its last prompts"
    if kept == "off":
        return "no: prompt_cache is off"
    if target.preset.wire == "anthropic":
        return _claude_caching(target, request, tokens, kept)
    if target.preset.family != "gpt":
        return "unknown: the server decides"
    if tokens < GPT_MINIMUM:
        return f"no: about {tokens} tokens, it caches {GPT_MINIMUM} or more"
    return "yes: with a key of the conversation" if growing and cache_key_of(target, request) else "yes: by itself"


def _claude_caching(target: Target, request: LLMRequest, tokens: int, kept: PromptCache) -> str:
    has_marks = any(getattr(part, "cache", False) for message in request.messages for part in message.parts)
    if not is_growing(request) and not has_marks:
        return "no: a single prompt, for which a write costs more than it saves"
    minimum = minimum_prefix(target.wire_model or target.name)
    if tokens < minimum:
        return f"no: about {tokens} tokens, it caches {minimum} or more"
    return f"yes: about {tokens} tokens, for {'an hour' if kept == '1h' else '5 minutes'}"
