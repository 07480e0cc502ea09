"""What imports cost, and the first call of a process: ``python -m tests.benchmarks.imports [rounds]``.

Each line is a new process, which measures its own processor time, without that of the interpreter's start. They take
turns. Bytecode is written before, as pip does. The server of the calls runs in a process of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Final

from tests.benchmarks.stub import stub

BARE_HTTPX: Final = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient() as client:
        body = {"model": "stub", "messages": [{"role": "user", "content": "why?"}]}
        assert (await client.post(URL + "/chat/completions", json=body)).json()
asyncio.run(main())
"""

BARE_AIOHTTP: Final = """
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession() as client:
        body = {"model": "stub", "messages": [{"role": "user", "content": "why?"}]}
        async with client.post(URL + "/chat/completions", json=body) as response:
            assert await response.json()
asyncio.run(main())
"""

CALL: Final = """
import asyncio
from llm_effects import generate, load_config, open_env, run
async def main():
    model = {"provider": "openai-compatible", "model": "stub", "endpoint": URL}
    async with open_env(load_config({"models": {"stub": model}, "transport": KIND}).unwrap()) as env:
        assert (await run(generate("why?"), env)).unwrap().content
asyncio.run(main())
"""

PROGRAMS: Final[Mapping[str, str]] = {
    "import asyncio": "import asyncio",
    "import returns.context, attrs, anyio": "import returns.context, attrs, anyio",
    "import llm_effects": "import llm_effects",
    "from llm_effects import generate": "from llm_effects import generate",
    "first call, bare httpx": BARE_HTTPX,
    "first call, bare aiohttp": BARE_AIOHTTP,
    "first call, over httpx": f"KIND = 'httpx'\n{CALL}",
    "first call, over aiohttp": f"KIND = 'fast'\n{CALL}",
}

MEASURED: Final = """
import time
started = time.process_time()
{program}
print(time.process_time() - started)
"""


def seconds(program: str, bytecode: str) -> float:
    """Run a program in a new process, and return the processor time that it took in seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-c", MEASURED.format(program=program)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def compare(rounds: int = 15) -> None:
    """Print the median and the minimum of each program."""
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with stub() as url, tempfile.TemporaryDirectory() as bytecode:
        for measured in range(rounds + 1):
            for name, program in PROGRAMS.items():
                spent = seconds(f"URL = {url!r}\n{program}", bytecode)
                if measured:  # the first round writes the bytecode
                    taken[name].append(spent)
    for name, times in taken.items():
        print(f"{name:40} {statistics.median(times) * 1000:5.0f} ms, at least {min(times) * 1000:.0f}")


if __name__ == "__main__":
    compare(*map(int, sys.argv[1:]))
