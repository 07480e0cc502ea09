"""One portion of texts through the layers: the heart of the onion for embeddings, and the layers around it.

The layers know requests and answers, so a portion goes through them as a request, and its vectors beside the answer.
No layer chooses a model: another model's vectors mean nothing beside these.
"""

from collections.abc import Iterable
from typing import Final, final

from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Call
from llm_effects.effects import Effect, Generate, effect, result_of, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.messages import Message, Text
from llm_effects.policies import layered
from llm_effects.policies.bounded import bounded
from llm_effects.policies.broken import broken
from llm_effects.policies.budgeted import budgeted
from llm_effects.policies.limited import limited
from llm_effects.policies.observed import observed
from llm_effects.policies.retried import retried
from llm_effects.requests import LLMRequest, Preferences, TaskType
from llm_effects.responses import LLMResponse, Usage
from llm_effects.services import Embedder
from llm_effects.values import to_tuple
from llm_effects.vectors import Vectors

TASK: Final = TaskType("embeddings")
"""The task by which the ledger and budgets know embeddings."""


@final
@frozen
class Wanted:
    """What is to be embedded, and how: as which request the portions go out, and how many at once."""

    texts: tuple[str, ...]
    model: str | None
    dimensions: int | None
    workers: int
    template: LLMRequest


@final
@frozen
class Asked:
    """What a model gave for a portion, and what is doubtful about it."""

    came: Vectors
    warnings: tuple[str, ...]


def messages_of(texts: Iterable[str]) -> tuple[Message, ...]:
    """Give the texts as what a request says."""
    return (Message("user", tuple(map(Text, texts))),)


def request_of(owner: str | None, tags: Iterable[str]) -> LLMRequest:
    """Make the request as which every portion is limited, budgeted and booked; there is no answer to pay for."""
    said, no_answer = messages_of(("",)), Preferences(max_tokens=1)
    return LLMRequest(messages=said, task_type=TASK, owner=owner, tags=to_tuple("tags", tags), preferences=no_answer)


async def ask(call: Call, texts: tuple[str, ...], dimensions: int | None, env: LLMEnv) -> Result[Asked, LLMError]:
    """Embed a portion: limited, budgeted, booked, and asked again by the same model where that may help."""
    told: list[Vectors] = []
    onion = layered(_heart(texts, dimensions, told), observed, budgeted, limited, broken, retried, bounded)
    result = await settle(onion(call), env)
    return result.map(lambda answer: Asked(told[-1], answer.warnings))


_NOT_HERE: Final = "clients: these embed no texts: give the environment clients with an ``embed``"


def _heart(texts: tuple[str, ...], dimensions: int | None, told: list[Vectors]) -> Generate:
    def embed(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Result[LLMResponse, LLMError]:
            if not isinstance(env.clients, Embedder):
                return Failure(ConfigurationError(model=call.model, message=_NOT_HERE))
            came = await result_of(env.clients.embed(call, texts, dimensions))
            if not is_successful(came):
                return Failure(came.failure())
            told.append(came.unwrap())
            return Success(_answer(came.unwrap(), call, env))

        return effect(run)

    return embed


def _answer(came: Vectors, call: Call, env: LLMEnv) -> LLMResponse:
    counted = Usage(input_tokens=env.tokens.estimate(call.request), output_tokens=0, estimated=True)
    return LLMResponse(
        content="",
        model=call.model,
        provider=env.config.models[call.model].provider,
        served_model=came.served_model,
        usage=counted if came.usage == Usage() else came.usage,
        request_id=came.request_id,
    )
