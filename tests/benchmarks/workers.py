"""Clients as worker processes, and the turns in which they are measured.

All clients of a case take turns in one run, so that they share the load of the machine; the figures of a round belong
together. Each peer has a virtual environment of its own, installed from the package registry into a cache folder.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, final

from attrs import frozen

from tests.benchmarks.bars import OVER, Case, Figures, Sample
from tests.benchmarks.stub import stub

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-effects-benchmarks"
SERVERS: Final[Mapping[str, Mapping[str, float]]] = {
    "fast": {"count": 200},
    "slow": {"delay_ms": 200},
    "gaps": {"count": 23, "gap_ms": 50},
    "held": {"delay_ms": 8000},
}
PEERS: Final[Mapping[str, tuple[str, ...]]] = {
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "litellm": ("litellm[proxy]",),
    "pydantic-ai": ("pydantic-ai-slim[openai]",),
    "langchain": ("langchain-openai",),
    "any-llm": ("any-llm-sdk[openai]",),
}

OURS: Final = "llm-effects"
"""The environment for first calls: this library as users install it, without the tools of its developers."""

Lines: TypeAlias = "subprocess.Popen[str]"


@final
@frozen
class Client:
    """A client that is measured: its name in ``clients.py``, its interpreter, and its event loop.

    ``clean`` is the interpreter of its first calls, where that is another one.
    """

    name: str
    python: str = sys.executable
    loop: str = "asyncio"
    clean: str | None = None

    def command(self, urls: Mapping[str, str], *, first: bool = False) -> list[str]:
        servers = (f"{name}={url}" for name, url in urls.items())
        python = self.clean if first and self.clean else self.python
        module = [python, "-m", "tests.benchmarks.clients", *(["first"] if first else [])]
        return [*module, self.name, self.loop, *servers]


@final
class Worker(NamedTuple):
    """A client in a process, and the versions of what it measures."""

    client: Client
    process: Lines
    versions: Mapping[str, str]


def install(name: str, cache: Path = CACHE) -> Client:
    """Return a peer, or this library in an environment of its own, which is created unless it is there."""
    folder = cache / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {name} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *PEERS.get(name, ("-e", f"{ROOT}[fast]"))], check=True
        )
        (folder / "installed").touch()
    return Client(name, str(python))


@contextmanager
def servers() -> Iterator[Mapping[str, str]]:
    """Start every server, and yield their base URLs by name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(stub(**settings)) for name, settings in SERVERS.items()}  # type: ignore[arg-type]


@contextmanager
def started(clients: Iterable[Client], urls: Mapping[str, str]) -> Iterator[Sequence[Worker]]:
    """Start each client as a worker, and yield the workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(worker(client, urls)) for client in clients]


@contextmanager
def worker(client: Client, urls: Mapping[str, str]) -> Iterator[Worker]:
    with process_of(client.command(urls)) as process:
        try:
            yield Worker(client, process, json.loads(line_of(process)))
        finally:
            process.kill()


def process_of(command: Sequence[str]) -> Lines:
    """Start a client. It finds its bytecode, or writes it, as an installed package has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=environment, preexec_fn=use_the_last_core)  # noqa: PLW1509


def use_the_last_core() -> None:
    """Run on one core, as all clients do: the others of the machine may be slower or busier at the moment."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def line_of(process: Lines) -> str:
    """Return the next line of a worker; raise what it wrote if it ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        message = f"a client ended with {process.wait()}: {process.args!r}"
        raise RuntimeError(message)
    return line


def sample_of(worker: Worker, case: Case, urls: Mapping[str, str]) -> Sample | None:
    """Measure a case once: so many runs, or the first call of a new process."""
    if case.first:
        with process_of(worker.client.command(urls, first=True)) as process:
            return parsed(line_of(process), 1)
    is_base = case.against and worker.client.name == "bare"
    times = case.times if worker.client.name in OVER else min(case.times, 40) if is_base else -(-case.times // 5)
    assert worker.process.stdin is not None
    worker.process.stdin.write(f"{case.against if is_base else case.key} {times}\n")
    worker.process.stdin.flush()
    return parsed(line_of(worker.process), times * case.each)


def parsed(line: str, calls: int) -> Sample | None:
    """Read what a client prints; ``None`` if it failed.

    >>> parsed("0.5 1.0 0.0", 10), parsed("failed TimeoutError", 10)
    (Sample(processor=0.05, elapsed=0.1, figure=0.0), None)
    """
    if line.startswith("failed"):
        print(line, file=sys.stderr)
        return None
    processor, elapsed, figure = map(float, line.split())
    return Sample(processor / calls, elapsed / calls, figure)


def measure(cases: Iterable[Case], workers: Sequence[Worker], urls: Mapping[str, str], scale: float = 1.0) -> Figures:
    """Measure the cases one after the other, each by every client that has it, and return the samples by name."""
    taken = {case.key: samples_of(case, workers, urls, scale) for case in cases}
    return {key: {client.name: samples for client, samples in each.items()} for key, each in taken.items()}


def samples_of(
    case: Case, workers: Sequence[Worker], urls: Mapping[str, str], scale: float = 1.0
) -> Mapping[Client, Sequence[Sample]]:
    """Return the samples of each client that has the case, taken in turn. A round before them warms each."""
    print(case.title, file=sys.stderr)
    rounds = case.rounds if case.long else max(1, round(case.rounds * scale))
    chosen = [each for each in workers if each.client.name in case.clients]
    taken: dict[Client, list[Sample]] = {each.client: [] for each in chosen}
    for number in range(0 if case.long else -1, rounds):
        for each in chosen:
            if number < rounds_by(each.client.name, case, rounds):
                sample = sample_of(each, case, urls)
                taken[each.client] += [sample] if sample is not None and number >= 0 else []
    return taken


def rounds_by(client: str, case: Case, rounds: int) -> int:
    """Return how many rounds a client takes part in: peers in the first third.

    >>> from tests.benchmarks.bars import CASES
    >>> [rounds_by(client, CASES[0], 15) for client in ("aiohttp", "bare", "openai")]
    [15, 15, 5]
    """
    if client in OVER or (client == "bare" and not case.long):
        return rounds
    return 1 if case.long else -(-rounds // 3)
