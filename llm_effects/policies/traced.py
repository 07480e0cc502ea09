"""One span for the whole call, with each attempt below; a call that failed, or fell back, is in the log."""

import anyio
from returns.pipeline import is_successful

from llm_effects.calls import Call
from llm_effects.effects import Answer, Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.policies.followed import begin_call, end_call
from llm_effects.responses import CANCELLED, SUCCESS, LLMResponse


def traced(inner: Generate) -> Generate:
    """Follow the call to its end, whatever it is: an answer, an error, a cancellation or a defect."""

    def trace(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Answer:
            span = begin_call(call, env)
            try:
                outcome = await settle(inner(call), env)
            except BaseException as problem:
                end_call(call, span, None, _kind(problem))
                raise
            end_call(call, span, outcome, SUCCESS if is_successful(outcome) else outcome.failure().tag)
            return outcome

        return effect(run)

    return trace


def _kind(problem: BaseException) -> str:
    return CANCELLED if isinstance(problem, anyio.get_cancelled_exc_class()) else type(problem).__name__
