"""The strategies produce what the pipeline takes: it answers or fails, and never raises."""

from hypothesis import given, settings
from returns.result import Failure, Result, Success

from llm_effects import (
    Completed,
    Failed,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    StreamEvent,
    TextDelta,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.testing import Chunks, run_in_virtual_time, strategies
from llm_effects.testing.exchanges import Exchange, dump_exchange, load_exchange, request_of, scrubbed
from llm_effects.values.errors import fallback_for
from tests.fixtures.house import run_python


@settings(max_examples=30)
@given(strategies.requests(), strategies.answers() | strategies.errors())
def test_any_request_ends_in_an_answer_or_an_error(request: LLMRequest, reply: LLMResponse | LLMError) -> None:
    result = run_in_virtual_time(run, generate(request), scripted_env(reply))
    assert isinstance(result, Result)
    if isinstance(result, Success):
        assert result.unwrap().content == getattr(reply, "content", None)


@settings(max_examples=30)
@given(strategies.streams())
def test_any_stream_ends_once_and_doubles_no_text(chunks: Chunks) -> None:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    request = LLMRequest(prompt="?", preferences=Preferences(timeout_ms=600_000))
    result = run_in_virtual_time(run, stream(request, sink), scripted_env(chunks))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert [isinstance(event, Completed | Failed) for event in events] == [*[False] * (len(events) - 1), True]
    assert text == "".join(chunks.pieces)
    assert isinstance(result, Failure) == (chunks.then is not None)


@given(strategies.errors())
def test_any_error_is_one_that_the_rules_know(error: LLMError) -> None:
    assert fallback_for(error) is not None


@settings(max_examples=40)
@given(strategies.requests(), strategies.answers() | strategies.errors())
def test_any_exchange_is_read_from_its_line_as_it_was_written(
    request: LLMRequest, outcome: LLMResponse | LLMError
) -> None:
    exchange = scrubbed(Exchange(model="scripted", request=request_of(request), outcome=outcome))
    again = load_exchange(dump_exchange(exchange)).unwrap()
    assert (again.key, again.outcome) == (exchange.key, exchange.outcome)


def test_without_hypothesis_the_error_names_the_remedy() -> None:
    said = run_python(
        "import sys; sys.modules['hypothesis'] = None\n"
        "try:\n    import llm_effects.testing.strategies\n"
        "except ModuleNotFoundError as problem:\n    print(problem)"
    )
    assert said.strip() == "llm_effects.testing.strategies needs hypothesis: pip install hypothesis"
