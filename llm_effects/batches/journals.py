"""What a journal is: where a long run notes its answers, so that it can be killed and go on."""

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from io import FileIO
from os import PathLike
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar, final

import msgspec
from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations, LLMEnv
from llm_effects.policies.cache import request_key
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import LLMError, StorageFailed, cause_of
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.serialization import VERSION, Entry, dump_entry, load_entry


@final
@frozen
class Found:
    """What a journal has of a request: its answer, or that another request was answered in its place."""

    answer: LLMResponse | None = None
    changed: bool = False


class OpenJournal(Protocol):
    """A journal while a run goes on. What goes wrong with it is a ``StorageFailed``."""

    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:
        """Look for the answer to the request of this number."""
        ...

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        """Note an answer for good."""
        ...


Journal: TypeAlias = Callable[[LLMEnv], AbstractAsyncContextManager[Result[OpenJournal, LLMError]]]
"""A journal that can be opened, for one run at a time."""


def found_in(entry: bytes | None) -> Found:
    """What was killed before its answer came has none, and neither has what another version of ours wrote."""
    read = None if entry is None else load_entry(entry)
    return Found(None if read is None else read.response)


@asynccontextmanager
async def no_journal(_: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    """Note nothing."""
    yield Success(_Nothing())


@final
class _Nothing:
    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:  # noqa: ARG002 - as all are asked
        return Success(Found())

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:  # noqa: ARG002
        return Success(None)


# The file of a journal: a line of JSON for each answer, on the disk before anybody is told of it.
#
# The first line says what the file is: nothing else is ever written to. A last line that is torn, by a crash or a full
# disk, goes when the file is next opened, and a damaged one is none.


HEADER: Final = b'{"format":"llm_effects.journal","version":1}\n'
"""The first line."""

_STRANGE: Final = "is no journal of this version: it is left as it is; give another file"
_LOCKED: Final = "is in use by another run: wait for its end, or give this one a file of its own"

_Made = TypeVar("_Made")


@final
class Line(msgspec.Struct, frozen=True):
    """An answer: to the request of this ``number``, whose key is ``request``."""

    number: int
    request: str
    entry: msgspec.Raw


def tried(path: Path, work: Callable[[], _Made]) -> Result[_Made, LLMError]:
    """Turn what the system says of a file into a ``StorageFailed``."""
    try:
        return Success(work())
    except (OSError, ValueError) as problem:  # the second: of a path that no file has, or of a closed file
        why = getattr(problem, "strerror", None) or problem
        return Failure(StorageFailed(operation="journal", message=f"{path}: {why}", cause=cause_of(problem)))


@final
@define(eq=False)
class JournalFile:
    """An open journal, locked against all others until it is closed or its process is gone.

    ``_places`` is where the last line of each number begins and how long it is, until it has been asked for.
    """

    _file: FileIO
    _places: dict[int, tuple[int, int]] = field(factory=dict[int, tuple[int, int]])
    _end: int = 0

    @classmethod
    def open(cls, path: Path) -> "JournalFile":
        """Open a journal, or begin one; raises ``OSError`` with what is wrong."""
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600), "r+b")
        try:
            _lock(file)
            journal = cls(file)
            journal._read(path)
        except BaseException:
            file.close()
            raise
        return journal

    def _read(self, path: Path) -> None:
        head = self._file.read(len(HEADER))
        if head != HEADER:
            if not HEADER.startswith(head):
                raise OSError(_STRANGE)
            self._append(HEADER)  # it is new, or was torn off while it was
            _sync_folder(path)
            return
        self._end = len(HEADER)
        for start, line in _lines(self._file, self._end):
            self._end = start + len(line)
            told = _line(line)
            if told is not None:
                self._places[told.number] = start, len(line)
        self._file.truncate(self._end)

    def find(self, number: int) -> Line | None:
        """Give the last answer to the request of a number, once."""
        place = self._places.pop(number, None)
        if place is None:
            return None
        start, size = place
        self._file.seek(start)
        return _line(self._file.read(size))

    def add(self, line: Line) -> None:
        """Add an answer; when this returns, it is on the disk."""
        self._append(msgspec.json.encode(line) + b"\n")

    def _append(self, data: bytes) -> None:
        self._file.seek(self._end)  # over what a write that failed half-way may have left
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        os.fsync(self._file.fileno())
        self._end += len(data)

    def close(self) -> None:
        """Let go of the file and its lock; a second time does nothing."""
        self._file.close()


def _lines(file: FileIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Give each whole line from a place on, and where it begins."""
    file.seek(start)
    rest = b""
    while piece := file.read(2**20):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield start, line + b"\n"
            start += len(line) + 1


def _line(data: bytes) -> Line | None:
    try:
        return msgspec.json.decode(data, type=Line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _lock(file: FileIO) -> None:
    """Take the file for this run alone; the system gives it free when the process is gone, however it went."""
    try:
        import fcntl
    except ModuleNotFoundError:  # a system that knows no such locks: two runs at once are the caller's to avoid
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise OSError(_LOCKED) from problem


def _sync_folder(path: Path) -> None:
    """Make the name of a new file last, where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# A journal in a file, written in a thread of its own.


def file_journal(path: str | PathLike[str]) -> Journal:
    """Note answers in a file of JSON lines, each on the disk before it is told; only its owner may read it.

    A file that is no journal, or that another run has open, is a ``StorageFailed`` before anything is asked.

    >>> import anyio, tempfile
    >>> from llm_effects import LLMRequest, generate_many, run, scripted_env
    >>> def paid(reply: str) -> str:
    ...     many = generate_many([LLMRequest(prompt="why?")], journal=file_journal(file.name))
    ...     return anyio.run(run, many, scripted_env(reply)).unwrap()[0].unwrap().content
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     paid("paid for"), paid("never asked")
    ('paid for', 'paid for')
    """
    return partial(_opened_file, Path(path))


OPENING_S: Final = 600.0
"""How long reading a journal through may take, in seconds."""

WRITING_S: Final = 10.0
"""How long the disk may take over one answer, in seconds."""


@asynccontextmanager
async def _opened_file(path: Path, _: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    thread = Worker("llm-effects-journal")
    files: list[JournalFile] = []  # also of an opening that nobody waits for any more
    try:
        opened = await thread.run(
            "journal", lambda: tried(path, lambda: JournalFile.open(path)).map(partial(_kept_in, files)), OPENING_S
        )
        yield opened.map(lambda file: _FileJournal(path, file, thread))
    finally:
        await thread.aclose(partial(_close_all, files))


def _close_all(files: list[JournalFile]) -> None:
    for file in files:
        file.close()


def _kept_in(files: list[JournalFile], file: JournalFile) -> JournalFile:
    files.append(file)
    return file


@final
@frozen
class _FileJournal:
    path: Path
    file: JournalFile
    thread: Worker

    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:
        found = await self.thread.run("journal", lambda: tried(self.path, lambda: self.file.find(number)), WRITING_S)
        return found.map(lambda line: Found() if line is None else _told(line, request_key(request)))

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        line = Line(number, request_key(request), msgspec.Raw(dump_entry(Entry(response=answer))))
        return await self.thread.run("journal", lambda: tried(self.path, lambda: self.file.add(line)), WRITING_S)


def _told(line: Line, key: str) -> Found:
    return found_in(bytes(line.entry)) if line.request == key else Found(changed=True)


# A journal where conversations are stored.


def store_journal(run_id: str, *, owner: str | None = None) -> Journal:
    """Note answers where conversations are stored (``StorageConfig.url``), under the name of a run and its owner.

    Nothing locks a run there: two at once under one name both ask, and the first answers stay.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate_many, run, scripted_env
    >>> env = scripted_env("paid for", "never asked")
    >>> many = generate_many([LLMRequest(prompt="why?")], journal=store_journal("nightly"))
    >>> [anyio.run(run, many, env).unwrap()[0].unwrap().content for _ in range(2)]
    ['paid for', 'paid for']
    """
    return lambda env: _opened_run(_RunJournal(env.conversations, run_id, owner))


@asynccontextmanager
async def _opened_run(journal: OpenJournal) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    yield Success(journal)


@final
@frozen
class _RunJournal:
    """A step of the store's journal for each number, and one more for each other request in its place.

    The first result of a step stays, so answers that another version wrote, which cannot be read, have other steps.
    ``others`` are the numbers whose own step belongs to another request.
    """

    store: Conversations
    run_id: str
    owner: str | None
    others: set[int] = field(factory=set[int])

    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:
        key = request_key(request)
        step = await self._intend(f"{VERSION}/{number}", key)
        if not is_successful(step):
            return Failure(step.failure())
        if step.unwrap().intent == key.encode():
            return Success(found_in(step.unwrap().result))
        self.others.add(number)
        other = await self._intend(f"{VERSION}/{number}/{key}", key)
        return other.map(lambda step: Found(changed=True) if step.result is None else found_in(step.result))

    async def _intend(self, step: str, key: str) -> Result[JournalEntry, LLMError]:
        return await result_of(self.store.intend(self.run_id, self.owner, step, key.encode()))

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        own = f"{VERSION}/{number}"
        step = f"{own}/{request_key(request)}" if number in self.others else own
        return await result_of(self.store.conclude(self.run_id, self.owner, step, dump_entry(Entry(response=answer))))
