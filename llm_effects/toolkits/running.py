"""How far a run has come: the one thing in it that changes."""

from typing import final

import anyio
from attrs import define, field

from llm_effects.responses import LLMResponse
from llm_effects.toolkits.journals import NoJournal, RunJournal
from llm_effects.toolkits.steps import ToolStep


@final
@define(kw_only=True)
class Running:
    """A run under way. ``name`` is its id, or one that was made up; times are on the clock of the event loop.

    ``troubles`` gathers what the caller is warned of; ``approving`` is held by the one call that is being decided on.
    """

    journal: RunJournal | NoJournal
    run_id: str | None
    name: str
    started: float
    deadline: float
    steps: list[ToolStep] = field(factory=list[ToolStep])
    troubles: list[str] = field(factory=list[str])
    approving: anyio.Lock = field(factory=anyio.Lock)

    @property
    def step(self) -> int:
        """The number of the step that is being taken."""
        return len(self.steps) + 1

    @property
    def responses(self) -> tuple[LLMResponse, ...]:
        """The answers of the steps that were taken."""
        return tuple(step.response for step in self.steps)
