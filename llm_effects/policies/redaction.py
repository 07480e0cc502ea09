"""Redaction: sensitive values leave requests before anything sends, stores or traces them, and return in answers.

``LLMEnv.redact`` redacts all that an environment does: answers, conversations, embeddings. ``with_redaction`` is a
layer of one pipeline.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from secrets import token_hex
from threading import Lock
from typing import Final, TypeAlias, cast, final

import anyio
from attrs import define, evolve, field, frozen
from cachetools import LRUCache
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.call import Call, ResponseValidator, Sink, committing, limit_ms_of
from llm_effects.effects.effect import Answer, Generate, Policy, layer, proceed
from llm_effects.effects.env import Asked, AskedAnswer, LLMEnv
from llm_effects.effects.tasks import in_daemon_thread, in_steps
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, RequestTimeout, checked
from llm_effects.values.events import ReasoningDelta, Restarted, Started, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.messages import Citation, Document, Image, Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.placeholders import (
    Change,
    Finding,
    Replacements,
    ValueIndex,
    apart,
    change_json,
    is_json,
    literals,
)
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.responses import LLMResponse
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import invalid, is_a

Found: TypeAlias = str | Iterable[Finding]
"""What a function found in a text: the parts to replace, or the text as it is to be sent, which nothing restores."""

Find: TypeAlias = Callable[[str], Found | Awaitable[Found]]
"""A function of a text, sync or async, that finds what is sensitive in it."""

MOST_CONVERSATIONS: Final = 1_000
"""How many conversations a ``Redaction`` can restore older turns of; the least recently used is forgotten first."""

SHORTEST_KEY: Final = 16
"""The least characters of a key: whoever guesses it can try out what a placeholder stands for."""

UNCOVERED: Final = "redaction: pictures, PDFs and linked files are sent as they are"
"""The warning on an answer to a request with parts that cannot be redacted."""


@final
class Redaction:
    """Replaces what ``find`` finds in requests by placeholders, and these by the values again in their answers.

    ``find`` is a function of a text, sync or async, that returns ``Finding`` values, or the rewritten text itself,
    which nothing restores; without one, it is ``find_sensitive`` of ``values.recognizers``. A sync function runs in a
    thread. If it raises or takes longer than the call may, nothing is sent and the call fails.

    Placeholders are keyed hashes: give a secret ``key`` of your own, of at least 16 characters, where conversations,
    caches or vectors outlive the process. Without one it is random.

    >>> import anyio
    >>> from llm_effects import generate, run, scripted_env
    >>> def find_names(text: str) -> list[Finding]:
    ...     return [Finding(at, at + 3, "NAME") for at in range(len(text)) if text.startswith("Ada", at)]
    >>> env = evolve(scripted_env(lambda request: f"You are {request.prompt[5:]}"), redact=Redaction(find_names))
    >>> anyio.run(run, generate("I am Ada"), env).unwrap().content
    'You are Ada'
    """

    def __init__(self, find: Find | None = None, *, key: str | Secret | None = None) -> None:
        if find is not None and not callable(cast("object", find)):
            msg = f"a Redaction needs a function of a text, not {type(find).__name__}"
            raise TypeError(msg)
        self._find: Find = _default_find() if find is None else find
        self._key = _valid_key(token_hex(32) if key is None else key)
        self._digest = "" if key is None else _digest_of(self._key)
        self._known: LRUCache[tuple[str | None, str], Replacements] = LRUCache(MOST_CONVERSATIONS)
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Redaction({_name_of(self._find)})"

    def known(self, conversation: str | None = None, owner: str | None = None) -> Replacements:
        """Return the placeholders of a conversation whose values this object has seen; by default an empty set.

        Its ``restore`` returns the text of a stored turn as it was written.
        """
        if conversation is None:
            return Replacements(self._key, owner)
        with self._lock:
            known = self._known.get((owner, conversation))
            if known is None:
                known = self._known[owner, conversation] = Replacements(self._key, owner)
            return known

    @property
    def digest(self) -> str:
        """Digest of the key, different for each key; empty for a random one, which no other process has."""
        return self._digest

    async def redacted(self, request: LLMRequest, env: LLMEnv) -> Result[Redacted, LLMError]:
        """Return a request with placeholders, for an answer that comes later."""
        known = self.known(None, request.owner)
        sent = await self.rewritten(request, known, env)
        return sent.map(lambda each: Redacted(each, partial(_restored_as_asked, asked=request, known=known)))

    async def answer(self, asked: Asked, env: LLMEnv, ask: AskedAnswer, conversation: str | None = None) -> Answer:
        """Answer a question by ``ask``, which sees placeholders only, and restore the answer.

        In a ``conversation`` the earlier turns are redacted once more as they are sent: some may be older than this.
        """
        known = self.known(conversation, asked.request.owner)
        request = await self.rewritten(asked.request, known, env)
        if not is_successful(request):
            return Failure(request.failure())
        inner = evolve(env, redact=None if conversation is None else _WithinConversation(self, known))
        answer = await _answer_and_flush(evolve(asked, request=request.unwrap()), known, inner, ask)
        return _restored_as_asked(answer, asked.request, known)

    async def rewritten(
        self, request: LLMRequest, known: Replacements, env: LLMEnv, *, stored: bool = False
    ) -> Result[LLMRequest, LLMError]:
        """Return a request with placeholders for what is sensitive in it, and with the time that is left for it.

        In one that is ``stored``, placeholders are the library's own and stay.
        """
        started, limit_ms = anyio.current_time(), limit_ms_of(request, env.config)
        change = await self._changes(texts_of(request), known, limit_ms, stored=stored)
        if not is_successful(change):
            return Failure(change.failure())
        left_ms = max(1, math.ceil(limit_ms - (anyio.current_time() - started) * 1000))
        changed = checked(change_request, request, change.unwrap())
        return changed.map(lambda each: evolve(each, preferences=evolve(each.preferences, timeout_ms=left_ms)))

    async def texts(self, texts: Sequence[str], owner: str | None, env: LLMEnv) -> Result[tuple[str, ...], LLMError]:
        """Return texts with placeholders for what is sensitive in them."""
        change = await self._changes(texts, self.known(None, owner), env.config.routing.timeout_ms, stored=False)
        return change.map(lambda change: tuple(map(change, texts)))

    async def _changes(
        self, texts: Sequence[str], known: Replacements, limit_ms: float, *, stored: bool
    ) -> Result[Change, LLMError]:
        found = await _found_in(texts, self._find, limit_ms)
        if not is_successful(found):
            return Failure(found.failure())
        work = partial(_rewritten, texts, found.unwrap(), known, stored=stored)
        return Success((await in_steps(work, sum(map(len, texts)))).__getitem__)


@final
@frozen
class Redacted:
    """A request as it is sent, and the function that restores its answer."""

    request: LLMRequest
    restore: Callable[[Answer], Answer]


@final
@frozen
class _WithinConversation:
    """The redaction of what a turn sends: its question is redacted already, and its answer restored outside."""

    redaction: Redaction
    known: Replacements

    async def answer(self, asked: Asked, env: LLMEnv, ask: AskedAnswer, conversation: str | None = None) -> Answer:
        """Answer a question of a turn; ``conversation`` is that of the turn."""
        del conversation
        request = await self.redaction.rewritten(asked.request, self.known, env, stored=True)
        if not is_successful(request):
            return Failure(request.failure())
        return await ask(evolve(asked, request=request.unwrap()), evolve(env, redact=None))

    def texts(
        self, texts: Sequence[str], owner: str | None, env: LLMEnv
    ) -> Awaitable[Result[tuple[str, ...], LLMError]]:
        """Return texts with placeholders for what is sensitive in them."""
        return self.redaction.texts(texts, owner, env)


def with_redaction(redaction: Redaction) -> Policy:
    """Make a layer that redacts what passes it on its way in, and restores it on its way out.

    Layers outside it see the values. It belongs outside ``with_coalescing`` and ``with_cache``, so that no entry holds
    a value. A conversation that goes through it stores the values: there, ``LLMEnv.redact`` redacts them as well.

    >>> from llm_effects.effects.effect import layered
    >>> from llm_effects.pipeline import standard_pipeline
    >>> redacted = layered(with_redaction(Redaction(lambda text: text.replace("Ada", "someone"))), standard_pipeline)
    """

    async def redacting(next: Generate, call: Call, env: LLMEnv) -> Answer:
        def ask(asked: Asked, inner: LLMEnv) -> Awaitable[Answer]:
            history, sink = call.history, asked.sink
            if sink is not None:  # what the model wrote, for the models that continue it: the consumer has the values
                history = evolve(history, pieces=[])
                sink = committing(sink, history)
            return proceed(
                next,
                evolve(call, request=asked.request, sink=sink, history=history, validator=asked.validator),
                inner,
            )

        asked = Asked(request=call.request, sink=call.sink, validator=call.validator)
        return await redaction.answer(asked, env, ask)

    redacting.__qualname__ = with_redaction.__qualname__  # its key in the cache must be the same in every process
    return layer(redacting)


# The function that finds, which is the user's: whatever it does is an error value.


def _default_find() -> Find:
    from llm_effects.values.recognizers import find_sensitive

    return find_sensitive


def _valid_key(key: str | Secret) -> Secret:
    secret = Secret(key) if isinstance(key, str) else key
    if len(secret.reveal()) < SHORTEST_KEY:
        invalid("key", f"must have at least {SHORTEST_KEY} characters: make one with secrets.token_hex(32)")
    return secret


def _digest_of(key: Secret) -> str:
    return hmac.digest(key.reveal().encode("utf-8", "surrogatepass"), b"llm_effects", "sha256").hex()[:24]


def _name_of(find: Find) -> str:
    return str(getattr(find, "__name__", type(find).__name__))


async def _found_in(texts: Sequence[str], find: Find, limit_ms: float) -> Result[Sequence[Found], LLMError]:
    """Call the function with each text, within a time limit in milliseconds; its exceptions may quote the texts."""
    try:
        with anyio.move_on_after(limit_ms / 1000):
            return _checked(texts, await _call(find, texts), find)
    except Exception as problem:  # noqa: BLE001 - the function is the user's
        said = f": {problem}" if isinstance(problem, ImportError) else ""
        message = f"redact: {_name_of(find)} raised {type(problem).__name__}, so nothing was sent{said}"
        return Failure(ConfigurationError(message=message, cause=Cause(type(problem).__name__, "")))
    message = f"redact: {_name_of(find)} took too long, so nothing was sent"
    return Failure(RequestTimeout(timeout_ms=limit_ms, phase="total", message=message))


async def _call(find: Find, texts: Sequence[str]) -> list[object]:
    if iscoroutinefunction(find):
        return [_listed(await find(text)) for text in texts]
    returned = await in_daemon_thread(lambda: [_listed(find(text)) for text in texts])
    return [_listed(await each) if isawaitable(each) else each for each in returned]


def _listed(found: object) -> object:
    return found if isinstance(found, str) or isawaitable(found) else tuple(cast("Iterable[object]", found))


def _checked(texts: Sequence[str], found: list[object], find: Find) -> Result[Sequence[Found], LLMError]:
    if all(map(_is_found, found, texts)):
        return Success(cast("list[Found]", found))
    remedy = "return Finding values within the text, or the rewritten text"
    return Failure(ConfigurationError(message=f"redact: {_name_of(find)} returned something else: {remedy}"))


def _is_found(found: object, text: str) -> bool:
    if isinstance(found, str):
        return True
    return all(is_a(each, Finding) and each.end <= len(text) for each in cast("tuple[Finding, ...]", found))


def _rewritten(texts: Sequence[str], found: Sequence[Found], known: Replacements, *, stored: bool) -> Mapping[str, str]:
    """Return the rewritten form of each text: a value that is found in one of them leaves all of them."""
    sources, here = list[tuple[str, tuple[Finding, ...], tuple[Finding, ...]]](), ValueIndex()
    for text, each in zip(texts, found, strict=True):
        source, spans = (each, ()) if isinstance(each, str) else (text, tuple(each))
        marks = tuple(literals(source))
        spans, kept = (tuple(apart(spans, marks)), marks) if stored else ((*marks, *spans), ())
        sources.append((source, spans, kept))
        for span in spans:
            known.placeholder(source[span.start : span.end], span.kind)
            here.add(source[span.start : span.end])

    def rewritten(source: str, spans: tuple[Finding, ...], kept: tuple[Finding, ...]) -> str:
        others = known.spans(source) if stored else (Finding(*place) for place in here.find(source))
        return known.replace(source, (*spans, *apart(others, kept)))

    return {text: rewritten(*each) for text, each in zip(texts, sources, strict=True)}


# Every text of a request.


def texts_of(request: LLMRequest) -> Sequence[str]:
    """Return the texts that ``change_request`` rewrites, each once.

    >>> texts_of(LLMRequest(prompt="Why?", system="Be brief."))
    ('Be brief.', 'Why?')
    """
    texts = dict[str, None]()

    def note(text: str) -> str:
        texts[text] = None
        return text

    change_request(request, note)
    return tuple(texts)


def change_request(request: LLMRequest, change: Change) -> LLMRequest:
    """Return a request with each of its texts rewritten: all that a model receives, but for names and attachments."""
    schema = request.response_schema
    return evolve(  # in the order of a prompt: what comes later, in another turn, changes no placeholder before it
        request,
        system=None if request.system is None else change(request.system),
        tools=tuple(_changed_tool(each, change) for each in request.tools),
        prompt=None if request.prompt is None else change(request.prompt),
        messages=tuple(_changed_message(each, change) for each in request.messages),
        preferences=evolve(request.preferences, stop=tuple(map(change, request.preferences.stop))),
        response_schema=None if schema is None else _changed_object(schema, change),
    )


def _changed_message(message: Message, change: Change) -> Message:
    parts = tuple(_changed_part(each, change) for each in message.parts)
    return message if parts == message.parts else evolve(message, parts=parts)


def _changed_part(part: Part, change: Change) -> Part:
    match part:
        case Text():
            text = change(part.text)
            return part if text == part.text else evolve(part, text=text, citations=())
        case Reasoning():
            return evolve(part, text=change(part.text))
        case ToolCall():
            return evolve(part, arguments=_changed_json(part.arguments, change))
        case ToolResult():
            return evolve(part, content=_changed_json(part.content, change))
        case Document():
            return _changed_document(part, change)
        case Image():
            return part


def _changed_json(text: str, change: Change) -> str:
    """Rewrite a text that may be JSON, where a placeholder stands for the whole value: in it, each text by itself."""
    whole = change(text)
    return change_json(text, change) if is_json(text) else whole


def _changed_document(part: Document, change: Change) -> Document:
    title = None if part.title is None else change(part.title)
    return evolve(part, title=title, data=change(part.text).encode() if part.plain else part.data)


def _changed_tool(tool: Tool, change: Change) -> Tool:
    return evolve(
        tool,
        description=change(tool.description),
        parameters=_changed_object(tool.parameters, change),
    )


_SCHEMA_WORDS: Final = frozenset({"$anchor", "$id", "$ref", "$schema", "format", "pattern", "required", "type"})


def _changed_object(schema: Mapping[str, object], change: Change) -> Mapping[str, object]:
    """Rewrite the texts of a JSON Schema, but not the names in it."""
    return {key: _changed_schema(value, change, key) for key, value in schema.items()}


def _changed_schema(schema: object, change: Change, word: str) -> object:
    if isinstance(schema, str):
        return schema if word in _SCHEMA_WORDS else change(schema)
    if isinstance(schema, Mapping):
        return _changed_object(cast("Mapping[str, object]", schema), change)
    if isinstance(schema, list | tuple):
        return [_changed_schema(each, change, word) for each in cast("Sequence[object]", schema)]
    return schema


def _has_uncovered(request: LLMRequest) -> bool:
    parts = (part for message in request.messages for part in message.parts)
    return any(isinstance(part, Image) or (isinstance(part, Document) and not part.plain) for part in parts)


def _with_warning(response: LLMResponse) -> LLMResponse:
    return evolve(response, warnings=(*response.warnings, UNCOVERED))


# The way back: an answer, the events of a stream, the conditions on an answer.


async def _answer_and_flush(asked: Asked, known: Replacements, env: LLMEnv, ask: AskedAnswer) -> Answer:
    in_json = asked.request.response_schema is not None
    restore = partial(restored, known=known, in_json=in_json)
    sink = None if asked.sink is None else RestoringSink(asked.sink, known, in_json)
    validator = None if asked.validator is None else _restoring(asked.validator, restore)
    answer = await ask(Asked(request=asked.request, sink=sink, validator=validator, hide=known.hide), env)
    if sink is not None:
        await sink.flush()
    return answer


def _restored_as_asked(answer: Answer, asked: LLMRequest, known: Replacements) -> Answer:
    """Restore an answer to a request, or the partial text of its error."""
    in_json = asked.response_schema is not None
    whole = answer.map(partial(restored, known=known, in_json=in_json))
    warned = whole.map(_with_warning) if _has_uncovered(asked) else whole
    return warned.alt(lambda error: evolve(error, partial=known.restore(error.partial, in_json=in_json)))


def restored(response: LLMResponse, known: Replacements, *, in_json: bool = False) -> LLMResponse:
    """Return an answer with values for its placeholders; one that is JSON as a whole has them in JSON's spelling."""
    return evolve(
        response,
        content=known.restore(response.content, in_json=in_json),
        parts=tuple(_restored_part(part, known, in_json=in_json) for part in response.parts),
    )


def _restored_part(part: Part, known: Replacements, *, in_json: bool) -> Part:
    match part:
        case Text():
            citations = tuple(_moved(each, part.text, known) for each in part.citations)
            return evolve(part, text=known.restore(part.text, in_json=in_json), citations=citations)
        case Reasoning():
            return evolve(part, text=known.restore(part.text))
        case ToolCall():
            return evolve(part, arguments=known.restore(part.arguments, in_json=True))
        case _:
            return part


def _moved(citation: Citation, text: str, known: Replacements) -> Citation:
    """Return a citation of a text that is restored: at its new place, with its quote restored too."""
    start, end = (len(known.restore(text[:place])) for place in (citation.start, citation.end))
    return evolve(citation, start=start, end=end, quote=known.restore(citation.quote))


def _restoring(validator: ResponseValidator, restore: Callable[[LLMResponse], LLMResponse]) -> ResponseValidator:
    """Return a validator of the restored answer; what it says, which is sent, quotes the answer as it came."""

    def problems(response: LLMResponse) -> tuple[str, ...]:
        places = {_place(each) for each in validator.problems(restore(response))}
        said = [each for each in validator.problems(response) if _place(each) in places] if places else []
        return tuple(said) if said or not places else (_UNFIT,)

    return evolve(validator, problems=problems, name=validator.identity)


_UNFIT: Final = "$: does not fit once its placeholders are replaced by their values"


def _place(problem: str) -> str:
    return problem.partition(": ")[0]


@final
@define(eq=False, repr=False)
class RestoringSink:
    """A sink that restores what passes it; of each text it keeps only what may be the beginning of a placeholder."""

    sink: Sink
    known: Replacements
    in_json: bool = False
    _held: dict[object, StreamEvent] = field(factory=dict[object, StreamEvent])

    async def __call__(self, event: StreamEvent) -> None:
        """Restore an event and pass it on, once it is sure."""
        match event:
            case TextDelta() | ReasoningDelta():
                await self._piece(type(event), event, event.text)
            case ToolCallDelta():
                await self._piece(event.index, event, event.arguments)
            case Started() | Restarted():
                self._held.clear()
                await self.sink(event)
            case _:
                await self.sink(event)

    async def _piece(self, slot: object, event: TextDelta | ReasoningDelta | ToolCallDelta, piece: str) -> None:
        before = self._held.pop(slot, None)
        ready, rest = self.known.split(_text_of(before) + piece)
        if rest:
            self._held[slot] = _with_text(event, rest)
        if ready or not piece:
            in_json = isinstance(event, ToolCallDelta) or (isinstance(event, TextDelta) and self.in_json)
            await self.sink(_with_text(event, self.known.restore(ready, in_json=in_json)))

    async def flush(self) -> None:
        """Pass on what was kept: the answer has ended, and it was no placeholder."""
        held = tuple(self._held.values())
        self._held.clear()
        for event in held:
            await self.sink(event)


def _text_of(event: StreamEvent | None) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else getattr(event, "text", "")


def _with_text(event: TextDelta | ReasoningDelta | ToolCallDelta, text: str) -> StreamEvent:
    return evolve(event, arguments=text) if isinstance(event, ToolCallDelta) else evolve(event, text=text)
