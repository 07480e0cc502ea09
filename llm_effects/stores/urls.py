"""What the URL of a store says."""

from pathlib import Path
from typing import Final

from returns.result import Failure, Result, Success

NO_FILE: Final = "names no file: write sqlite:///file for one in the current folder, sqlite:////folder/file for any"


def sqlite_file(url: str) -> Result[Path, str]:
    """Give the file that a ``sqlite:///file`` URL names, or what is wrong with it.

    >>> sqlite_file("sqlite:///answers.db").unwrap().name
    'answers.db'
    >>> sqlite_file("sqlite:///:memory:").failure()[:14]
    'names no file:'
    """
    host, slash, path = url.partition("://")[2].partition("/")
    if host or not slash or not path.strip("/") or path == ":memory:" or "\0" in path:
        return Failure(NO_FILE)
    try:
        return Success(Path(path).expanduser())
    except RuntimeError:
        return Failure(f"there is no such user: {path}")
