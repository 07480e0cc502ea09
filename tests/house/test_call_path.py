"""How many files one plain call enters: a reader must be able to follow it."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import anyio

from llm_effects import LLMConfig, LLMRequest, ModelConfig, generate, open_env, run
from tests.fixtures.house import PACKAGE
from tests.fixtures.servers import answering, reply_json, serving

MOST_FILES = 45

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Logs."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14},
}


@contextmanager
def profiled(hook: Callable[[FrameType, str, object], None]) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(before)


async def files_entered(url: str) -> list[str]:
    """Send one call through live clients and return the files whose functions it entered, in order."""
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(str(PACKAGE)):
            entered[code.co_filename.removeprefix(f"{PACKAGE}/")] = None

    model = ModelConfig(provider="openai-compatible", model="stub", endpoint=url)
    async with open_env(LLMConfig(models={"stub": model})) as env:
        request = LLMRequest(prompt="Why do disks fill up?")
        gc.collect()  # what other tests left is closed now, not during the call
        with profiled(note):
            result = await run(generate(request), env)
    assert result.unwrap().content == "Logs."
    return list(entered)


def test_a_plain_call_enters_few_files() -> None:
    with serving(answering(reply_json(COMPLETION))) as server:
        entered = anyio.run(files_entered, server.url, backend="asyncio")
    assert len(entered) <= MOST_FILES, "\n".join(entered)
