"""Calls of one process in turn, so that all are under the same load."""

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

Run: TypeAlias = Callable[[], Awaitable[object]]


async def timed(call: Run) -> float:
    """Return the elapsed time of a call, in microseconds."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1e6


async def alternating(rounds: int, *calls: Run) -> list[float]:
    """Run each call in turn, and return the median of each, in microseconds."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 20):
        for call, times in zip(calls, taken, strict=True):
            took = await timed(call)
            if number >= 20:
                times.append(took)
    return [statistics.median(times) for times in taken]


async def processor_s(call: Run, times: int) -> float:
    """Return the processor time of one of so many calls, in seconds."""
    used = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - used) / times


async def in_turn(calls: Iterable[Run], times: int, rounds: int = 7) -> list[tuple[float, ...]]:
    """Return the processor time of one of each of the calls in seconds, for each of some rounds."""
    kept = tuple(calls)
    return [tuple([await processor_s(call, times) for call in kept]) for _ in range(rounds)]
