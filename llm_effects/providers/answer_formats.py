"""How each protocol is asked for an answer of a shape."""

from returns.result import Failure, Result, Success

from llm_effects.providers.schema_rules import ANTHROPIC, GRAMMAR, OPENAI, Rules
from llm_effects.providers.schemas import Rewritten, rewritten
from llm_effects.providers.targets import Target
from llm_effects.values import JSONObject


def rules_for(target: Target) -> Rules:
    """The rules by which a target takes schemas; what runs on one's own machine makes a grammar of them."""
    if target.preset.wire == "anthropic":
        return ANTHROPIC
    return GRAMMAR if target.preset.family == "local" else OPENAI


def anthropic_format(schema: JSONObject) -> Result[tuple[JSONObject, tuple[str, ...]], str]:
    """Ask Anthropic's Messages for a shape, or say why it cannot be: there, a schema is enforced or refused.

    >>> anthropic_format({"type": "object", "additionalProperties": {"type": "string"}}).failure()
    "response_schema: it has keys that are not named in it, which Anthropic's structured output does not take"
    """
    written = rewritten(schema, ANTHROPIC)
    if written.barred:
        return Failure(f"response_schema: {_list(written.barred)}, which {ANTHROPIC.name} does not take")
    return Success(({"type": "json_schema", "schema": written.schema}, _told(written, ANTHROPIC)))


def openai_format(target: Target, schema: JSONObject) -> tuple[JSONObject, tuple[str, ...]]:
    """Ask chat completions or Responses for a shape: strictly where that can be, else as a mere hint, told as such."""
    rules = rules_for(target)
    written = rewritten(schema, rules)
    if written.barred:
        why = f"response_schema: is only a hint, not enforced by {rules.name}: {_list(written.barred)}"
        return {"name": "answer", "schema": schema}, (why,)
    return {"name": "answer", "strict": True, "schema": written.schema}, _told(written, rules)


def misfit(target: Target, schema: JSONObject) -> str:
    """Say why a target can make nothing at all of a schema, or nothing."""
    if target.preset.wire != "anthropic":
        return ""
    written = anthropic_format(schema)
    return written.failure() if isinstance(written, Failure) else ""


_SHOWN = 3


def _list(reasons: tuple[str, ...]) -> str:
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _told(written: Rewritten, rules: Rules) -> tuple[str, ...]:
    told = _list(written.told)
    return (f"response_schema: told to the model, not enforced by {rules.name}: {told}",) if told else ()
