"""The heart of the onion: ask the chosen model once."""

from anyio import move_on_after
from returns.result import Failure, Success

from llm_effects.calls import Call
from llm_effects.effects import Answer, Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import RequestTimeout
from llm_effects.policies.counting import counted
from llm_effects.responses import LLMResponse


def complete(call: Call) -> Effect[LLMResponse]:
    """Ask ``call.model`` once, within the time of one attempt (``ModelConfig.timeout_ms``).

    The live clients keep that time themselves (``keeps_time``), since a call's time in their queue is not the
    model's; others are timed here. A stream is timed where it is read: the time of its consumer does not count.
    """

    async def run(env: LLMEnv) -> Answer:
        if call.sink is not None or getattr(env.clients, "keeps_time", False):
            return await _asked(call, env)
        limit_ms = env.config.models[call.model].timeout_ms
        with move_on_after(limit_ms / 1000):
            return await _asked(call, env)
        return Failure(RequestTimeout(model=call.model, timeout_ms=limit_ms, phase="attempt"))

    return effect(run)


async def _asked(call: Call, env: LLMEnv) -> Answer:
    answer = await result_of(env.clients.complete(call))
    return Success(counted(answer.unwrap(), call, env)) if isinstance(answer, Success) else answer
