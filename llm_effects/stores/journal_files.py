"""The file of a journal: a line of JSON for each answer, on the disk before anybody is told of it.

The first line says what the file is: nothing else is ever written to. A last line that is torn, by a crash or a full
disk, goes when the file is next opened, and a damaged one is none.
"""

import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar, final

import msgspec
from attrs import define, field
from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError, StorageFailed
from llm_effects.exceptions import cause_of

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
