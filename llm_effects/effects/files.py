"""Images and documents read from files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import anyio
import anyio.to_thread
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect
from llm_effects.effects.env import LLMEnv
from llm_effects.values import caps
from llm_effects.values.errors import InvalidRequest, LLMError, cause_of, checked
from llm_effects.values.messages import Document, Image, Stays, media_type_of

StrPath: TypeAlias = str | os.PathLike[str]
"""The path of a file."""

_Part = TypeVar("_Part", Image, Document)


def read_image(path: StrPath, *, stays: Stays | None = None) -> Effect[Image]:
    """Read an image; its media type follows from its bytes, else from its name. A bad file is an ``InvalidRequest``.

    With ``stays="machine"`` it is shown only to models that run on this machine.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, read_image("/no/such.png"), scripted_env()).failure().message
    '/no/such.png: cannot be read (No such file or directory): give the path of a file'
    """
    return _read(path, lambda data: checked(Image, data, media_type_of(data) or _media_type(path), stays=stays))


def read_document(path: StrPath, *, cite: bool = False, stays: Stays | None = None) -> Effect[Document]:
    """Read a document, titled by the file's name; with ``cite`` the model is asked to cite it.

    With ``stays="machine"`` it is shown only to models that run on this machine. A bad file is an ``InvalidRequest``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, read_document("/no/such.pdf"), scripted_env()).failure().tag
    'InvalidRequest'
    """
    title = Path(path).name
    return _read(path, lambda data: checked(Document, data, _media_type(path), title=title, cite=cite, stays=stays))


def _media_type(path: StrPath) -> str | None:
    import mimetypes

    return _BY_SUFFIX.get(Path(path).suffix.lower()) or mimetypes.guess_type(Path(path).name)[0]


_BY_SUFFIX: Final = {".md": "text/markdown", ".toml": "application/toml", ".yaml": "text/yaml", ".yml": "text/yaml"}
"""Suffixes that not every machine's table knows."""


def _read(path: StrPath, make: Callable[[bytes], Result[_Part, LLMError]]) -> Effect[_Part]:
    def read() -> Result[_Part, LLMError]:
        data = _bytes(path)
        if not is_successful(data):
            return Failure(data.failure())
        return make(data.unwrap()).alt(lambda error: _named(path, error))

    async def read_aside(_: LLMEnv) -> Result[_Part, LLMError]:
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)

    return effect(read_aside)


def _bytes(path: StrPath) -> Result[bytes, LLMError]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return Failure(InvalidRequest(message=f"{path}: is not a regular file: give the path of one"))
            data = file.read(caps.FILE_BYTES + 1)
    except (OSError, ValueError) as problem:  # ValueError: a path that no file can have
        why = getattr(problem, "strerror", None) or problem
        message = f"{path}: cannot be read ({why}): give the path of a file"
        return Failure(InvalidRequest(message=message, cause=cause_of(problem)))
    too_large = InvalidRequest(message=f"{path}: is larger than {caps.FILE_BYTES} bytes: make it smaller")
    return Success(data) if len(data) <= caps.FILE_BYTES else Failure(too_large)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _named(path: StrPath, error: LLMError) -> LLMError:
    return evolve(error, message=f"{path}: {error.message}") if isinstance(error, InvalidRequest) else error
