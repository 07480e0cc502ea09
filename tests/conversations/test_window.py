"""The part of a history that goes into a prompt."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llm_effects import Message, ToolCall, ToolResult
from llm_effects.conversations.window import (
    INTERRUPTED_NOTE,
    LATE_RESULTS,
    SUMMARY_HEADING,
    Exchange,
    exchanges_of,
    fit,
    merge_user_messages,
    pair_results,
    with_summary,
)
from llm_effects.values import StoredMessage, Summary, Turn, TurnState
from llm_effects.values.messages import text_of
from tests.fixtures.histories import history, stored, turn, turns


def measure(each: StoredMessage) -> int:
    return each.tokens


def texts(messages: tuple[StoredMessage, ...]) -> list[str]:
    return [each.message.text for each in messages]


def exchanges(*sizes: int) -> tuple[Exchange, ...]:
    return tuple(
        Exchange(upto=at, messages=(stored("user", f"q{at}", tokens=size), stored("assistant", f"a{at}", tokens=0)))
        for at, size in enumerate(sizes, 1)
    )


def test_the_newest_exchanges_that_fit_stay_whole_and_in_order() -> None:
    fitted = fit(exchanges(10, 10, 10), measure, 20)
    assert texts(fitted.messages) == ["q2", "a2", "q3", "a3"]
    assert ([one.upto for one in fitted.dropped], fitted.tokens) == ([1], 20)


def test_nothing_older_is_kept_after_an_exchange_that_does_not_fit() -> None:
    assert texts(fit(exchanges(1, 100, 10), measure, 20).messages) == ["q3", "a3"]


def test_the_newest_exchange_stays_even_if_it_is_too_large() -> None:
    fitted = fit(exchanges(10, 100), measure, 20)
    assert (texts(fitted.messages), fitted.tokens) == (["q2", "a2"], 100)


def test_a_pinned_message_stays_when_its_exchange_is_dropped() -> None:
    pinned = Exchange(upto=1, messages=(stored("user", "rule", pinned=True), stored("assistant", "ok", tokens=50)))
    assert texts(fit((pinned, *exchanges(10)), measure, 20).messages) == ["rule", "q1", "a1"]


def test_a_pinned_call_keeps_its_result() -> None:
    call = stored("assistant", ToolCall("1", "time"), pinned=True)
    result = stored("tool", ToolResult("1", "noon"))
    one = Exchange(upto=1, messages=(stored("user", "time?"), call, result))
    assert fit((one, *exchanges(10)), measure, 10).messages[:3] == one.messages


def test_a_result_in_a_later_turn_joins_the_exchange_of_its_call() -> None:
    first = turn(1, stored("user", "time?"), stored("assistant", ToolCall("1", "time")))
    between = turn(2, stored("user", "meanwhile?"), stored("assistant", "yes"))
    third = turn(3, stored("tool", ToolResult("1", "noon")), stored("assistant", "It is noon."))
    last = turn(4, stored("user", "thanks"), stored("assistant", "bye"))
    assert [one.upto for one in exchanges_of((first, between, third, last))] == [3, 4]


def test_only_ended_turns_are_shown_and_an_interrupted_answer_has_a_note() -> None:
    grouped = exchanges_of(
        (
            turn(1, stored("user", "a"), state=TurnState.FAILED),
            turn(2, stored("user", "b"), state=TurnState.PENDING),
            turn(3, stored("user", "c"), stored("assistant", "half an"), state=TurnState.INTERRUPTED),
            turn(4, stored("user", "d"), state=TurnState.INTERRUPTED),
        )
    )
    assert [texts(one.messages) for one in grouped] == [["c", "half an" + INTERRUPTED_NOTE]]


def test_an_empty_answer_is_left_out() -> None:
    grouped = exchanges_of((turn(1, stored("user", "a"), stored("assistant", " ")),))
    assert texts(grouped[0].messages) == ["a"]


def test_a_summary_replaces_what_it_covers_but_never_the_question() -> None:
    summary = Summary(upto=2, text="Ada likes tea.")
    older = exchanges(1, 1, 1)
    retried = Exchange(upto=1, messages=(stored("user", "again"),))
    replaced = with_summary(summary, (*older, retried), history())
    assert texts(replaced[0].messages) == [SUMMARY_HEADING + "Ada likes tea."]
    assert replaced[0].messages[0].message.role == "user"
    assert replaced[1:] == (older[2], retried)


def calls_of(messages: tuple[Message, ...]) -> list[str]:
    return [part.id for each in messages for part in each.parts if isinstance(part, ToolCall)]


@given(turns(), st.integers(0, 300))
def test_any_fitted_window_is_within_its_budget_or_minimal(history_turns: tuple[Turn, ...], budget: int) -> None:
    all_exchanges = exchanges_of(history_turns)
    fitted = fit(all_exchanges, measure, budget)
    must = [each for one in all_exchanges for each in one.kept]
    newest = list(all_exchanges[-1].messages) if all_exchanges else []
    assert fitted.tokens == sum(map(measure, fitted.messages))
    stays = {each.id for each in (*must, *newest)}
    assert fitted.tokens <= budget or {each.id for each in fitted.messages} == stays
    assert stays <= {each.id for each in fitted.messages}


@given(turns(), st.integers(0, 300))
def test_any_fitted_window_keeps_the_order_without_repeats(history_turns: tuple[Turn, ...], budget: int) -> None:
    all_exchanges = exchanges_of(history_turns)
    every = [each.id for one in all_exchanges for each in one.messages]
    kept = [each.id for each in fit(all_exchanges, measure, budget).messages]
    assert kept == [name for name in every if name in set(kept)]


@given(turns(), st.integers(0, 300))
def test_any_fitted_window_keeps_calls_and_results_together(history_turns: tuple[Turn, ...], budget: int) -> None:
    all_exchanges = exchanges_of(history_turns)
    kept = {each.id for each in fit(all_exchanges, measure, budget).messages}
    for one in all_exchanges:
        with_tools = {
            each.id
            for each in one.messages
            if any(isinstance(part, ToolCall | ToolResult) for part in each.message.parts)
        }
        assert with_tools <= kept or not with_tools & kept


@given(turns(), st.integers(0, 300))
def test_in_any_prompt_each_call_is_followed_by_exactly_one_result(
    history_turns: tuple[Turn, ...], budget: int
) -> None:
    fitted = fit(exchanges_of(history_turns), measure, budget)
    prompt = merge_user_messages(pair_results(tuple(each.message for each in fitted.messages)))
    for at, message in enumerate(prompt):
        calls = list(dict.fromkeys(part.id for part in message.parts if isinstance(part, ToolCall)))
        results = [part.call_id for part in message.parts if isinstance(part, ToolResult)]
        if calls:
            behind = prompt[at + 1]
            assert [part.call_id for part in behind.parts if isinstance(part, ToolResult)] == calls
        if results:
            assert [part.id for part in prompt[at - 1].parts if isinstance(part, ToolCall)]
    assert not any(one.role == two.role == "user" for one, two in pairwise(prompt))


@given(turns())
def test_pairing_results_is_idempotent(history_turns: tuple[Turn, ...]) -> None:
    prompt = pair_results(tuple(each.message for turn in history_turns for each in turn.messages))
    assert pair_results(prompt) == prompt
    late = Message("user", LATE_RESULTS)
    assert text_of(part for each in prompt if each != late for part in each.parts) == text_of(
        part for turn in history_turns for each in turn.messages for part in each.message.parts
    )
