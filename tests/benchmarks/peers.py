"""Comparison with other libraries, each in its own virtual environment: ``python -m tests.benchmarks.peers``.

The environments are created in the folder given as the first argument (by default a temporary one), from the package
registry. All clients call the same stub in turn, so that they run under the same load; the figures are medians and
their ratios to bare httpx in this environment.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from tests.benchmarks.stub import stub

ROOT: Final = Path(__file__).parents[2]
CLIENT: Final = Path(__file__).with_name("peer.py")
PEERS: Final = {"openai": ("openai",), "litellm": ("litellm[proxy]",), "langchain": ("langchain-openai",)}
CASES: Final = {
    "call": ("httpx", "llm_effects", "openai", "litellm"),
    "stream": ("httpx", "llm_effects", "openai", "litellm"),
    "hit": ("llm_effects", "litellm", "langchain"),
}


def python_of(folder: Path, name: str) -> str:
    """Return the interpreter of a peer's environment, after creating it if necessary."""
    place = folder / name
    python = str(place / "bin" / "python")
    if not place.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
    return python


@contextmanager
def client(python: str, name: str, base: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a client that measures one call for each line of input."""
    command = [python, str(CLIENT), name, base]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


def time_of(process: "subprocess.Popen[str]", case: str) -> float:
    """Return the time of one call, in microseconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{case}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(folder: Path, rounds: int) -> None:
    pythons = {
        "httpx": sys.executable,
        "llm_effects": sys.executable,
        **{name: python_of(folder, name) for name in PEERS},
    }
    with stub(count=200) as base, ExitStack() as stack:
        clients = {name: stack.enter_context(client(python, name, base)) for name, python in pythons.items()}
        bare = 0.0
        for case, names in CASES.items():
            medians = measure(case, {name: clients[name] for name in names}, rounds)
            bare = medians.get("httpx", bare) if case == "call" else bare
            report(case, medians, medians.get("httpx", bare))


def measure(case: str, clients: dict[str, "subprocess.Popen[str]"], rounds: int) -> dict[str, float]:
    """Run each client in turn, and return the median of each, in microseconds."""
    taken: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(rounds + 10):
        for name, process in clients.items():
            took = time_of(process, case)
            if number >= 10:
                taken[name].append(took)
    return {name: median(times) for name, times in taken.items()}


def report(case: str, medians: dict[str, float], bare: float) -> None:
    ours = medians["llm_effects"]
    against = "a bare httpx call" if case == "hit" else "bare httpx"
    print(f"{case}, every layer: {ours:.0f} us = {ours / bare:.3f} x {against} ({bare:.0f} us)")
    for name in medians.keys() - {"httpx", "llm_effects"}:
        print(f"    {name}: {medians[name]:.0f} us = {medians[name] / ours:.1f} x ours")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder), rounds=200)
