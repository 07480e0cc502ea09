"""Workers in processes of their own that share a cache, limits, a budget, a ledger and conversations.

``python examples/fleet.py 4`` starts four workers. Set ``FLEET_REDIS`` and ``FLEET_POSTGRES`` to the URLs of servers,
as for workers on several machines; without them, the workers of this machine share SQLite files, and each counts its
own limits.
"""

import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    describe,
    effect,
    generate,
    load_config,
    make_llm_manager,
    run,
    usage_report,
)
from llm_effects.config import BudgetConfig, CacheConfig, LimitsConfig, StorageConfig

INCIDENT = LLMRequest(
    prompt="Since noon, every second request of the checkout fails. What do you check first? One sentence.",
    preferences=Preferences(max_tokens=40, temperature=0.0, seed=7),
    owner="checkout",
)


def shared(config: LLMConfig, folder: str) -> LLMConfig:
    """Return the configuration of every worker: what they share is at the same URLs for all of them."""
    redis, postgres = os.environ.get("FLEET_REDIS"), os.environ.get("FLEET_POSTGRES")
    keep = ("stop", "length")
    return evolve(
        config,
        cache=CacheConfig(url=redis or f"sqlite:///{folder}/cache.db", keep=keep),
        limits=LimitsConfig(url=redis or "memory://"),
        storage=StorageConfig(url=postgres or f"sqlite:///{folder}/storage.db"),
        budgets=(BudgetConfig(name="each team", limit_usd="1", scope="owner:*"),),
    )


def line(response: LLMResponse) -> str:
    """Show where an answer came from."""
    return f"from {'the cache' if response.cached else response.model}: {response.content.strip()}"


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Ask as one worker: the same question as all others."""
    return await run(generate(INCIDENT).map(line), env)


def worker(folder: str, number: int) -> str:
    """Ask in a process of its own, and return what it has to say."""

    async def ask() -> Result[str, LLMError]:
        async with make_llm_manager(shared(load_config().unwrap(), folder)) as manager:
            return await manager.run(effect(main))

    answer = anyio.run(ask)
    return f"worker {number}: {answer.unwrap() if is_successful(answer) else describe(answer.failure())}"


async def together(folder: str) -> Result[str, LLMError]:
    """Return what all workers did together in the last hour."""
    async with make_llm_manager(shared(load_config().unwrap(), folder)) as manager:
        report = await manager.run(effect(lambda env: run(usage_report(since=env.now() - timedelta(hours=1)), env)))
    return report.map(
        lambda found: f"together: {found.total.successes} answered by a model, for ${found.total.cost_usd}"
    )


def fleet(workers: int) -> Result[str, LLMError]:
    """Run so many workers at once, and return what each says and what they did together."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as processes:
            lines = tuple(processes.map(partial(worker, folder), range(1, workers + 1)))
        return anyio.run(together, folder).map(lambda last: "\n".join((*lines, last)))


if __name__ == "__main__":
    result = fleet(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
