"""One conversation in memory, with all that it holds."""

from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.stores.turn_rules import CLASH, added, begun, ended, moved, new_turns, no_turn
from llm_effects.turns import Conversation, History, StoredMessage, Summary, Turn, TurnState


@define(eq=False)
class Book:
    """A conversation, its turns by number, and what finds them quickly."""

    conversation: Conversation
    turns: list[Turn] = field(factory=list[Turn], init=False)
    places: dict[str, int] = field(factory=dict[str, int], init=False)
    messages: set[str] = field(factory=set[str], init=False)
    pinned: set[int] = field(factory=set[int], init=False)
    summary: Summary | None = field(default=None, init=False)

    def read(self, newest: int | None) -> History:
        """Give the newest turns, or all."""
        first = 0 if newest is None else max(0, len(self.turns) - max(0, newest))
        return History(
            conversation=self.conversation,
            turns=tuple(self.turns[first:]),
            complete=first == 0,
            pinned=tuple(self.turns[place] for place in sorted(self.pinned) if place < first),
            summary=self.summary,
        )

    def find(self, turn_id: str) -> Turn | None:
        """Give the turn with an id."""
        place = self.places.get(turn_id)
        return None if place is None else self.turns[place]

    def begin(self, expected: int, turn: Turn) -> Result[Turn, LLMError]:
        """Begin a turn, or take it up again."""
        there = self.find(turn.id)
        return self._written(there, begun(there, self.conversation, expected, turn))

    def finish(
        self, turn_id: str, state: TurnState, came: tuple[StoredMessage, ...], error: str | None
    ) -> Result[Turn, LLMError]:
        """End a turn."""
        there = self.find(turn_id)
        if there is None:
            return Failure(no_turn(turn_id))
        return self._written(there, ended(there, state, came, error))

    def append(self, expected: int, turns: tuple[Turn, ...]) -> Result[Conversation, LLMError]:
        """Add the turns that are not there."""
        new = added(self.conversation, new_turns(turns, self.places), expected)
        if not is_successful(new):
            return Failure(new.failure())
        return self._kept(new.unwrap(), len(new.unwrap())).map(lambda _: self.conversation)

    def summarise(self, summary: Summary) -> Result[None, LLMError]:
        """Keep a summary that reaches as far as the one that is there."""
        if self.summary is None or summary.upto >= self.summary.upto:
            self.summary = summary
        return Success(None)

    def _written(self, there: Turn | None, made: Result[Turn, LLMError]) -> Result[Turn, LLMError]:
        if not is_successful(made) or made.unwrap() is there:
            return made
        return self._kept((made.unwrap(),), int(there is None)).map(lambda _: made.unwrap())

    def _kept(self, turns: tuple[Turn, ...], new: int) -> Result[None, LLMError]:
        """Store turns, new ones or in the place of what they were, and move on; all or none."""
        fresh = [(turn.number - 1, each) for turn in turns for each in turn.messages[self._known(turn) :]]
        ids = {each.id for _, each in fresh}
        if len(ids) < len(fresh) or ids & self.messages:
            return Failure(CLASH)
        for turn in turns:
            self.turns[turn.number - 1 : turn.number] = [turn]
            self.places[turn.id] = turn.number - 1
        self.messages |= ids
        self.pinned |= {place for place, each in fresh if each.pinned}
        if turns:
            self.conversation = moved(self.conversation, turns, new)
        return Success(None)

    def _known(self, turn: Turn) -> int:
        there = self.find(turn.id)
        return 0 if there is None else len(there.messages)
