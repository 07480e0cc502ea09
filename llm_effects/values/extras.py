"""Extras: the command that installs one here, where the library may be a checkout."""

from functools import cache
from pathlib import Path
from shlex import quote
from urllib.parse import unquote, urlsplit

import msgspec


@cache
def install_command(extra: str) -> str:
    """Return the command that installs an extra, such as ``pip install 'llm-effects[sql]'``.

    For a checkout or a wheel it names the folder or the file: no index may have the package.
    """
    from importlib.metadata import PackageNotFoundError, distribution  # 7 ms, with what it imports

    try:
        origin = distribution("llm-effects").read_text("direct_url.json")  # PEP 610: not there for an index
    except PackageNotFoundError:  # imported without pip
        folder = Path(__file__).resolve().parents[2]
        path, editable = folder if (folder / "pyproject.toml").exists() else None, True
    else:
        path, editable = _path_of(msgspec.json.decode(origin or "{}", type=_Origin))
    if path is None:
        return f"pip install 'llm-effects[{extra}]'"
    return f"pip install {'-e ' if editable else ''}{quote(f'{path}[{extra}]')}"


class _Folder(msgspec.Struct):
    editable: bool = False


class _Origin(msgspec.Struct):
    """The origin of an installed package, as pip notes it in ``direct_url.json``."""

    url: str = ""
    dir_info: _Folder = msgspec.field(default_factory=_Folder)


def _path_of(origin: _Origin) -> tuple[Path | None, bool]:
    """Return the folder or the file that was installed, if it is on this machine, and whether it is editable."""
    url = urlsplit(origin.url)
    return Path(unquote(url.path)) if url.scheme == "file" else None, origin.dir_info.editable
