"""All the texts that must be asked for, portion by portion."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, final

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Call
from llm_effects.embeddings.asks import Asked, Wanted, ask, messages_of
from llm_effects.embeddings.portions import portions
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.providers.targets import Target
from llm_effects.responses import Attempt, Usage
from llm_effects.tasks import in_parallel
from llm_effects.vectors import Vector

Keep: TypeAlias = Callable[[Mapping[str, Vector]], Awaitable[None]]
"""Keeps the vectors of a portion as soon as they have come."""


@final
@frozen
class Round:
    """What came of the portions, and the calls behind them."""

    asked: dict[int, Asked] = field(factory=dict[int, Asked])
    calls: list[Call] = field(factory=list[Call])
    vectors: dict[str, Vector] = field(factory=dict[str, Vector])

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Everything that was sent."""
        return tuple(attempt for call in self.calls for attempt in call.trail.attempts)

    @property
    def usage(self) -> Usage:
        """All tokens together; unknown if those of one portion are."""
        told = [each.usage for each in self.attempts if each.succeeded]
        counts = [each.input_tokens for each in told]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        return Usage(input_tokens=total, output_tokens=0, estimated=any(each.estimated for each in told))

    @property
    def served_model(self) -> str | None:
        """What the provider says it ran."""
        return next((each.came.served_model for each in self.asked.values()), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful, each once."""
        return tuple(dict.fromkeys(warning for each in self.asked.values() for warning in each.warnings))


async def ask_all(
    texts: tuple[str, ...], wanted: Wanted, target: Target, env: LLMEnv, keep: Keep
) -> Result[Round, LLMError]:
    """Ask for all texts, some portions at once; the first error ends it all, and what came before it was kept."""
    came, problems = Round(), list[LLMError]()

    async def one(number: int, portion: tuple[str, ...]) -> bool:
        request = evolve(wanted.template, messages=messages_of(portion))
        call = Call(id=env.new_id(), request=request, model=target.name)
        came.calls.append(call)
        result = await ask(call, portion, wanted.dimensions, env)
        if not is_successful(result):
            problems.append(result.failure())
            return True
        vectors = dict(zip(portion, result.unwrap().came.vectors, strict=True))
        came.asked[number] = result.unwrap()
        came.vectors.update(vectors)
        await keep(vectors)
        return False

    await in_parallel(portions(texts, target.preset), wanted.workers, one)
    return Failure(evolve(problems[0], attempts=came.attempts)) if problems else Success(came)
