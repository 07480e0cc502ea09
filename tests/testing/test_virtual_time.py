"""Virtual time on both event loops: waits cost nothing, and on asyncio the clock runs in real time beside threads."""

import asyncio
import threading
import time
from pathlib import Path
from typing import get_args

import anyio
import pytest
from anyio import to_thread
from attrs import evolve
from returns.result import Success

from llm_effects import (
    LLMRequest,
    Preferences,
    RateLimitExceeded,
    RequestTimeout,
    ToolCall,
    converse,
    generate,
    run,
    run_tools,
    scripted_env,
    start_conversation,
    stream,
    tool,
    toolkit,
)
from llm_effects.config.services import StorageConfig
from llm_effects.manager import new_memory
from llm_effects.stores.open import open_storage
from llm_effects.testing import Chunks, Delayed, calling, run_in_virtual_time
from llm_effects.testing.virtual_time import Backend

YEAR_S = 365 * 24 * 3600.0

Events = list[tuple[float, str]]


@pytest.fixture(params=get_args(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    value: Backend = request.param
    return value


def test_a_year_of_waiting_takes_a_moment(backend: Backend) -> None:
    async def main() -> float:
        began = anyio.current_time()
        await anyio.sleep(YEAR_S)
        return anyio.current_time() - began

    began = time.perf_counter()
    assert run_in_virtual_time(main, backend=backend) == pytest.approx(YEAR_S)
    assert time.perf_counter() - began < 30


def test_tasks_wake_in_the_order_of_their_times(backend: Backend) -> None:
    async def main() -> Events:
        began, seen = anyio.current_time(), Events()

        async def wake(seconds: float) -> None:
            await anyio.sleep(seconds)
            seen.append((round(anyio.current_time() - began, 6), f"{seconds:g}"))

        async with anyio.create_task_group() as group:
            for seconds in (30.0, 0.1, 7200.0, 5.5):
                group.start_soon(wake, seconds)
        return seen

    assert run_in_virtual_time(main, backend=backend) == [
        (0.1, "0.1"), (5.5, "5.5"), (30.0, "30"), (7200.0, "7200")
    ]  # fmt: skip


def test_deadlines_and_pauses_of_a_call_follow_the_clock(backend: Backend) -> None:
    slow = generate(LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=60_000)))
    late = run_in_virtual_time(run, slow, scripted_env(Delayed(3600, "done")), backend=backend).failure()
    assert late == RequestTimeout(model="scripted", timeout_ms=60_000, phase="total")
    env = scripted_env(RateLimitExceeded(retry_after=30.0), "after a while")
    answer = run_in_virtual_time(run, generate("why?"), env, backend=backend).unwrap()
    assert [attempt.wait_ms for attempt in answer.attempts] == [0.0, 30_000.0]


def test_a_stream_keeps_its_gaps(backend: Backend) -> None:
    async def main() -> list[float]:
        began, seen = anyio.current_time(), list[float]()

        async def sink(_: object) -> None:
            seen.append(anyio.current_time() - began)

        await run(stream("why?", sink), scripted_env(Chunks(("a", "b", "c"), pause=10)))
        return seen

    assert run_in_virtual_time(main, backend=backend) == pytest.approx([10, 20, 30, 40, 40])


def test_a_cancelled_wait_leaves_the_clock_where_it_is(backend: Backend) -> None:
    async def main() -> float:
        began = anyio.current_time()
        with anyio.move_on_after(5):
            await anyio.sleep_forever()
        return anyio.current_time() - began

    assert run_in_virtual_time(main, backend=backend) == 5


@pytest.mark.parametrize("by", ["anyio", "asyncio"])
def test_on_asyncio_the_clock_does_not_jump_while_a_worker_thread_works(by: str) -> None:
    release = threading.Event()

    async def main() -> tuple[bool, float]:
        began = anyio.current_time()
        with anyio.move_on_after(600) as scope:
            if by == "anyio":
                released = await to_thread.run_sync(release.wait, 60, abandon_on_cancel=True)
            else:
                released = await asyncio.to_thread(release.wait, 60)
        assert not scope.cancelled_caught
        await anyio.sleep(3600)  # and now it jumps again
        return released, anyio.current_time() - began

    timer = threading.Timer(0.2, release.set)
    timer.start()
    released, took = run_in_virtual_time(main, backend="asyncio")
    timer.join()
    assert (released, 3600 < took < 3660) == (True, True)


def test_on_asyncio_a_tool_in_a_thread_is_waited_for() -> None:
    release = threading.Event()

    @tool
    def disk_usage() -> str:
        """Return how full the disk is."""
        return "97 %" if release.wait(60) else "unknown"

    request = LLMRequest(prompt="How full?", preferences=Preferences(timeout_ms=600_000))
    env = scripted_env(calling(ToolCall("c1", "disk_usage")), lambda asked: asked.messages[-1].parts[0].content)  # type: ignore[union-attr]
    timer = threading.Timer(0.2, release.set)
    timer.start()
    answer = run_in_virtual_time(run, run_tools(request, toolkit(disk_usage)), env, backend="asyncio").unwrap()
    timer.join()
    assert answer.response.content == "97 %"


def test_on_asyncio_a_store_with_threads_does_not_time_out(tmp_path: Path) -> None:
    async def main() -> list[str]:
        storage = open_storage(StorageConfig(url=f"sqlite:///{tmp_path}/talks.db"), new_memory()).unwrap()
        env = evolve(
            scripted_env(Delayed(60, "one"), Delayed(60, "two")),
            conversations=storage.conversations,
            ledger=storage.ledger,
        )
        assert isinstance(await run(start_conversation("c"), env), Success)
        answers = [(await run(converse("c", question), env)).unwrap().content for question in ("a", "b")]
        await storage.ledger.aclose()
        await storage.conversations.aclose()
        return answers

    assert run_in_virtual_time(main, backend="asyncio") == ["one", "two"]


def test_on_asyncio_a_message_from_any_thread_wakes_a_loop_without_timers() -> None:
    async def main() -> None:
        woken, loop = asyncio.Event(), asyncio.get_running_loop()
        timer = threading.Timer(0.1, loop.call_soon_threadsafe, [woken.set])
        timer.start()
        await woken.wait()

    run_in_virtual_time(main, backend="asyncio")
