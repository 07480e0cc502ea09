"""An endpoint that speaks OpenAI's chat completions, and a client of it in this process.

``llm-effects serve`` is the same endpoint as a program. Here two teams have a key each; what each spends counts against
a budget of its own. Any client of the protocol will do: this one is plain httpx.
"""

import json
import sys
from collections.abc import Iterator
from decimal import Decimal

import anyio
import httpx
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects import LLMConfig, LLMEnv, LLMError, describe, load_config, open_env
from llm_effects.asgi import create_app
from llm_effects.config import BudgetConfig, ServeConfig

KEYS = {"search": "a-long-random-text-of-search", "support": "a-long-random-text-of-support"}


def configured(config: LLMConfig) -> LLMConfig:
    """Return a configuration with a key and a daily budget for each team."""
    budget = BudgetConfig(name="each team", limit_usd=Decimal(5), scope="owner:*")
    return evolve(config, budgets=(budget,), serve=ServeConfig(keys=KEYS))


def asking(content: str, **fields: object) -> dict[str, object]:
    """Return the body of a chat completion that leaves the choice of the model to routing."""
    return {"model": "auto", "max_completion_tokens": 60, "messages": [{"role": "user", "content": content}], **fields}


def texts_of(lines: str) -> Iterator[str]:
    """Yield the texts of the events of a stream."""
    for line in lines.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            yield from (choice["delta"].get("content") or "" for choice in event.get("choices", ()))


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """List the models, ask one question whole and one streamed, and ask with a wrong key."""
    app = create_app(evolve(env, config=configured(env.config)))
    headers = {"authorization": f"Bearer {KEYS['support']}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://endpoint/v1", headers=headers, timeout=90
    ) as client:
        models = (await client.get("/models")).json()["data"]
        whole = await client.post("/chat/completions", json=asking("Why do disks fill up?"))
        stream = await client.post("/chat/completions", json=asking("Name a cause.", stream=True))
        refused = await client.get("/models", headers={"authorization": "Bearer a-guess"})
    answer = whole.json()
    text = answer["choices"][0]["message"]["content"] if whole.is_success else answer["error"]["message"]
    lines = (
        f"models: {', '.join(each['id'] for each in models)}",
        f"whole, {whole.status_code}: {text}",
        f"streamed, {stream.status_code}: {''.join(texts_of(stream.text))}",
        f"with a wrong key, {refused.status_code}: {refused.json()['error']['message']}",
    )
    return Success("\n".join(lines))


async def play() -> Result[str, LLMError]:
    """Play the session with the models of the environment variables."""
    async with open_env(load_config().unwrap()) as env:
        return await main(env)


if __name__ == "__main__":
    result = anyio.run(play)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
