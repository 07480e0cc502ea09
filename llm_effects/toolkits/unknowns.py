"""What nobody but the caller can know: whether a call happened, in a run that broke off in the middle of it."""

from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.codecs import dump_value
from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.exceptions import checked
from llm_effects.messages import ToolCall, ToolResult
from llm_effects.toolkits.journals import call_key
from llm_effects.toolkits.steps import ToolAnswer, ToolOutcome


def resolve_tool_call(
    run_id: str, step: int, call: ToolCall, content: str, *, is_error: bool = False, owner: str | None = None
) -> Effect[None]:
    """Say what came of a call whose outcome was unknown; the same run again goes on from there.

    ``content`` is what the model will be told: the result, if it happened, or that it did not (``is_error``), after
    which the model may call again. ``step`` is the number of its ``ToolStep``. What the run has noted stays; a call
    that it has not begun is an ``InvalidRequest``.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> unheard_of = resolve_tool_call("nightly", 1, ToolCall("c1", "restart"), "it was restarted")
    >>> anyio.run(settle, unheard_of, scripted_env()).failure().tag
    'InvalidRequest'
    """

    async def run(env: LLMEnv) -> Result[None, LLMError]:
        result = checked(ToolResult, call.id, content, is_error=is_error)
        if not is_successful(result):
            return Failure(result.failure())
        outcome = ToolOutcome.FAILED if is_error else ToolOutcome.DONE
        answer = ToolAnswer(call=call, result=result.unwrap(), outcome=outcome)
        key, noted = call_key(step, call.id), dump_value(answer).encode()
        return await result_of(env.conversations.conclude(run_id, owner, key, noted))

    return effect(run)
