"""Model clients: the HTTP exchange, the in-process engine, health checks."""

import sys
from importlib import import_module
from typing import Any

_MODULES: dict[str, Any] = sys.modules

if "httpx" not in _MODULES:  # its command line imports click, rich and pygments: 38 of the 104 ms that httpx takes
    _MODULES["httpx._main"] = None  # as if they were not installed, which httpx allows for
    import_module("httpx")
    del _MODULES["httpx._main"]
