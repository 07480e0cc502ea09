"""Extras: the command that installs one here, where the library may be a checkout."""

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shlex import quote
from urllib.parse import unquote, urlsplit

import msgspec


@cache
def install_command(extra: str) -> str:
    """Return the command that installs an extra, such as ``pip install 'llm-effects[sql]'``.

    For a checkout it names the folder: no index may have the package.
    """
    checkout = _checkout()
    return (
        f"pip install 'llm-effects[{extra}]'" if checkout is None else f"pip install -e {quote(f'{checkout}[{extra}]')}"
    )


def _checkout() -> Path | None:
    """Return the folder that pip installed the library from, or that it is imported from without pip."""
    try:
        origin = distribution("llm-effects").read_text("direct_url.json")  # PEP 610: not there for an index
    except PackageNotFoundError:
        folder = Path(__file__).resolve().parents[2]
        return folder if (folder / "pyproject.toml").exists() else None
    url = urlsplit(str(msgspec.json.decode(origin or "{}", type=dict[str, object]).get("url", "")))
    return Path(unquote(url.path)) if url.scheme == "file" else None
