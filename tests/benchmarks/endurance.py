"""Mixed work for an hour: ``python -m tests.benchmarks.endurance [SECONDS [CALLS_A_SECOND [PLOT]]]``.

Chats, typed and plain calls, streams (some left early), tool runs, batches and cancelled calls go through one
environment with a Redis server (limits, breakers, cache) and a Postgres server (conversations, ledger, budgets,
journals). A server in another process plays the models; it mishandles a tenth of all requests. Conversations are
deleted after 20 turns, and once a minute everything that is older than two minutes, by ``apply_retention``, as a
platform does it. Memory, descriptors, threads, connections and the sizes of the tables are sampled every ten seconds.
In the end each must be as large as it was after the first quarter, up to noise; the plot shows them all.
"""

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, final

import anyio
from attrs import define, field
from redis import Redis
from returns.pipeline import is_successful

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMRequest,
    ModelConfig,
    Preferences,
    converse,
    generate,
    generate_as,
    generate_many,
    open_env,
    open_stream,
    run,
    run_tools,
    start_conversation,
    tool,
    toolkit,
)
from llm_effects.config import BudgetConfig, CacheConfig, LimitsConfig, StorageConfig
from llm_effects.config.models import Price
from llm_effects.config.services import RetentionConfig
from llm_effects.conversations import apply_retention
from llm_effects.conversations.operations import delete_conversation
from llm_effects.effects.lifecycle import Counts
from llm_effects.reports.charts import Markup, tag
from tests.benchmarks.plots import STYLE
from tests.benchmarks.report import DOCS
from tests.benchmarks.stub import answer, as_chunk, child_server
from tests.fixtures import postgres_server, redis_server
from tests.fixtures.postgres_server import Postgres

PLOT: Final = "endurance.svg"
SAMPLE_S: Final = 10.0
KEEP_S: Final = 120
TURNS: Final = 20
FAULTS: Final = 0.1
USAGE: Final = {"prompt_tokens": 12, "completion_tokens": 3}
GROWTH: Final[Mapping[str, float]] = {"memory, MB": 1.1, "Postgres tables, MB": 1.5, "Redis keys": 1.3}
"""The allowed ratio of the end to the time after warm-up; of all others 1.2 and five more."""


# The models.


def choice(message: dict[str, object], finish: str) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]
    return answer(json.dumps({"model": "m", "choices": choices, "usage": USAGE}).encode())


def piece(delta: dict[str, str], finish: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return as_chunk(b"data: " + json.dumps({"model": "m", "choices": choices}).encode() + b"\n\n")


HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CALL: Final = {"id": "c1", "type": "function", "function": {"name": "usage", "arguments": '{"disk": "data"}'}}
TEXT: Final = '{"cause": "logs", "severity": 3}'
BUSY: Final = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 2\r\n\r\n{}"
BROKEN: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops"


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests, a tenth of them wrongly."""
    draw = random.Random()
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = json.loads(await reader.readexactly(length))
            await asyncio.sleep(draw.uniform(0.05, 0.5))
            fault = draw.random() < FAULTS
            if fault and draw.random() < 0.6:
                writer.write(draw.choice((BUSY, BROKEN, answer(b"{not JSON"))))
            elif body.get("stream"):
                await stream_out(writer, cut=fault)
            elif "tools" in body and body["messages"][-1]["role"] == "user":
                writer.write(choice({"content": None, "tool_calls": [CALL]}, "tool_calls"))
            else:
                writer.write(choice({"content": TEXT}, "stop"))
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def stream_out(writer: asyncio.StreamWriter, *, cut: bool) -> None:
    writer.write(HEAD + piece({"role": "assistant", "content": ""}))
    for word in range(20):
        await asyncio.sleep(0.01)
        writer.write(piece({"content": f"word{word} "}))
        await writer.drain()
        if cut and word == 9:
            raise ConnectionError
    writer.write(piece({}, "stop") + as_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve() -> None:
    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The work.


@final
@define
class Finding:
    """What a typed call returns."""

    cause: str
    severity: int


@tool
def usage(disk: str) -> str:
    """Return how full a disk is."""
    return f"{disk} is 91 % full"


@final
@define
class Work:
    """One environment, what was done in it and how it ended, and the conversations under way."""

    env: LLMEnv
    draw: random.Random = field(factory=lambda: random.Random(7))
    ends: Counter[str] = field(factory=Counter[str])
    talks: dict[str, int] = field(factory=dict[str, int])
    numbers: Iterator[int] = field(factory=count)

    def request(self) -> LLMRequest:
        """Return a request; a tenth of them have been asked before."""
        number = next(self.numbers)
        asked = number if self.draw.random() > 0.1 else max(0, number - self.draw.randrange(50))
        owner = f"team-{asked % 5}"
        return LLMRequest(prompt=f"why? {asked}", owner=owner, preferences=Preferences(timeout_ms=20_000))

    async def once(self) -> None:
        """Do one thing, and count how it ended."""
        kinds: tuple[Callable[[], Awaitable[str]], ...] = (
            self.plain,
            self.typed,
            self.streamed,
            self.left,
            self.talk,
            self.tools,
            self.batch,
            self.cancelled,
        )
        kind = self.draw.choice(kinds)
        end = await kind()
        self.ends[f"{kind.__name__}: {end}"] += 1

    async def plain(self) -> str:
        result = await run(generate(self.request()), self.env)
        return "answered" if is_successful(result) else result.failure().tag

    async def typed(self) -> str:
        result = await run(generate_as(self.request(), Finding), self.env)
        return "answered" if is_successful(result) else result.failure().tag

    async def streamed(self) -> str:
        last = None
        async with open_stream(self.request())(self.env) as events:
            async for event in events:
                last = event
        return type(last).__name__

    async def left(self) -> str:
        async with open_stream(self.request())(self.env) as events:
            async for _ in events:
                if self.draw.random() < 0.2:
                    break
        return "left"

    async def talk(self) -> str:
        if len(self.talks) < 20:
            conversation = (await run(start_conversation(owner="talks"), self.env)).unwrap().id
        else:
            conversation = self.draw.choice([*self.talks])
        turns = self.talks.pop(conversation, 0) + 1  # nobody else takes a turn of it meanwhile
        result = await run(converse(conversation, f"and then? {next(self.numbers)}", owner="talks"), self.env)
        if turns < TURNS:
            self.talks[conversation] = turns
        else:
            await run(delete_conversation(conversation, owner="talks"), self.env)
        return "answered" if is_successful(result) else result.failure().tag

    async def tools(self) -> str:
        result = await run(run_tools(self.request(), toolkit(usage), run_id=f"run-{next(self.numbers)}"), self.env)
        return result.unwrap().end.value if is_successful(result) else result.failure().tag

    async def batch(self) -> str:
        results = await run(generate_many([self.request() for _ in range(5)], 3), self.env)
        return "done" if is_successful(results) else results.failure().tag

    async def cancelled(self) -> str:
        with anyio.move_on_after(self.draw.random() * 0.3) as scope:
            await run(generate(self.request()), self.env)
        return "cancelled" if scope.cancelled_caught else "answered"


def config_of(base: str, redis: str, postgres: str) -> LLMConfig:
    """Configure two models, and every layer."""
    model = {"provider": "openai-compatible", "model": "m", "api_key": "sk-stub", "price": Price(input=1, output=2)}
    models = {
        name: ModelConfig(endpoint=f"{base}/{name}/v1", concurrency=50, requests_per_minute=100_000, **model)  # type: ignore[arg-type]
        for name in ("one", "two")
    }
    kept = KEEP_S / 86_400
    return LLMConfig(
        models=models,
        cache=CacheConfig(url=redis, ttl_seconds=KEEP_S),
        limits=LimitsConfig(url=redis),
        storage=StorageConfig(
            url=postgres, retention=RetentionConfig(conversations_days=kept, journals_days=kept, ledger_days=kept)
        ),
        budgets=(BudgetConfig(name="teams", limit_usd="1000", scope="owner:*"),),
    )


# The samples.

Sample = dict[str, float]


def sample(redis: "Redis[bytes]", postgres: Postgres, database: str, started: float) -> Sample:
    """Return what is in use now."""
    tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname LIKE 'llm\\_%' AND relkind = 'r'"
    [(size,)] = postgres.execute(tables, database)
    [(connections,)] = postgres.execute(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()", database
    )
    info: Mapping[str, int] = redis.info("clients")  # type: ignore[assignment]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "minutes": (time.monotonic() - started) / 60,
        "memory, MB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - only their number
        "threads": threading.active_count(),
        "Postgres connections": float(str(connections)),
        "Redis connections": info["connected_clients"],
        "Redis keys": redis.dbsize(),  # type: ignore[dict-item]
        "Postgres tables, MB": float(str(size)) / 2**20,
    }


async def prune(env: LLMEnv) -> Counts:
    """Erase what is older than two minutes, and return the counts."""
    receipt = (await run(apply_retention(), env)).unwrap()
    assert receipt.complete, receipt.kept
    return receipt.erased


# The run.


class Outcome(NamedTuple):
    """The samples of a run, how its calls ended, and what retention erased."""

    samples: Sequence[Sample]
    ends: Counter[str]
    erased: Mapping[str, int]


async def endure(seconds: float, rate: float) -> Outcome:
    """Work for so many seconds; start so many calls in each."""
    with (
        child_server("-m", "tests.benchmarks.endurance", "serve") as base,
        redis_server.start() as redis,
        postgres_server.start() as postgres,
        Redis.from_url(redis.url()) as client,
    ):
        url = postgres.new_url()
        database, samples = url.rpartition("/")[2], list[Sample]()
        async with open_env(config_of(base, redis.url(), url)) as env:
            work, started = Work(env), time.monotonic()
            erased = Counter[str]()

            async def watch() -> None:
                for number in count():
                    await anyio.sleep_until(begun + number * SAMPLE_S)
                    if number % 6 == 5:
                        erased.update(await prune(env))
                    samples.append(await anyio.to_thread.run_sync(sample, client, postgres, database, started))
                    print(json.dumps(samples[-1]), flush=True)

            begun = anyio.current_time()
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                async with anyio.create_task_group() as calls:
                    for number in count():
                        due = begun + number / rate
                        if due > begun + seconds:
                            break
                        await anyio.sleep_until(due)
                        calls.start_soon(work.once)
                group.cancel_scope.cancel()
        return Outcome(samples, work.ends, erased)


def growth(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Return the medians of the second quarter of a run and of its last one."""
    quarter = len(samples) // 4
    return tuple(median(each[name] for each in part) for part in (samples[quarter : 2 * quarter], samples[-quarter:]))  # type: ignore[return-value]


def check(outcome: Outcome) -> None:
    """Print how the calls ended, and what was in use early and late; fail where it grew."""
    for name, number in sorted(outcome.ends.items()):
        print(f"{number:7,} {name}")
    for name, number in outcome.erased.items():
        print(f"{number:7,} {name} erased by age")
    for name in NAMES:
        early, late = growth(outcome.samples, name)
        print(f"{name}: {early:,.1f}, then {late:,.1f}")
        limit = early * GROWTH.get(name, 1.2) + (0 if name in GROWTH else 5)
        assert late <= limit, f"{name} grew from {early} to {late}"


NAMES: Final = (
    "memory, MB",
    "descriptors",
    "threads",
    "Postgres connections",
    "Redis connections",
    "Redis keys",
    "Postgres tables, MB",
)


# The plot.

WIDTH, HEIGHT, LEFT, EACH = 800, 90, 190, 100


def plot(samples: Sequence[Sample]) -> str:
    """Draw each series over time, from zero."""
    minutes = samples[-1]["minutes"]
    spoken = "; ".join("{}: {:,.0f}, then {:,.0f}".format(name, *growth(samples, name)) for name in NAMES)
    return tag(
        "svg",
        tag("title", f"What was in use during {minutes:.0f} minutes of mixed work"),
        tag("desc", spoken),
        tag("style", Markup(STYLE + ".series { fill: none; stroke: #2f6fd0; stroke-width: 1.5; }")),
        tag("rect", class_="page", width=WIDTH, height=EACH * len(NAMES) + 30),
        *(mark for place, name in enumerate(NAMES) for mark in series(samples, name, place * EACH + 14)),
        tag("text", f"0 to {minutes:.0f} minutes", class_="note", x=LEFT, y=EACH * len(NAMES) + 20),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {EACH * len(NAMES) + 30}",
        role="img",
    )


def series(samples: Sequence[Sample], name: str, top: int) -> Iterator[Markup]:
    most = max(each[name] for each in samples) or 1
    right = WIDTH - LEFT - 80
    across = right / samples[-1]["minutes"]
    places = (
        f"{LEFT + each['minutes'] * across:.1f},{top + HEIGHT - each[name] / most * (HEIGHT - 20):.1f}"
        for each in samples
    )
    yield tag("text", name, class_="name", x=LEFT - 12, y=top + HEIGHT // 2)
    yield tag("line", class_="one", x1=LEFT, x2=LEFT + right, y1=top + HEIGHT, y2=top + HEIGHT)
    yield tag("polyline", class_="series", points=" ".join(places))
    yield tag("text", f"{samples[-1][name]:,.0f}", class_="note", x=LEFT + right + 8, y=top + HEIGHT // 2)


def main(seconds: float = 3600.0, rate: float = 20.0, path: str = str(DOCS / PLOT)) -> None:
    outcome = anyio.run(endure, seconds, rate)
    Path(path).write_text(plot(outcome.samples), encoding="utf-8")
    check(outcome)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        anyio.run(serve)
    else:
        main(*map(float, sys.argv[1:3]), *sys.argv[3:])
