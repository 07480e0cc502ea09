"""The laws that ``returns`` states for its containers, checked for our effects."""

from returns.context import RequiresContextFutureResult
from returns.contrib.hypothesis.laws import check_all_laws

from tests.fixtures.effects import NUMBERS, effects

check_all_laws(
    RequiresContextFutureResult,
    container_strategy=lambda _: effects(NUMBERS),
    settings_kwargs={"max_examples": 20, "deadline": None},
)
