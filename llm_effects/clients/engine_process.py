"""The engine in a process of its own: ``EngineProcess`` here, and the script that it runs, which is this file again.

While the engine loads or frees a model, it holds the interpreter's lock (GIL), so no Python code runs in its process.
In a process of its own it stops nothing else, and if it crashes the program goes on.

A call or an answer is one line. The script imports nothing of the library, so it starts as fast as Python:

- ``0 i`` imports the engine and ``1 l{...}`` loads a model; these two come first
- ``7 c{...}`` asks for a chat completion and ``7 e{...}`` for embeddings; ``7 x`` cancels call 7
- ``7 {...}``, or any other JSON, is a chunk of an answer, ``7 `` its end
- ``7 ![...]`` is an exception: the names of its classes, its message

The script ends with its input: also when the program is killed.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial, reduce
from importlib import import_module
from itertools import count
from queue import SimpleQueue
from subprocess import PIPE, Popen
from threading import Lock, Thread
from types import ModuleType
from typing import IO, Any, Final, Protocol, TypeAlias, cast, final
from weakref import finalize


class Receiver(Protocol):
    """The receiver of an answer: once it has ``left``, the engine stops."""

    left: bool
    when_left: Callable[[], object] | None

    def put(self, chunk: str, /) -> bool:
        """Receive a chunk, in any thread; return whether the receiver has left."""
        ...


class Server(Protocol):
    """A started engine, in this process or another. Its methods block, and raise the exceptions of the engine."""

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        ...

    def load(self, settings: str, /) -> None:
        """Load a model, with the engine's parameters in a JSON object, named by their path: ``{"model.path": ""}``."""
        ...

    def complete(self, body: str, receiver: Receiver, /) -> None:
        """Answer a chat completion."""
        ...

    def embed(self, body: str, /) -> str:
        """Return the JSON of a response or of an error."""
        ...

    def close(self) -> None:
        """Free the model soon, without waiting."""
        ...


def _in_one_line(text: str) -> str:
    return text.replace("\n", " ")  # in JSON these are the same


# The engine itself.


@final
class LoadedEngine:
    """The engine in this process: in the script, and in programs frozen into one file, which have no interpreter."""

    alive: bool = True

    def __init__(self) -> None:
        self._engine: ModuleType = import_module("xllamacpp")
        self._server: Any = None

    def load(self, settings: str, /) -> None:
        """Load a model."""
        params = self._engine.CommonParams()
        for name, value in json.loads(settings).items():
            *path, last = name.split(".")
            choices = getattr(self._engine, f"llama_{last}", None)  # an enumeration
            setattr(reduce(getattr, path, params), last, value if choices is None else getattr(choices, value))
        self._server = self._engine.Server(params)

    def complete(self, body: str, receiver: Receiver, /) -> None:
        """Answer a chat completion; the engine stops at the first chunk after the receiver has left."""
        self._server.handle_chat_completions(body, receiver.put)

    def embed(self, body: str, /) -> str:
        """Return the JSON of a response or of an error."""
        text: str = self._server.handle_embeddings(body)
        return text

    def close(self) -> None:
        """Free the model once no call uses it."""
        self._server = None


# The program's side of the pipes.


class EngineStopped(RuntimeError):  # noqa: N818 - also when it is closed
    """The engine's process has ended."""


_EXCEPTIONS: Final[Mapping[str, type[Exception]]] = {
    kind.__name__: kind for kind in (ModuleNotFoundError, ImportError, OverflowError, RuntimeError, ValueError)
}

_News: TypeAlias = "SimpleQueue[str | Exception | None]"
"""What happens to a call: its receiver leaves, or it ends, with an exception or without."""

_LEFT: Final = "left"


@final
class _Calls:
    """The calls in flight, by number; ``end`` is why there can be no more."""

    def __init__(self, requests: IO[bytes]) -> None:
        self.end: str | None = None
        self._requests = requests
        self._numbers, self._lock = count(), Lock()
        self._open = dict[bytes, tuple[Callable[[str], bool], _News]]()

    def add(self, put: Callable[[str], bool], news: _News) -> bytes:
        with self._lock:
            if self.end is not None:
                raise EngineStopped(self.end)
            number = b"%d" % next(self._numbers)
            self._open[number] = put, news
            return number

    def write(self, line: bytes) -> None:
        with self._lock, suppress(OSError):  # the process has ended, which the thread that reads will notice
            rest = memoryview(line + b"\n")
            while rest and self.end is None:
                rest = rest[os.write(self._requests.fileno(), rest) :]

    def read(self, line: bytes) -> None:
        """Pass an answer on to its call."""
        number, _, answer = line.rstrip(b"\n").partition(b" ")
        put, news = self._open[number]
        if answer and not answer.startswith(b"!"):
            if put(answer.decode()):
                news.put(_LEFT)
        else:
            news.put(_exception(answer) if answer else None)
            del self._open[number]

    def stop(self, end: str) -> None:
        """End all calls."""
        with self._lock:
            self.end = end
        for _, news in self._open.values():
            news.put(EngineStopped(end))


def _exception(answer: bytes) -> Exception:
    names, message = json.loads(answer[1:])
    kind = next((_EXCEPTIONS[name] for name in names if name in _EXCEPTIONS), None)
    return kind(message) if kind is not None else RuntimeError(f"{names[0]}: {message}")


_PROCESSES: Final[set[Popen[bytes]]] = set()
"""The processes that still run."""


def _read(process: Popen[bytes], calls: _Calls) -> None:
    """Read all answers of a process, and wait for its end."""
    try:
        for line in cast("IO[bytes]", process.stdout):
            if line.endswith(b"\n"):  # the process may end within a line
                calls.read(line)
    except BaseException:
        process.kill()  # nothing would read it any more
        raise
    finally:
        calls.stop(f"the process of the in-process engine ended with code {process.wait()}")
        with process:  # closes the pipes
            _PROCESSES.discard(process)


def _end_all() -> None:
    for process in tuple(_PROCESSES):
        process.kill()
        process.wait()


def _leave_to_parent() -> None:
    _INHERITED.extend(_PROCESSES)
    _PROCESSES.clear()
    null = os.open(os.devnull, os.O_WRONLY)
    for process in _INHERITED:
        with suppress(ValueError):  # closed
            os.dup2(null, cast("IO[bytes]", process.stdin).fileno())
    os.close(null)


_INHERITED: Final[list[Popen[bytes]]] = []
"""The processes of the process from which this one is forked; they end with that one."""

_NO_WINDOW: Final = 0x08000000 if sys.platform == "win32" else 0
"""On Windows a console of its own, so that Ctrl-C in the terminal does not reach it; elsewhere it has a new session."""


@final
class EngineProcess:
    """The engine in a process of its own, which ends with this object at the latest."""

    def __init__(self, search: Sequence[str] | None = None) -> None:
        """Start the process and import the engine there, from the folders ``search`` or those of ``sys.path``.

        The exceptions are those of the import; a process that does not start is an ``ImportError`` too.
        """
        from multiprocessing.spawn import get_executable  # programs that embed Python set it

        command = [os.fsdecode(get_executable() or sys.executable), "-I", "-S", __file__]
        try:
            self._process = Popen(  # noqa: S603 - no shell
                command, stdin=PIPE, stdout=PIPE, start_new_session=True, creationflags=_NO_WINDOW
            )
        except OSError as problem:
            message = f"its process does not start: {problem}"
            raise ImportError(message) from problem
        _PROCESSES.add(self._process)
        self._calls, self._owner = _Calls(cast("IO[bytes]", self._process.stdin)), os.getpid()
        Thread(target=_read, args=(self._process, self._calls), name="llm-effects-engine answers", daemon=True).start()
        finalize(self, _kill, self._process, self._owner).atexit = False
        folders = list(sys.path if search is None else search)
        self._calls.write(json.dumps(folders, default=str).encode())  # programs put paths into it too, not only texts
        self._call("i", "", _Text())

    @property
    def alive(self) -> bool:
        """Whether the process runs, and is of this process."""
        return self._calls.end is None and self._owner == os.getpid()

    def load(self, settings: str, /) -> None:
        """Load a model."""
        self._call("l", settings, _Text())

    def complete(self, body: str, receiver: Receiver, /) -> None:
        """Answer a chat completion."""
        self._call("c", body, receiver)

    def embed(self, body: str, /) -> str:
        """Return the JSON of a response or of an error."""
        text = _Text()
        self._call("e", body, text)
        return text.text

    def close(self) -> None:
        """End the process; calls in flight fail."""
        _kill(self._process, self._owner)

    def _call(self, kind: str, body: str, receiver: Receiver) -> None:
        """Send a call and wait for its end; the thread that reads passes the chunks on."""
        news: _News = SimpleQueue()
        number = self._calls.add(receiver.put, news)
        receiver.when_left = partial(news.put, _LEFT)
        self._calls.write(b"%b %b" % (number, (kind + _in_one_line(body)).encode()))
        if receiver.left:  # before there was ``when_left``
            news.put(_LEFT)
        while (event := news.get()) == _LEFT:
            self._calls.write(b"%b x" % number)
        try:
            if isinstance(event, Exception):
                raise event
        finally:
            del event  # or its traceback would keep this frame, and so the process, until a collection


def _kill(process: Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()


@final
class _Text:
    """The receiver of a single chunk."""

    left: bool = False
    when_left: Callable[[], object] | None = None
    text: str = ""

    def put(self, chunk: str, /) -> bool:
        self.text = chunk
        return False


def start_engine() -> Server:
    """Start the engine: in a process of its own, unless this program is frozen into one file."""
    return LoadedEngine() if getattr(sys, "frozen", False) else EngineProcess()


# The script.


@final
class _Answer:
    """The receiver of an answer in the script: it writes the chunks as lines."""

    when_left: Callable[[], object] | None = None

    def __init__(self, number: bytes, write: Callable[[bytes], None]) -> None:
        self.left = False
        self._number, self._write = number, write

    def put(self, chunk: str, /) -> bool:
        if not self.left:
            self._write(b"%b %b\n" % (self._number, _in_one_line(chunk).encode()))
        return self.left


@final
class Script:
    """The calls that the script answers."""

    def __init__(self, output: IO[bytes], start: Callable[[], Server] = LoadedEngine) -> None:
        self._output, self._start, self._lock = output, start, Lock()
        self._answers = dict[bytes, _Answer]()
        self._server: Server | None = None

    def run(self, requests: Iterable[bytes]) -> None:
        """Answer every call: the first two before the next is read, the others each in a thread."""
        for line in requests:
            number, _, request = line.rstrip(b"\n").partition(b" ")
            if request == b"x":
                self._cancel(number)
                continue
            answer = self._answers[number] = _Answer(number, self._write)
            work = partial(self._do, number, request.decode(), answer)
            if request[:1] in {b"c", b"e"}:
                Thread(target=work, daemon=True).start()
            else:
                work()

    def _cancel(self, number: bytes) -> None:
        answer = self._answers.get(number)
        if answer is not None:
            answer.left = True

    def _do(self, number: bytes, request: str, answer: _Answer) -> None:
        try:
            self._work(request[0], request[1:], answer)
        except Exception as problem:  # noqa: BLE001 - raised in the program
            names = [kind.__name__ for kind in type(problem).__mro__]
            self._write(b"%b !%b\n" % (number, json.dumps([names, str(problem)]).encode()))
        else:
            self._write(b"%b \n" % number)
        del self._answers[number]

    def _work(self, kind: str, body: str, answer: _Answer) -> None:
        if kind == "i":
            self._server = self._start()
            return
        server = cast("Server", self._server)
        if kind == "l":
            server.load(body)
        elif kind == "c":
            server.complete(body, answer)
        else:
            answer.put(server.embed(body))

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._output.write(line)
            self._output.flush()


def main() -> None:
    """Answer the calls of the program, which sends its ``sys.path`` first.

    What the engine prints is no answer: everything else gets an empty input and output.
    """
    with suppress(OSError), os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as output:
        for descriptor in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        sys.path[:] = json.loads(requests.readline())
        Script(output).run(requests)
    os._exit(0)  # at once, whatever the engine's threads do


if __name__ == "__main__":
    main()
else:
    atexit.register(_end_all)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=_leave_to_parent)
