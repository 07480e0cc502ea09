"""Journals: where a long run stores its answers, so that it can be killed and resumed without paying twice.

A journal is a file of JSON lines (``file_journal``), or part of the conversation store (``store_journal``).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from io import FileIO
from os import PathLike
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar, final

import anyio
import msgspec
from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import Conversations, LLMEnv
from llm_effects.policies.cache import request_key
from llm_effects.stores.sqlite_files import owner_problem
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import LLMError, StorageFailed, cause_of
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.serialization import VERSION, Entry, dump_entry, load_entry


@final
@frozen
class Lookup:
    """The stored ``answer`` to a request, if any; ``changed`` if the journal holds another request in its place."""

    answer: LLMResponse | None = None
    changed: bool = False


class OpenJournal(Protocol):
    """A journal during a run; its errors are ``StorageFailed``."""

    async def find(self, number: int, request: LLMRequest) -> Result[Lookup, LLMError]:
        """Return the stored answer to the request with this number."""
        ...

    async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        """Store an answer durably."""
        ...

    async def notes(self) -> Result[tuple[JournalEntry, ...], LLMError]:
        """Return every step that was noted, in order."""
        ...

    async def intend(self, key: str, intent: bytes) -> Result[JournalEntry, LLMError]:
        """Note a step before it is taken, in JSON; one that was noted is returned unchanged, and not ``fresh``."""
        ...

    async def conclude(self, key: str, result: bytes) -> Result[None, LLMError]:
        """Note the result of a step, in JSON; the first result stays."""
        ...


Journal: TypeAlias = Callable[[LLMEnv], AbstractAsyncContextManager[Result[OpenJournal, LLMError]]]
"""Opens a journal, for one run at a time."""


@asynccontextmanager
async def no_journal(_: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    """Open a journal that stores nothing."""
    yield Success(_NoJournal())


@final
class _NoJournal:
    async def find(self, number: int, request: LLMRequest) -> Result[Lookup, LLMError]:  # noqa: ARG002 - the protocol
        return Success(Lookup())

    async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:  # noqa: ARG002
        return Success(None)

    async def notes(self) -> Result[tuple[JournalEntry, ...], LLMError]:
        return Success(())

    async def intend(self, key: str, intent: bytes) -> Result[JournalEntry, LLMError]:
        return Success(JournalEntry(key=key, intent=intent, fresh=True))

    async def conclude(self, key: str, result: bytes) -> Result[None, LLMError]:  # noqa: ARG002 - the protocol
        return Success(None)


SAVING_S: Final = 30.0
"""How long storing an answer in the journal may take, in seconds; cancellation does not cut that short."""


async def save_answer(journal: OpenJournal, number: int, request: LLMRequest, answer: Answer) -> Result[None, LLMError]:
    """Store an answer before it is returned. Failures are not stored, so that another start of the run retries them."""
    if not is_successful(answer):
        return Success(None)
    with anyio.move_on_after(SAVING_S, shield=True):
        return await journal.save(number, request, answer.unwrap())
    return Failure(StorageFailed(operation="journal", message="storing an answer took too long", transient=True))


def _stored_answer(entry: bytes | None) -> Lookup:
    """Return the answer in an entry: none if the run was killed first, or if another version wrote it."""
    stored = None if entry is None else load_entry(entry)
    return Lookup(None if stored is None else stored.response)


# A journal in a file: a line of JSON for each answer, written by a thread of its own.

HEADER: Final = b'{"format":"llm_effects.journal","version":1}\n'
"""The first line, which identifies the file: no other file is written to."""

OPENING_S: Final = 600.0
"""How long reading a journal may take, in seconds."""

WRITING_S: Final = 10.0
"""How long writing one answer to disk may take, in seconds."""

_NOT_A_JOURNAL: Final = "is not a journal of this version: it was left unchanged; use another file"
_LOCKED: Final = "is in use by another run: wait for it to end, or use another file for this one"

_Value = TypeVar("_Value")


def file_journal(path: str | PathLike[str]) -> Journal:
    """Store answers in a file of JSON lines, each on disk before it is returned; only its owner may read it.

    A file that is not a journal, or that another run has open, is a ``StorageFailed`` before any model is called.

    >>> import anyio, tempfile
    >>> from llm_effects import LLMRequest, generate_many, run, scripted_env
    >>> def first_answer(reply: str) -> str:
    ...     many = generate_many([LLMRequest(prompt="why?")], journal=file_journal(file.name))
    ...     return anyio.run(run, many, scripted_env(reply)).unwrap()[0].unwrap().content
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     first_answer("paid for"), first_answer("never called")
    ('paid for', 'paid for')
    """
    return partial(_open_file, Path(path))


@asynccontextmanager
async def _open_file(path: Path, _: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    thread = Worker("llm-effects-journal")
    files: list[JournalFile] = []  # also one that was opened after the wait for it ended

    def open_file() -> JournalFile:
        file = JournalFile.open(path)
        files.append(file)
        return file

    def close_files() -> None:
        for file in files:
            file.close()

    try:
        opened = await thread.run("journal", lambda: _catch_file_errors(path, open_file), OPENING_S)
        yield opened.map(lambda file: _FileJournal(path, file, thread))
    finally:
        await thread.aclose(close_files)


@final
@frozen
class _FileJournal:
    path: Path
    file: JournalFile
    thread: Worker

    async def find(self, number: int, request: LLMRequest) -> Result[Lookup, LLMError]:
        line = await self._run(lambda: self.file.find(number))
        return line.map(partial(_lookup, key=request_key(request)))

    async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        line = Line(number, request_key(request), msgspec.Raw(dump_entry(Entry(response=answer))))
        return await self._run(lambda: self.file.add(line))

    async def notes(self) -> Result[tuple[JournalEntry, ...], LLMError]:
        return await self._run(lambda: tuple(self.file.notes.values()))

    async def intend(self, key: str, intent: bytes) -> Result[JournalEntry, LLMError]:
        return await self._run(lambda: self.file.intend(key, intent))

    async def conclude(self, key: str, result: bytes) -> Result[None, LLMError]:
        return await self._run(lambda: self.file.conclude(key, result))

    async def _run(self, work: Callable[[], _Value]) -> Result[_Value, LLMError]:
        return await self.thread.run("journal", lambda: _catch_file_errors(self.path, work), WRITING_S)


def _lookup(line: Line | None, key: str) -> Lookup:
    if line is None:
        return Lookup()
    return _stored_answer(bytes(line.entry)) if line.request == key else Lookup(changed=True)


def _catch_file_errors(path: Path, work: Callable[[], _Value]) -> Result[_Value, LLMError]:
    try:
        return Success(work())
    except (OSError, ValueError) as problem:  # ValueError: an impossible path, or a closed file
        reason = getattr(problem, "strerror", None) or problem
        return Failure(StorageFailed(operation="journal", message=f"{path}: {reason}", cause=cause_of(problem)))


@final
class Line(msgspec.Struct, frozen=True):
    """The answer to the request with this ``number``, whose key is ``request``."""

    number: int
    request: str
    entry: msgspec.Raw


@final
class NoteLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The intent of the step ``note``, or its result; versions without such steps ignore the line."""

    note: str
    intent: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()


@final
@define(eq=False)
class JournalFile:
    """An open journal file, locked until it is closed or its process ends.

    ``_places`` maps each number to the start and size of its last line, until that line is read, and ``notes`` holds
    the steps that were noted. A last line that was torn by a crash or a full disk is removed on opening; a damaged line
    is ignored.
    """

    _file: FileIO
    notes: dict[str, JournalEntry] = field(factory=dict[str, JournalEntry], init=False)
    _places: dict[int, tuple[int, int]] = field(factory=dict[int, tuple[int, int]])
    _end: int = 0

    @classmethod
    def open(cls, path: Path) -> JournalFile:
        """Open or create a journal file; raise ``OSError`` with the reason if that fails."""
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600), "r+b")
        try:
            _check_owner(file)
            _lock(file)
            journal = cls(file)
            journal._read(path)
        except BaseException:
            file.close()
            raise
        return journal

    def _read(self, path: Path) -> None:
        head = self._file.read(len(HEADER))
        if not HEADER.startswith(head):
            raise OSError(_NOT_A_JOURNAL)
        _restrict(self._file)
        if head != HEADER:
            self._append(HEADER)  # the file is new, or its header was torn
            _sync_folder(path)
            return
        self._end = len(HEADER)
        for start, data in _whole_lines(self._file, self._end):
            self._end = start + len(data)
            line = _decoded(data, Line)
            if line is not None:
                self._places[line.number] = start, len(data)
            elif (note := _decoded(data, NoteLine)) is not None:
                self._keep(note)
        self._file.truncate(self._end)

    def find(self, number: int) -> Line | None:
        """Return the last answer to the request with this number, once."""
        place = self._places.pop(number, None)
        if place is None:
            return None
        start, size = place
        self._file.seek(start)
        return _decoded(self._file.read(size), Line)

    def intend(self, key: str, intent: bytes) -> JournalEntry:
        """Append the intent of a step and return it, or return the one that is there."""
        if key not in self.notes:
            self._note(NoteLine(key, intent=msgspec.Raw(intent)))
            return evolve(self.notes[key], fresh=True)
        return self.notes[key]

    def conclude(self, key: str, result: bytes) -> None:
        """Append the result of a step that has none."""
        if self.notes[key].result is None:
            self._note(NoteLine(key, result=msgspec.Raw(result)))

    def _note(self, line: NoteLine) -> None:
        self._append(msgspec.json.encode(line) + b"\n")
        self._keep(line)

    def _keep(self, line: NoteLine) -> None:
        """Keep what a line adds to its step: the first intent and the first result."""
        intent, result = bytes(line.intent), bytes(line.result)
        entry = self.notes.get(line.note)
        if entry is None and intent:
            self.notes[line.note] = JournalEntry(key=line.note, intent=intent)
        elif entry is not None and entry.result is None and result:
            self.notes[line.note] = evolve(entry, result=result)

    def add(self, line: Line) -> None:
        """Append an answer, and return when it is on disk."""
        self._append(msgspec.json.encode(line) + b"\n")

    def _append(self, data: bytes) -> None:
        self._file.seek(self._end)  # overwrites what an incomplete write left
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        os.fsync(self._file.fileno())
        self._end += len(data)

    def close(self) -> None:
        """Close the file and release its lock; closing twice is fine."""
        self._file.close()


def _whole_lines(file: FileIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Return each complete line from ``start`` on, and its position."""
    file.seek(start)
    rest = b""
    while chunk := file.read(2**20):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield start, line + b"\n"
            start += len(line) + 1


def _decoded(data: bytes, kind: type[_Value]) -> _Value | None:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _check_owner(file: FileIO) -> None:
    """Refuse another user's file."""
    if problem := owner_problem(os.fstat(file.fileno())):
        raise OSError(problem)


def _restrict(file: FileIO) -> None:
    """Restrict a file to its owner, before anything is written to it."""
    status = os.fstat(file.fileno())
    if status.st_mode & 0o077 and hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), status.st_mode & 0o700)


def _lock(file: FileIO) -> None:
    """Lock the file for this run; the system releases the lock when the process ends, even by a crash."""
    try:
        import fcntl
    except ModuleNotFoundError:  # without such locks, callers must not start two runs at once
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise OSError(_LOCKED) from problem


def _sync_folder(path: Path) -> None:
    """Make the name of a new file durable, on systems that can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# A journal in the conversation store.


def store_journal(run_id: str, *, owner: str | None = None) -> Journal:
    """Store answers where conversations are stored (``StorageConfig.url``), under the id and owner of a run.

    The answer to a request with an owner is stored under that one, and is erased with it.
    Nothing locks a run there: of two at once with one id both call the models, and the first answers are kept.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate_many, run, scripted_env
    >>> env = scripted_env("paid for", "never called")
    >>> many = generate_many([LLMRequest(prompt="why?")], journal=store_journal("nightly"))
    >>> [anyio.run(run, many, env).unwrap()[0].unwrap().content for _ in range(2)]
    ['paid for', 'paid for']
    """
    return lambda env: _open_store(_StoreJournal(env.conversations, run_id, owner))


@asynccontextmanager
async def _open_store(journal: OpenJournal) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    yield Success(journal)


_NOTE: Final = "note/"
"""How the keys of noted steps begin."""


@final
@frozen
class _StoreJournal:
    """A journal step for each number, and another step for each different request in its place.

    The store keeps the first result of a step, so each version of the format has steps of its own. ``changed`` holds
    the numbers whose own step belongs to another request.
    """

    store: Conversations
    run_id: str
    owner: str | None
    changed: set[int] = field(factory=set[int])

    async def find(self, number: int, request: LLMRequest) -> Result[Lookup, LLMError]:
        key = request_key(request)
        own = await self._intend(f"{VERSION}/{number}", key, request)
        if not is_successful(own):
            return Failure(own.failure())
        if own.unwrap().intent == key.encode():
            return Success(_stored_answer(own.unwrap().result))
        self.changed.add(number)
        other = await self._intend(f"{VERSION}/{number}/{key}", key, request)
        return other.map(lambda entry: Lookup(changed=True) if entry.result is None else _stored_answer(entry.result))

    async def _intend(self, step: str, key: str, request: LLMRequest) -> Result[JournalEntry, LLMError]:
        return await result_of(self.store.intend(self.run_id, request.owner or self.owner, step, key.encode()))

    async def notes(self) -> Result[tuple[JournalEntry, ...], LLMError]:
        entries = await result_of(self.store.journal(self.run_id, self.owner))
        return entries.map(
            lambda all_entries: tuple(
                evolve(entry, key=entry.key.removeprefix(_NOTE)) for entry in all_entries if entry.key.startswith(_NOTE)
            )
        )

    async def intend(self, key: str, intent: bytes) -> Result[JournalEntry, LLMError]:
        return await result_of(self.store.intend(self.run_id, self.owner, f"{_NOTE}{key}", intent))

    async def conclude(self, key: str, result: bytes) -> Result[None, LLMError]:
        return await result_of(self.store.conclude(self.run_id, self.owner, f"{_NOTE}{key}", result))

    async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        own = f"{VERSION}/{number}"
        step = f"{own}/{request_key(request)}" if number in self.changed else own
        result = dump_entry(Entry(response=answer))
        return await result_of(self.store.conclude(self.run_id, request.owner or self.owner, step, result))
