"""The laws that ``returns`` states for its containers, checked for our effects."""

from typing import Final

from returns.context import RequiresContextFutureResult
from returns.contrib.hypothesis.laws import check_all_laws

from llm_effects import Effect, LLMEnv, scripted_env
from tests.fixtures.effects import NUMBERS, effects

ENV: Final = scripted_env()


def in_any_environment(effect: Effect[int]) -> Effect[int]:
    """The laws run containers in no environment, which an effect refuses."""

    def scripted(_: LLMEnv) -> LLMEnv:
        return ENV

    return effect.modify_env(scripted)


check_all_laws(
    RequiresContextFutureResult,
    container_strategy=lambda _: effects(NUMBERS).map(in_any_environment),
    settings_kwargs={"max_examples": 20, "deadline": None},
)
