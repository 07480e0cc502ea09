"""What a fleet costs its stores: ``python -m tests.benchmarks.fleet [SECONDS [WORKERS ...]]``.

So many worker processes share a Redis server (limits, breakers, cache) and a Postgres server (ledger, budgets,
conversations), and make calls of a stub that takes a second. Each store is reached over a relay that counts
connections, round trips and bytes; a round trip is a change from sending to receiving on a connection. Four kinds of
work follow each other: questions that all workers ask at the same time, calls that miss the cache, calls that hit it,
and turns of conversations. The stub counts how many requests it has at once, and how many it had in all.
"""

import asyncio
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Final, NamedTuple, TypeAlias, final

import anyio
from attrs import define, field, frozen
from returns.pipeline import is_successful

from llm_effects import (
    CachePolicy,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    ModelConfig,
    converse,
    generate,
    open_env,
    run,
    start_conversation,
)
from llm_effects.config import BudgetConfig, CacheConfig, LimitsConfig, StorageConfig
from llm_effects.config.models import Price
from tests.benchmarks.stub import COMPLETION, answer
from tests.fixtures import postgres_server, redis_server

CONCURRENCY: Final = 40
TASKS: Final = 48
HITTING: Final = 4
"""Tasks of each worker that look up answers: as they wait for nothing, they keep a core busy."""

DELAY_S: Final = 1.0
SHARED: Final = 10
"""How many questions all workers ask at the same time."""


Results: TypeAlias = "multiprocessing.SimpleQueue[tuple[str, list[float], float]]"


# What is counted.


@final
@frozen
class Traffic:
    """What a store was sent and sent back."""

    connections: int = 0
    trips: int = 0
    sent: int = 0
    received: int = 0

    def since(self, other: "Traffic") -> "Traffic":
        """Return the traffic since an earlier count; connections are those that are open."""
        return Traffic(
            self.connections, self.trips - other.trips, self.sent - other.sent, self.received - other.received
        )


@final
@define(eq=False)
class Relay:
    """A relay before a store, in a thread of its own."""

    port: int
    _open: int = 0
    _trips: int = 0
    _sent: int = 0
    _received: int = 0

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._open, self._trips, self._sent, self._received)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self._open += 1
        sending = [False]
        try:
            copies = self._copy(reader, back, sending, up=True), self._copy(there, writer, sending, up=False)
            with suppress(asyncio.CancelledError):  # the relay ends
                await asyncio.gather(*copies)
        finally:
            self._open -= 1
            writer.close()
            back.close()

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, sending: list[bool], *, up: bool
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                if up:
                    self._sent += len(data)
                else:
                    self._received += len(data)
                    self._trips += sending[0]
                sending[0] = up
                target.write(data)
                await target.drain()
            target.write_eof()
        except OSError:
            target.close()


@contextmanager
def relayed(port: int) -> Iterator[tuple[Relay, int]]:
    """Run a relay before a port, and yield it with its own port."""
    relay, ready = Relay(port), threading.Event()
    found = list[int]()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(relay.connect, "127.0.0.1", 0))
        found.append(server.sockets[0].getsockname()[1])
        ready.set()
        loop.run_forever()
        server.close()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left)) if left else None
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait()
    yield relay, found[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@final
@define(eq=False)
class Served:
    """How many requests the stub has at once, had at most, and had in all; and for how long it had each number."""

    now: int = 0
    most: int = 0
    total: int = 0
    busy_s: float = 0.0
    _since: float = field(factory=time.monotonic)

    def change(self, by: int) -> None:
        moment = time.monotonic()
        self.busy_s += self.now * (moment - self._since)
        self._since = moment
        self.now += by
        self.most, self.total = max(self.most, self.now), self.total + max(by, 0)


@contextmanager
def stub() -> Iterator[tuple[Served, int]]:
    """Run a model that answers after a second, in a thread, and yield its counts and its port."""
    served, ready, found, loop = Served(), threading.Event(), list[int](), asyncio.new_event_loop()
    reply = answer(json.dumps(COMPLETION).encode())

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                await reader.readexactly(length)
                served.change(1)
                await asyncio.sleep(DELAY_S)
                served.change(-1)
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0, backlog=4096))
        found.append(server.sockets[0].getsockname()[1])
        ready.set()
        loop.run_forever()

    threading.Thread(target=serve, daemon=True).start()
    ready.wait()
    yield served, found[0]
    loop.call_soon_threadsafe(loop.stop)


# What a worker does.


def config_of(model: int, redis: str, postgres: str, concurrency: int | None = CONCURRENCY) -> LLMConfig:
    """Return the configuration that all workers share."""
    endpoint = f"http://127.0.0.1:{model}/v1"
    stub_model = ModelConfig(
        provider="openai-compatible",
        model="stub",
        endpoint=endpoint,
        concurrency=concurrency,
        requests_per_minute=1_000_000,
        tokens_per_minute=1_000_000_000,
        price=Price(input=1, output=2),
    )
    return LLMConfig(
        models={"stub": stub_model},
        cache=CacheConfig(url=f"{redis}"),
        limits=LimitsConfig(url=redis),
        storage=StorageConfig(url=postgres),
        budgets=(BudgetConfig(name="everyone", limit_usd="1000", period="day"),),
    )


async def calls(env: LLMEnv, name: str, end: float, done: list[float], policy: CachePolicy = CachePolicy.USE) -> None:
    numbers = count()

    async def one(task: int) -> None:
        while time.monotonic() < end:
            text = (
                f"{name} {task} {next(numbers)}"
                if policy is not CachePolicy.ONLY
                else f"shared {next(numbers) % SHARED}"
            )
            began = time.monotonic()
            result = await run(generate(LLMRequest(prompt=text, cache=policy)), env)
            if is_successful(result) and not result.unwrap().warnings:
                done.append(time.monotonic() - began)
            else:
                print(result, file=sys.stderr)

    await together(one, HITTING if policy is CachePolicy.ONLY else TASKS)


async def turns(env: LLMEnv, name: str, end: float, done: list[float]) -> None:
    numbers = count()

    async def one(task: int) -> None:
        conversation = (await run(start_conversation(), env)).unwrap().id
        while time.monotonic() < end:
            began = time.monotonic()
            (await run(converse(conversation, f"{name} {task} {next(numbers)}"), env)).unwrap()
            done.append(time.monotonic() - began)

    await together(one)


async def same(env: LLMEnv, done: list[float]) -> None:
    for number in range(SHARED):
        began = time.monotonic()
        (await run(generate(LLMRequest(prompt=f"shared {number}")), env)).unwrap()
        done.append(time.monotonic() - began)


async def together(one: Callable[[int], Coroutine[object, object, None]], tasks: int = TASKS) -> None:
    async with anyio.create_task_group() as group:
        for task in range(tasks):
            group.start_soon(one, task)


def work(number: int, config: Sequence[object], seconds: float, gate: Barrier, results: Results) -> None:
    """Do one kind of work after the other, each of them when all workers are ready."""

    async def main() -> None:
        async with open_env(config_of(*config)) as env:  # type: ignore[arg-type]
            kinds: dict[str, Callable[[float, list[float]], Awaitable[None]]] = {
                "same": lambda _, done: same(env, done),
                "miss": lambda end, done: calls(env, f"miss {number}", end, done),
                "hit": lambda end, done: calls(env, "hit", end, done, CachePolicy.ONLY),
                "turn": lambda end, done: turns(env, f"turn {number}", end, done),
            }
            (await run(generate(LLMRequest(prompt=f"warm {number}")), env)).unwrap()
            for kind, do in kinds.items():
                await anyio.to_thread.run_sync(gate.wait)
                done, used = list[float](), time.process_time()
                await do(time.monotonic() + seconds, done)
                await anyio.sleep(0.5)  # the ledger writes its last batch
                results.put((kind, done, time.process_time() - used))
                await anyio.to_thread.run_sync(gate.wait)

    anyio.run(main)


# The run, and its table.


class Row(NamedTuple):
    """The figures of one kind of work by so many workers."""

    workers: int
    kind: str
    calls: int
    seconds: float
    median_ms: float
    processor_ms: float
    model: int
    most: int
    used: float
    redis: Traffic
    postgres: Traffic


def measure(workers: int, seconds: float) -> list[Row]:
    """Measure each kind of work by so many workers, on new servers."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server.start())
        postgres = stack.enter_context(postgres_server.start())
        served, model = stack.enter_context(stub())
        over_redis, redis_port = stack.enter_context(relayed(redis.port))
        over_postgres, postgres_port = stack.enter_context(relayed(postgres.port))
        url = postgres.new_url().replace(f":{postgres.port}/", f":{postgres_port}/")
        config = (model, f"redis://127.0.0.1:{redis_port}/0", url)
        gate, results = context.Barrier(workers + 1), context.SimpleQueue()
        processes = [context.Process(target=work, args=(n, config, seconds, gate, results)) for n in range(workers)]
        for process in processes:
            process.start()
        rows = [row_of(seconds, gate, results, served, (over_redis, over_postgres)) for _ in range(4)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * workers
        return rows


def row_of(seconds: float, gate: Barrier, results: Results, served: Served, relays: tuple[Relay, Relay]) -> Row:
    """Let the workers do one kind of work, and return its figures."""
    gate.wait()
    before, total, began = [each.traffic for each in relays], served.total, time.monotonic()
    served.most = 0
    used = share_of_limit(served, seconds)
    taken = [results.get() for _ in range(gate.parties - 1)]
    seconds = time.monotonic() - began - 0.5
    redis, postgres = (relay.traffic.since(then) for relay, then in zip(relays, before, strict=True))
    times = [each for _, done, _ in taken for each in done]
    processor_ms = sum(each for *_, each in taken) / len(times) * 1000
    row = Row(
        workers=len(taken),
        kind=taken[0][0],
        calls=len(times),
        seconds=seconds,
        median_ms=median(times) * 1000,
        processor_ms=processor_ms,
        model=served.total - total,
        most=served.most,
        used=used,
        redis=redis,
        postgres=postgres,
    )
    gate.wait()
    return row


def share_of_limit(served: Served, seconds: float) -> float:
    """Return how much of the limit was used while all workers were busy: without the first and the last moments."""
    time.sleep(2 * DELAY_S)
    served.change(0)
    busy, began = served.busy_s, time.monotonic()
    time.sleep(max(0.1, seconds - 2.5 * DELAY_S))
    served.change(0)
    return (served.busy_s - busy) / (CONCURRENCY * (time.monotonic() - began))


HEAD = (
    "| workers | work | calls/s | median ms | processor ms a call | model calls | at once, most | limit used "
    "| Redis: trips, bytes a call | connections | Postgres: trips, bytes a call | connections |"
)


def shown(row: Row) -> str:
    """Show a row of the table."""

    def cost(traffic: Traffic) -> str:
        each = traffic.sent + traffic.received
        return f"{traffic.trips / row.calls:.2f}, {each / row.calls:,.0f} | {traffic.connections}"

    speed = f"{row.calls / row.seconds:,.0f} | {row.median_ms:,.1f} | {row.processor_ms:,.1f}"
    model = f"{row.model} | {row.most} | {row.used:.0%}"
    return f"| {row.workers} | {row.kind} | {speed} | {model} | {cost(row.redis)} | {cost(row.postgres)} |"


def main(seconds: float = 10.0, counts: Sequence[int] = (1, 2, 4)) -> None:
    """Measure each number of workers, and print the table."""
    print(HEAD)
    print("|" + " --- |" * HEAD.count("|", 1))
    for workers in counts:
        for row in measure(workers, seconds):
            print(shown(row), flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *([[*map(int, sys.argv[2:])]] if sys.argv[2:] else []))
