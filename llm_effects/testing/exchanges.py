"""Exchanges with models as lines of a file: scrubbed, readable, and compared by what a model sees."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, cast, final

import msgspec
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.limits.quotas import RateLimits
from llm_effects.providers.registry import ready_targets
from llm_effects.providers.target import key_headers
from llm_effects.values.display import shown
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.json import as_list, as_object, dump, repair_surrogates
from llm_effects.values.messages import Message, Part, Reasoning, Text, ToolCall
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import LLMResponse, Vectors
from llm_effects.values.secrets import MASK, scrub, secret_values, secrets_of_environment, without_login
from llm_effects.values.serialization import from_plain, to_plain
from llm_effects.values.validation import invalid, is_list, is_table, join_path

_Kind = TypeVar("_Kind")

Json: TypeAlias = Mapping[str, object]
"""A JSON object."""

VERSION: Final = 1
"""The version of the files that are written, and the newest that is read."""

_FORMAT: Final = "llm_effects_recording"

# Exchanges: what is written of a request and of its outcome.


@final
@frozen(kw_only=True)
class Piece:
    """One piece of a stream, ``after_ms`` milliseconds after the one before."""

    after_ms: float = 0.0
    text: str | None = None
    reasoning: str | None = None
    call: ToolCallDelta | None = None

    @classmethod
    def of(cls, event: ContentEvent, after_ms: float) -> Piece:
        """Return the piece with an event."""
        match event:
            case TextDelta():
                return cls(after_ms=after_ms, text=event.text)
            case ReasoningDelta():
                return cls(after_ms=after_ms, reasoning=event.text)
            case ToolCallDelta():
                return cls(after_ms=after_ms, call=event)

    @property
    def event(self) -> ContentEvent:
        """The event of the piece."""
        if self.call is not None:
            return self.call
        return TextDelta(self.text) if self.text is not None else ReasoningDelta(self.reasoning or "")


@final
@frozen(kw_only=True)
class Timing:
    """The times of an exchange: in the client's queue, if it left that, and from its last piece to its end."""

    queued_ms: float = 0.0
    unsent: bool = False
    after_ms: float = 0.0


Outcome: TypeAlias = LLMResponse | Vectors | ModelHealth | LLMError | None
"""How an exchange ended; ``None`` is a cancellation."""


@final
@frozen(kw_only=True)
class Exchange:
    """One exchange with a model: the request as it is compared, and its outcome."""

    __repr__ = shown

    model: str
    request: Json
    occurrence: int = 1
    timing: Timing = field(factory=Timing)
    pieces: tuple[Piece, ...] = ()
    rate_limits: RateLimits | None = None
    outcome: Outcome = None
    line: int = 0

    @property
    def key(self) -> Key:
        """The key of the exchange in a recording."""
        return self.model, _digest(self.request), self.occurrence


Key: TypeAlias = tuple[str, str, int]
"""A model, a request and its occurrence."""


def _digest(request: Json) -> str:
    return msgspec.json.encode(request, order="sorted").decode()


def request_of(request: LLMRequest) -> dict[str, object]:
    """Return what a model sees of a request, as plain JSON values that are the same in every run.

    Ids of tool calls are numbered in their order, media are digests, and opaque reasoning is left out.

    >>> request_of(LLMRequest(prompt="why?", system="Be brief.", owner="alice"))
    {'messages': [{'role': 'user', 'text': 'why?'}], 'system': 'Be brief.'}
    """
    ids = _Numbered()
    preferences = as_object(to_plain(evolve(request.preferences, timeout_ms=None)))
    settings: Json = {
        "system": request.system,
        "preferences": preferences,
        "tools": [to_plain(tool) for tool in request.tools],
        "tool_choice": request.tool_choice,
        "response_schema": request.response_schema,
    }
    messages = [_message(message, ids) for message in request_messages(request)]
    seen = {"messages": messages, **{name: value for name, value in settings.items() if value}}
    return masked(seen, repair_surrogates)


@final
class _Numbered(dict[str, str]):
    """Ids, numbered in the order of their first look-up."""

    def __missing__(self, name: str) -> str:
        self[name] = f"call-{len(self) + 1}"
        return self[name]


def _message(message: Message, ids: _Numbered) -> dict[str, object]:
    match message.parts:
        case (Text(text, ()),):
            return {"role": message.role, "text": text}
        case parts:
            return {"role": message.role, "parts": [_part(part, ids) for part in parts]}


def _part(part: object, ids: _Numbered) -> dict[str, object]:
    if isinstance(part, Reasoning):
        part = Reasoning(part.text)
    fields = as_object(to_plain(part))
    for name in {"id", "call_id"} & fields.keys():
        fields[name] = ids[str(fields[name])]
    data: object = getattr(part, "data", None)
    if isinstance(data, bytes):
        fields["data"] = f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    return {"type": type(part).__name__, **fields}


# Scrubbing: no key and no id of a server reaches the file.

_IDS: Final = re.compile(r"\b(req|chatcmpl|cmpl|msg|resp|run|call|toolu|rs|fc)[-_][\w-]{8,}")


def _without_ids(text: str) -> str:
    return _IDS.sub(rf"\1-{MASK}", text)


def _scrubbed_error(error: LLMError) -> LLMError:
    plain = as_object(to_plain(evolve(error, request_id=None, attempts=(), earlier=())))
    plain.pop("request", None)
    for fields in (plain, as_object(plain.get("cause"))):
        if isinstance(fields.get("message"), str):
            fields["message"] = _without_ids(str(fields["message"]))
    return from_plain(plain, _LLM_ERROR).unwrap()


def _scrubbed_outcome(outcome: Outcome) -> Outcome:
    match outcome:
        case LLMResponse():
            warnings = tuple(map(_without_ids, outcome.warnings))
            return evolve(outcome, request_id=None, warnings=warnings, attempts=())
        case Vectors():
            return evolve(outcome, request_id=None)
        case ModelHealth():
            message = _without_ids(outcome.message)
            return evolve(outcome, message=message, endpoint=without_login(outcome.endpoint))
        case None:
            return None
        case _:
            return _scrubbed_error(outcome)


def scrubbed(exchange: Exchange) -> Exchange:
    """Return an exchange without ids: those of requests are dropped, those of tool calls replaced."""
    return _with_own_ids(evolve(exchange, outcome=_scrubbed_outcome(exchange.outcome)))


def _with_own_ids(exchange: Exchange) -> Exchange:
    """Replace the ids of tool calls by ones that are unique and the same in every recording of the exchange."""
    stem = hashlib.sha256(repr(exchange.key).encode()).hexdigest()[:8]
    answer = exchange.outcome if isinstance(exchange.outcome, LLMResponse) else None
    deltas = (each.call for each in exchange.pieces if each.call is not None)
    calls: tuple[ToolCall | ToolCallDelta, ...] = (*(() if answer is None else answer.tool_calls), *deltas)
    ids = {name: f"call-{stem}-{index}" for index, name in enumerate(dict.fromkeys(call.id for call in calls))}
    pieces = tuple(
        each if each.call is None else evolve(each, call=evolve(each.call, id=ids[each.call.id]))
        for each in exchange.pieces
    )
    if answer is None:
        return evolve(exchange, pieces=pieces)
    parts = tuple(_renamed(part, ids) for part in answer.parts)
    return evolve(exchange, pieces=pieces, outcome=evolve(answer, parts=parts))


def _renamed(part: Part, ids: Mapping[str, str]) -> Part:
    return evolve(part, id=ids[part.id]) if isinstance(part, ToolCall) else part


Scrub: TypeAlias = Callable[[str], str]
"""Masks the secrets in a text."""


def scrubber(config: LLMConfig) -> Scrub:
    """Return a function that masks the keys of a configuration, the secrets of the environment, and what looks so."""
    targets = ready_targets(config).values()
    keys = [secret for target in targets for secret in secret_values(key_headers(target))]
    secrets = tuple(dict.fromkeys((*keys, *secrets_of_environment(os.environ))))
    return lambda text: scrub(text, *secrets)


def masked(request: Json, mask: Scrub) -> dict[str, object]:
    """Return a request without secrets."""
    return as_object(_masked(dict(request), mask))


_BINARY: Final = frozenset({"packed", "data"})
"""The fields of outcomes that hold bytes, in base64; a request has digests of them."""


def _masked(value: object, mask: Scrub, binary: Collection[str] = ()) -> object:
    if isinstance(value, str):
        return mask(value)
    if is_table(value):
        return {key: each if key in binary else _masked(each, mask, binary) for key, each in value.items()}
    return [_masked(each, mask, binary) for each in value] if is_list(value) else value


def _uncut(pieces: Iterable[Piece], mask: Scrub) -> tuple[Piece, ...]:
    """Return the pieces of a stream; those whose ends cut a secret are one piece, at the time of the last."""
    whole, uncut, waited_ms = tuple(pieces), list[Piece](), 0.0
    groups = dict[object, list[Piece]]()
    for each in whole:
        groups.setdefault(_group(each), []).append(each)
    cut = {group: each for group, each in groups.items() if _is_cut([*map(_text, each)], mask)}
    for each in whole:
        waited_ms += each.after_ms
        parts = cut.get(_group(each), [each])
        if parts[-1] is each:
            uncut.append(evolve(_joined(parts), after_ms=waited_ms))
            waited_ms = 0.0
    return tuple(uncut)


def _is_cut(texts: list[str], mask: Scrub) -> bool:
    return mask("".join(texts)) != "".join(map(mask, texts))


def _group(piece: Piece) -> object:
    """Return what a piece continues: the text, the reasoning, or the tool call with this index."""
    return ("call", piece.call.index) if piece.call is not None else piece.text is not None


def _text(piece: Piece) -> str:
    return (piece.reasoning or piece.text or "") if piece.call is None else piece.call.arguments


def _joined(parts: list[Piece]) -> Piece:
    if len(parts) == 1:
        return parts[0]
    first, text = parts[0], "".join(map(_text, parts))
    if first.call is not None:
        return evolve(first, call=evolve(first.call, arguments=text))
    return evolve(first, text=text) if first.text is not None else evolve(first, reasoning=text)


# The file: a line with the version, then one for each exchange, sorted by request, model and occurrence.


def dump_exchange(exchange: Exchange, mask: Scrub = str) -> str:
    """Return the line of an exchange, without the secrets that ``mask`` knows."""
    fields: dict[str, object] = {
        "model": exchange.model,
        "request": exchange.request,
        **({} if exchange.occurrence == 1 else {"occurrence": exchange.occurrence}),
        **_outcome_fields(exchange),
        "timing": to_plain(exchange.timing),
        "pieces": to_plain(list(_uncut(exchange.pieces, mask))),
        "rate_limits": None if exchange.rate_limits is None else to_plain(evolve(exchange.rate_limits, at=0.0)),
    }
    written = {name: value for name, value in fields.items() if value or name == "cancelled"}
    hidden = {name: _masked(each, mask, _BINARY if name in _OUTCOMES else ()) for name, each in written.items()}
    return dump(hidden).decode()


def _outcome_fields(exchange: Exchange) -> dict[str, object]:
    outcome = exchange.outcome
    if outcome is None:
        return {"cancelled": True}
    [name] = [name for name, kind in _OUTCOMES.items() if isinstance(outcome, kind)] or ["error"]
    fields = as_object(to_plain(outcome))
    if name != "error" and fields.get("model") == exchange.model:
        del fields["model"]
    if isinstance(outcome, LLMResponse) and outcome.parts == (Text(outcome.content),):
        del fields["parts"]
    elif isinstance(outcome, LLMResponse):
        fields.setdefault("parts", [])
    return {name: fields}


_OUTCOMES: Final[Mapping[str, type[LLMResponse | Vectors | ModelHealth]]] = {
    "answer": LLMResponse,
    "vectors": Vectors,
    "health": ModelHealth,
}

_LLM_ERROR: Final = cast("type[LLMError]", LLMError)


@final
@frozen(kw_only=True)
class _Line:
    """The fields of a line that are read as they are."""

    model: str
    occurrence: int = 1
    timing: Timing = field(factory=Timing)
    pieces: tuple[Piece, ...] = ()
    rate_limits: RateLimits | None = None


def load_exchange(text: str) -> Result[Exchange, str]:
    """Read a line; a failure says what is wrong with it."""
    try:
        fields = as_object(msgspec.json.decode(text))
    except msgspec.DecodeError as problem:
        return Failure(f"is not JSON ({problem})")
    outcomes = {name: fields.pop(name) for name in (*_OUTCOMES, "error", "cancelled") if name in fields}
    request = as_object(fields.pop("request", None))
    line = _read(fields, _Line)
    if not is_successful(line) or not request:
        return Failure(line.swap().value_or("request: is missing"))
    read = line.unwrap()
    exchange = Exchange(
        model=read.model,
        request=request,
        occurrence=read.occurrence,
        timing=read.timing,
        pieces=read.pieces,
        rate_limits=read.rate_limits,
    )
    return _read_outcome(read.model, outcomes).map(lambda outcome: evolve(exchange, outcome=outcome))


def _read_outcome(model: str, outcomes: Json) -> Result[Outcome, str]:
    if len(outcomes) != 1:
        return Failure(f"needs one of {', '.join(_OUTCOMES)}, error and cancelled")
    [(name, value)] = outcomes.items()
    fields = as_object(value)
    if name == "cancelled":
        return Success(None)
    if name == "error":
        return _read(fields, _LLM_ERROR).map(_as_outcome)
    if name == "answer":
        fields.setdefault("parts", [{"type": "Text", "text": fields.get("content")}])
    given = fields if name == "vectors" else {"model": model, **fields}
    return _read(given, _OUTCOMES[name]).map(_as_outcome)


def _as_outcome(outcome: Outcome) -> Outcome:
    return outcome


def _read(fields: Json, kind: type[_Kind]) -> Result[_Kind, str]:
    return from_plain(fields, kind).alt("; ".join)


def load(path: Path) -> tuple[Exchange, ...]:
    """Read a recording; one that is missing, broken or too new is an ``InvalidValue`` that says where."""
    try:
        header, *lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        invalid(str(path), "there is no such recording: record it with mode='new', or pytest --llm-record=new")
    except UnicodeDecodeError as problem:
        invalid(str(path), f"is not UTF-8 ({problem}): record it again with mode='refresh'")
    _check_version(path, header)
    return tuple(_checked(path, number, line) for number, line in enumerate(lines, 2) if line.strip())


def _check_version(path: Path, header: str) -> None:
    try:
        version = as_object(msgspec.json.decode(header)).get(_FORMAT)
    except msgspec.DecodeError:
        version = None
    if not isinstance(version, int):
        invalid(f"{path}, line 1", f'is no recording, which begins with {{"{_FORMAT}": {VERSION}}}')
    if version > VERSION:
        remedy = "upgrade llm_effects, or record it again with mode='refresh'"
        invalid(
            f"{path}, line 1", f"version {version} is newer than {VERSION}, the newest that is known here: {remedy}"
        )


def _checked(path: Path, number: int, line: str) -> Exchange:
    exchange = load_exchange(line)
    if not is_successful(exchange):
        invalid(f"{path}, line {number}", f"{exchange.failure()}: correct it, or record it again with mode='refresh'")
    return evolve(exchange.unwrap(), line=number)


def save(path: Path, exchanges: Iterable[Exchange], mask: Scrub, *, keep: bool) -> None:
    """Write a recording at once: all of it, or nothing. With ``keep``, add to what the file holds by now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        before = load(path) if keep and path.exists() else ()
        all_of_them = {each.key: each for each in (*before, *exchanges)}.values()
        lines = [dump_exchange(each, mask) for each in sorted(all_of_them, key=_place)]
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text("\n".join((dump({_FORMAT: VERSION}).decode(), *lines, "")), encoding="utf-8")
        new.replace(path)


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep other processes from writing to a folder of recordings, on systems that can lock folders."""
    try:
        import fcntl
    except ModuleNotFoundError:  # without such locks, what another process adds at the same moment may be lost
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _place(exchange: Exchange) -> tuple[list[str], str, str, int]:
    """Return what lines are sorted by: conversations stay together, and grow from line to line."""
    messages = [_digest({"": each}) for each in as_list(exchange.request.get("messages"))]
    return messages, _digest(exchange.request), exchange.model, exchange.occurrence


# Comparison: the exchange that was asked for, or the first difference to the nearest one.


def matches(recorded: Exchange, asked: Exchange) -> bool:
    """Return whether a recorded exchange with a masked secret is the one asked for, whatever stood there."""
    pieces = _digest(recorded.request).split(MASK)
    if recorded.model != asked.model or len(pieces) == 1:
        return False
    return re.fullmatch(".*".join(map(re.escape, pieces)), _digest(asked.request), re.DOTALL) is not None


def difference(exchanges: Iterable[Exchange], model: str, request: Json) -> str:
    """Return where the nearest exchange differs first from what is asked."""
    asked = dict(_leaves({"model": model, **request}))
    found = [(each, dict(_leaves({"model": each.model, **each.request}))) for each in exchanges]
    if not found:
        return "nothing is recorded"
    nearest, recorded = max(found, key=lambda each: _likeness(each[1], asked))
    times = max((each.occurrence for each, leaves in found if leaves == asked), default=0)
    if times:
        return f"line {nearest.line}: it is recorded {times} time{'s' * (times > 1)}, and asked once more"
    path = next(path for path in (*asked, *recorded) if asked.get(path) != recorded.get(path))
    was, now = _excerpts(recorded.get(path), asked.get(path))
    return f"line {nearest.line}: {path}: recorded {was}, asked {now}"


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if is_table(value):
        items = list[tuple[str | int, object]](as_object(value).items())
    else:
        items = list[tuple[str | int, object]](enumerate(as_list(value)))
    if not items:
        yield path, value
    for key, each in items:
        yield from _leaves(each, join_path(path, key))


def _likeness(recorded: Json, asked: Json) -> float:
    """Return how many fields are equal, and how much of the first texts that are not."""
    same = sum(1 for path, value in asked.items() if path in recorded and recorded[path] == value)
    pairs = ((recorded.get(path), value) for path, value in asked.items())
    first = next(((a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str) and a != b), ("", ""))
    return same + _common(*first) / (1 + max(map(len, first))) - len(recorded.keys() - asked.keys())


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


_EXCERPT: Final = 40


def _excerpts(recorded: object, asked: object) -> tuple[str, str]:
    """Return two values, or of long texts what stands around their first difference."""
    if not (isinstance(recorded, str) and isinstance(asked, str)):
        return _shown(recorded), _shown(asked)
    start = max(0, _common(recorded, asked) - _EXCERPT // 2)
    return _cut(recorded, start), _cut(asked, start)


def _shown(value: object) -> str:
    return "nothing" if value is None else _cut(value, 0) if isinstance(value, str) else repr(value)


def _cut(text: str, start: int) -> str:
    end = start + 2 * _EXCERPT
    return ("..." if start else "") + repr(text[start:end]) + ("..." if end < len(text) else "")
