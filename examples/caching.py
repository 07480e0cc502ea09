"""Ask the same question twice: the second answer comes from a file, in microseconds, even after a restart.

The file is in the folder for temporary files; run the example again, and the first answer is cached too.
"""

import sys
import tempfile
from pathlib import Path

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
    then,
)
from llm_effects.config import CacheConfig
from llm_effects.policies.cache import cache_stats

QUESTION = LLMRequest(
    prompt="Why do disks fill up? One sentence.",
    preferences=Preferences(max_tokens=40, temperature=0.0, seed=7, stop=("\n",)),
)


def line(response: LLMResponse) -> str:
    """Format an answer with its source, latency and cost."""
    source = "the cache" if response.cached else response.model
    return f"{response.latency_ms * 1000:10.0f} us  {response.cost}  from {source}: {response.content.strip()}"


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Ask twice, then count the stored entries."""
    question = generate(QUESTION).map(line)
    both = then(question, lambda first: question.map(lambda second: f"{first}\n{second}"))
    report = then(both, lambda lines: cache_stats().map(lambda stats: f"{lines}\n{stats.entries} entries are stored"))
    return await run(report, env)


def with_file(config: LLMConfig) -> LLMConfig:
    """Store answers in a SQLite file, including those that reached the token limit."""
    file = Path(tempfile.gettempdir()) / "llm_effects_example.db"
    return evolve(config, cache=CacheConfig(url=f"sqlite:///{file}", keep=("stop", "length")))


async def live() -> Result[str, LLMError]:
    """Run twice, each time in a new environment, as after a restart."""
    config = load_config().map(with_file)
    if not is_successful(config):
        return config.map(str)
    async with make_llm_manager(config.unwrap()) as manager:
        before = await manager.run(effect(main))
    async with make_llm_manager(config.unwrap()) as manager:
        after = await manager.run(effect(main))
    return after.map(lambda lines: f"{before.value_or('')}\nafter a restart\n{lines}")


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
