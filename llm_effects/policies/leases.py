"""Coalescing across processes: of those that miss the same entry of a shared cache, one asks, with a lease.

The others wait for its entry, and look at the store now and then. When a process dies, its lease expires and one of
those that wait takes over. An error, or an answer that is not stored, is not shared: then all of them ask at once. No
call waits for longer than half of the time that it has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from returns.pipeline import is_successful

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer
from llm_effects.effects.env import Lease, Leases, LLMEnv
from llm_effects.effects.tasks import task_group

FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5
"""The pauses between two looks at the store by a process that waits, in seconds: each is half longer than the last."""

SHORTEST_S: Final = 0.5
"""The shortest lease, in seconds: a shorter one would end between its renewals, or load the store with them."""

RENEWALS: Final = 3
"""How often a lease is renewed in its time."""


async def await_entry(leases: Leases, key: str, call: Call, env: LLMEnv) -> Lease:
    """Wait while another process asks; return ``STORED``, ``OURS`` to ask under a lease, or ``UNSHARED`` to ask now."""
    until = anyio.current_time() + (call.deadline - anyio.current_time()) / 2
    pause = FIRST_PAUSE_S
    while True:
        taken = await leases.take(key, call.id, _seconds(env))
        lease = taken.unwrap() if is_successful(taken) else Lease.UNSHARED
        if lease is not Lease.THEIRS:
            return lease
        if anyio.current_time() + pause > until:
            return Lease.UNSHARED
        await anyio.sleep(pause * (0.5 + env.draw() / 2))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


async def as_one(
    leases: Leases, key: str, call: Call, env: LLMEnv, ask: Callable[[], Awaitable[Answer]]
) -> Answer | None:
    """Ask under a lease; return ``None`` at once while another process asks, and for a moment after it has answered."""
    taken = await leases.take(key, call.id, _seconds(env))
    if not is_successful(taken):
        return await ask()
    return await under_lease(leases, key, call, env, ask) if taken.unwrap() is Lease.OURS else None


async def under_lease(
    leases: Leases, key: str, call: Call, env: LLMEnv, ask: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Ask while the lease is renewed, and end it afterwards; a call that is cancelled leaves it to another process."""
    seconds, answered = _seconds(env), False

    async def renew() -> None:
        while True:
            await anyio.sleep(seconds / RENEWALS)
            await leases.renew(key, call.id, seconds)

    try:
        async with task_group() as group:
            group.start_soon(renew)
            answer = await ask()
            answered = True
            group.cancel_scope.cancel()
    finally:
        leases.end(key, call.id, answered=answered)
    return answer


def _seconds(env: LLMEnv) -> float:
    return max(env.config.cache.lease_seconds, SHORTEST_S)
