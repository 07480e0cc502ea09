"""A model that tidies up disks with tools, and needs an approval before it erases anything.

The in-process model was not trained to call tools, so ``tools_by_schema`` makes it answer in a schema of calls. A model
that supports tools needs no ``pipeline`` argument.
"""

import sys
from typing import Literal

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    ToolCall,
    describe,
    effect,
    load_config,
    make_llm_manager,
    run,
    run_tools,
    tool,
    toolkit,
)
from llm_effects.pipeline import standard_pipeline
from llm_effects.tools import Approved, Refused, ToolEvent, ToolFinished, ToolLimits, ToolRun, Verdict, tools_by_schema

FREE = {"root": 41, "data": 3}


def free_space(disk: Literal["root", "data"]) -> str:
    """Return how much of a disk is free.

    Args:
        disk: which one

    """
    return f"{FREE[disk]} % of {disk} is free"


@tool(dangerous=True, timeout_s=10)
async def erase(disk: Literal["root", "data"]) -> str:
    """Erase all old logs of a disk."""
    FREE[disk] = 50
    return f"erased: {FREE[disk]} % of {disk} is free now"


async def approve(call: ToolCall) -> Verdict:
    """Decide for the user: only the data disk may be erased."""
    return Approved() if "data" in call.arguments else Refused("the root disk is not yours to erase")


async def show(event: ToolEvent) -> None:
    """Print every finished call."""
    if isinstance(event, ToolFinished):
        answer = event.answer
        print(f"[{event.step}] {answer.call.name} {answer.call.arguments}: {answer.result.content}")


TOOLS = toolkit(free_space) | toolkit(erase)

QUESTION = LLMRequest(
    prompt="Erase the old logs of the data disk, and tell how much of it is free then.",
    tools=TOOLS.tools,
    tool_choice="erase",  # in the first step
    preferences=Preferences(max_tokens=40, temperature=0, seed=7),
)


def summary(run: ToolRun) -> str:
    """Format how a run ended."""
    return f"{run.end.value} after {len(run.steps)} steps: {run.response.content}"


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Run the model for at most two steps; the last one is its answer."""
    session = run_tools(
        QUESTION,
        TOOLS,
        max_steps=2,
        limits=ToolLimits(timeout_s=300, answer_last=True),
        approve=approve,
        on_event=show,
        pipeline=tools_by_schema(standard_pipeline),
    )
    return await run(session.map(summary), env)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    config = load_config()
    if not is_successful(config):
        return config.map(str)
    async with make_llm_manager(config.unwrap()) as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    result = anyio.run(live)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
