"""A journal in a file, written in a thread of its own."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Final, final

import msgspec
from attrs import frozen
from returns.result import Result

from llm_effects.batches.journals import Found, Journal, OpenJournal, found_in
from llm_effects.caching import request_key
from llm_effects.codecs import Entry, dump_entry
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse
from llm_effects.stores.journal_files import JournalFile, Line, tried
from llm_effects.stores.workers import Worker


def file_journal(path: str | PathLike[str]) -> Journal:
    """Note answers in a file of JSON lines, each on the disk before it is told; only its owner may read it.

    A file that is no journal, or that another run has open, is a ``StorageFailed`` before anything is asked.

    >>> import anyio, tempfile
    >>> from llm_effects import LLMRequest, generate_many, scripted_env, settle
    >>> def run(reply: str) -> str:
    ...     many = generate_many([LLMRequest(prompt="why?")], journal=file_journal(file.name))
    ...     return anyio.run(settle, many, scripted_env(reply)).unwrap()[0].unwrap().content
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     run("paid for"), run("never asked")
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
