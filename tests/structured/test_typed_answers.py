"""Answers of a type: repairs, cache, routing, fallback and streams, and a real small model."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Literal

import anyio
import pytest
from attrs import evolve, field, frozen
from attrs.validators import gt, max_len
from returns.result import Result

from llm_effects import (
    CachePolicy,
    Completed,
    ContentRefused,
    Effect,
    Failed,
    FinishReason,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    NetworkError,
    Preferences,
    Recovery,
    RequestFailed,
    Restarted,
    SchemaMismatch,
    Started,
    StreamEvent,
    TextDelta,
    describe,
    explain,
    generate,
    generate_as,
    open_env,
    run,
    scripted_env,
)
from llm_effects.config import Capabilities, Price
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.structured import Structured
from llm_effects.testing import Chunks, Scripted, answer, scripted
from llm_effects.values import Tool
from tests.fixtures.llama_server import llama_server as llama_server  # noqa: PLC0414 - a fixture
from tests.fixtures.llama_server import model_or_skip

pytestmark = pytest.mark.anyio

ASK: Final = LLMRequest(prompt="How bad is it?")
LEVEL: Final = Literal["low", "high"]
GOOD: Final = '{"title": "p99", "score": 3}'
BAD: Final = '{"title": 1, "scores": 3}'

PRICE: Final = Price(input=Decimal(1), output=Decimal(1))
TWO: Final = LLMConfig(
    models={
        "first": ModelConfig(provider="lm-studio", model="a", price=PRICE),
        "second": ModelConfig(provider="ollama", model="b", price=PRICE),
    }
)
ONE: Final = evolve(TWO, models={"first": TWO.models["first"]})


@frozen
class Report:
    title: str
    score: int = field(validator=gt(0))


async def ask(
    *replies: Any, kind: Any = Report, request: LLMRequest = ASK, config: LLMConfig = ONE, **more: Any
) -> tuple[Result[Structured[Any], LLMError], Scripted]:
    model = scripted(*replies)
    return await run(generate_as(request, kind, **more), scripted_env(config=config, clients=model)), model


def caching(model: Scripted, config: LLMConfig = ONE) -> LLMEnv:
    return evolve(scripted_env(config=config, clients=model), cache=MemoryCache(100))


def listening(events: list[StreamEvent]) -> Any:
    async def sink(event: StreamEvent) -> None:
        events.append(event)

    return sink


def names_of(events: Sequence[StreamEvent]) -> list[str]:
    return [event.text if isinstance(event, TextDelta) else type(event).__name__ for event in events]


class TestAnswers:
    async def test_an_answer_is_a_value_with_its_response(self) -> None:
        result, model = await ask(GOOD)
        structured = result.unwrap()
        assert structured.value == Report("p99", 3)
        assert structured.response.content == GOOD
        assert model.requests[0].response_schema is not None

    async def test_the_type_may_be_passed_as_structured(self) -> None:
        result, _ = await ask('{"value": "low"}', kind=Structured[LEVEL])
        assert result.unwrap().value == "low"

    async def test_problems_are_sent_back_to_the_model(self) -> None:
        result, model = await ask("Well...", BAD, GOOD)
        structured = result.unwrap()
        assert structured.value == Report("p99", 3)
        assert len(structured.response.attempts) == 3
        assert structured.response.cost == sum((each.cost for each in structured.response.attempts[1:]),
                                               structured.response.attempts[0].cost)  # fmt: skip
        again = model.requests[2]
        assert [turn.role for turn in again.messages] == ["user", "assistant", "user"]
        says = again.messages[-1].parts[0].text  # type: ignore[union-attr]
        assert "$.title: expected `str`, got `int`" in says
        assert "$.score: is missing" in says
        assert '"additionalProperties":false' in says
        assert len(structured.response.warnings) == 2

    async def test_a_failed_repair_is_an_error_with_the_total_cost(self) -> None:
        result, model = await ask(BAD)
        error = result.failure()
        assert isinstance(error, SchemaMismatch)
        assert error.raw == BAD
        assert "$.score: is missing" in error.problems
        assert (len(model.calls), len(error.attempts), error.model) == (3, 3, "first")
        assert error.cost.usd
        assert error.cost.usd == sum(each.cost.usd or 0 for each in error.attempts)

    @pytest.mark.parametrize("max_repairs", [0, 1])
    async def test_max_repairs_limits_the_repairs(self, max_repairs: int) -> None:
        _, model = await ask(BAD, max_repairs=max_repairs)
        assert len(model.calls) == max_repairs + 1

    async def test_max_attempts_limits_the_repairs_too(self) -> None:
        few = evolve(ONE, routing=evolve(ONE.routing, max_attempts=2))
        _, model = await ask(BAD, max_repairs=50, config=few)
        assert len(model.calls) == 2

    async def test_the_rules_of_the_class_are_sent_back_too(self) -> None:
        result, model = await ask('{"title": "x", "score": 0}', GOOD)
        assert result.unwrap().value.score == 3
        assert "$.score: expected `int` >= 1" in model.requests[1].messages[-1].parts[0].text  # type: ignore[union-attr]

    async def test_a_cut_off_answer_is_not_repaired(self) -> None:
        cut = evolve(answer('{"title": "p9'), finish_reason=FinishReason.LENGTH)
        result, model = await ask(cut)
        error = result.failure()
        assert isinstance(error, SchemaMismatch)
        assert "raise preferences.max_tokens" in error.problems[0]
        assert len(model.calls) == 1

    async def test_a_cut_off_answer_with_a_complete_value_is_accepted(self) -> None:
        result, _ = await ask(evolve(answer(GOOD + " And"), finish_reason=FinishReason.LENGTH))
        assert result.unwrap().value == Report("p99", 3)

    async def test_other_errors_pass_through(self) -> None:
        assert isinstance((await ask(ContentRefused()))[0].failure(), ContentRefused)
        assert isinstance((await ask(BAD, ContentRefused()))[0].failure(), ContentRefused)

    @pytest.mark.parametrize(
        ("request_", "kind", "says"),
        [
            (ASK, complex, "no JSON Schema"),
            (ASK, "Report", "no JSON Schema"),
            (
                ASK,
                {"type": "object"},
                "a class, not dict: pass a class",
            ),
            (evolve(ASK, response_schema={"type": "object"}), Report, "response_schema"),
            (evolve(ASK, tools=(Tool("look"),)), Report, "tools"),
        ],
    )
    async def test_an_impossible_question_is_rejected_before_any_model_is_asked(
        self, request_: LLMRequest, kind: object, says: str
    ) -> None:
        result, model = await ask(GOOD, request=request_, kind=kind)
        error = result.failure()
        assert isinstance(error, InvalidRequest)
        assert says in error.message
        assert not model.calls

    async def test_generate_does_not_validate(self) -> None:
        model = scripted(BAD)
        assert (await run(generate(ASK), scripted_env(clients=model))).unwrap().content == BAD
        assert len(model.calls) == 1


class TestRouting:
    async def test_the_next_model_is_asked_when_repairs_fail(self) -> None:
        result, model = await ask(BAD, BAD, GOOD, config=TWO, max_repairs=1)
        structured = result.unwrap()
        assert structured.response.model == "second"
        assert [call.model for call in model.calls] == ["first", "first", "second"]
        assert len(structured.response.attempts) == 3
        assert model.requests[2].messages == ()  # it begins afresh

    async def test_the_error_lists_every_model_when_none_fits(self) -> None:
        result, model = await ask(BAD, config=TWO, max_repairs=0)
        error = result.failure()
        assert isinstance(error, RequestFailed)
        assert [(each.tag, each.model) for each in error.errors] == [
            ("SchemaMismatch", "first"),
            ("SchemaMismatch", "second"),
        ]
        assert len(model.calls) == 2

    async def test_the_next_model_is_asked_when_a_repair_breaks(self) -> None:
        result, _ = await ask(BAD, NetworkError(phase="dns"), NetworkError(phase="dns"), GOOD, config=TWO)
        assert result.unwrap().response.model == "second"

    async def test_a_model_without_schema_support_is_excluded(self) -> None:
        dumb = evolve(TWO.models["first"], capabilities=Capabilities(schema=False))
        result, model = await ask(GOOD, config=evolve(TWO, models={**TWO.models, "first": dumb}))
        assert result.unwrap().response.model == "second"
        assert len(model.calls) == 1

    async def test_a_model_that_cannot_express_the_schema_is_excluded_with_a_reason(self) -> None:
        claude = ModelConfig(provider="anthropic", model="claude-sonnet-5", api_key="k")
        both = LLMConfig(models={"claude": claude, "first": TWO.models["first"]})
        request = evolve(ASK, task_type="analysis")
        result, _ = await ask('{"a": 1}', kind=dict[str, int], request=request, config=both)
        assert result.unwrap().response.model == "first"
        alone = evolve(both, models={"claude": claude})
        refused, model = await ask("{}", kind=dict[str, int], request=request, config=alone)
        error = refused.failure()
        assert isinstance(error, InvalidRequest)
        assert "keys that are not named" in error.message
        assert not model.calls

    async def test_explain_lists_models_that_cannot_express_the_schema(self) -> None:
        claude = ModelConfig(provider="anthropic", model="claude-sonnet-5", api_key="k")
        both = LLMConfig(models={"claude": claude, "first": TWO.models["first"]})
        free = evolve(ASK, response_schema={"type": "object"})
        decision = (await run(explain(free), scripted_env(config=both))).unwrap()
        assert [each.model for each in decision.excluded] == ["claude"]


class TestCaching:
    async def test_a_valid_answer_is_cached(self) -> None:
        model = scripted(BAD, GOOD, "never")
        env = caching(model)
        first = (await run(generate_as(ASK, Report), env)).unwrap()
        second = (await run(generate_as(ASK, Report), env)).unwrap()
        assert first.value == second.value
        assert (second.response.cached, len(model.calls)) == (True, 2)

    async def test_an_invalid_answer_is_not_cached(self) -> None:
        model = scripted(BAD, BAD, GOOD)
        env = caching(model)
        assert isinstance((await run(generate_as(ASK, Report, max_repairs=1), env)).failure(), SchemaMismatch)
        assert (await run(generate_as(ASK, Report), env)).unwrap().value == Report("p99", 3)

    async def test_a_cached_answer_that_does_not_fit_is_replaced(self) -> None:
        model = scripted(BAD, GOOD, "never")
        env = caching(model)
        typed = generate_as(ASK, Report)
        schema = (await run(typed, scripted_env(GOOD))).unwrap()
        assert schema.value
        probe = scripted(GOOD)
        await run(typed, scripted_env(clients=probe))
        await run(generate(probe.requests[0]), env)  # by plain ``generate``, which judges nothing
        first = (await run(typed, env)).unwrap()
        assert first.value == Report("p99", 3)
        assert "cached answer did not fit" in first.response.warnings[0]
        assert (await run(typed, env)).unwrap().response.cached
        assert len(model.calls) == 2

    async def test_cache_policy_only_never_asks_a_model(self) -> None:
        model = scripted(BAD)
        env = caching(model)
        probe = scripted(GOOD)
        await run(generate_as(ASK, Report), scripted_env(clients=probe))
        await run(generate(probe.requests[0]), env)
        error = (await run(generate_as(evolve(ASK, cache=CachePolicy.ONLY), Report), env)).failure()
        assert isinstance(error, SchemaMismatch)
        assert (len(model.calls), error.attempts) == (1, ())

    async def test_a_plain_call_in_flight_shares_no_answer(self) -> None:
        probe = scripted(GOOD)
        await run(generate_as(ASK, Report), scripted_env(clients=probe))
        model = scripted(Chunks((BAD,), pause=0.02), GOOD)
        env = caching(model)
        results: list[Any] = []

        async def collect(effect: Effect[Any]) -> None:
            results.append((await run(effect, env)).unwrap())

        async with anyio.create_task_group() as group:
            group.start_soon(collect, generate(probe.requests[0]))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(collect, generate_as(ASK, Report))
        assert {type(each) for each in results} == {LLMResponse, Structured}
        assert len(model.calls) == 2


class TestStreams:
    async def test_a_stream_has_the_events_of_the_model(self) -> None:
        events: list[StreamEvent] = []
        result, _ = await ask(GOOD, sink=listening(events))
        assert names_of(events) == ["Started", GOOD, "Completed"]
        assert events[-1] == Completed(result.unwrap().response)

    async def test_a_repair_restarts_the_stream(self) -> None:
        events: list[StreamEvent] = []
        result, _ = await ask(Chunks((BAD[:5], BAD[5:])), GOOD, sink=listening(events))
        assert result.unwrap().value == Report("p99", 3)
        assert names_of(events) == ["Started", BAD[:5], BAD[5:], "Restarted", GOOD, "Completed"]
        assert Restarted("first") in events

    async def test_after_a_commit_the_next_model_needs_recovery(self) -> None:
        failed, model = await ask(BAD, BAD, GOOD, config=TWO, max_repairs=1, sink=listening([]))
        assert isinstance(failed.failure(), SchemaMismatch)
        assert len(model.calls) == 2
        events: list[StreamEvent] = []
        again = evolve(ASK, recovery=Recovery.RESTART)
        result, _ = await ask(BAD, BAD, GOOD, config=TWO, max_repairs=1, sink=listening(events), request=again)
        assert result.unwrap().response.model == "second"
        assert names_of(events)[-3:] == ["Restarted", GOOD, "Completed"]

    async def test_a_failed_stream_ends_with_the_error(self) -> None:
        events: list[StreamEvent] = []
        result, _ = await ask(BAD, max_repairs=0, sink=listening(events))
        assert events[-1] == Failed(result.failure())
        refused: list[StreamEvent] = []
        result, _ = await ask(BAD, kind=complex, sink=listening(refused))
        assert refused == [Failed(result.failure())]

    async def test_a_cached_answer_that_does_not_fit_restarts_the_stream(self) -> None:
        model = scripted(BAD, GOOD)
        env = caching(model)
        probe = scripted(GOOD)
        await run(generate_as(ASK, Report), scripted_env(clients=probe))
        await run(generate(probe.requests[0]), env)
        events: list[StreamEvent] = []
        await run(generate_as(ASK, Report, sink=listening(events)), env)
        assert names_of(events) == ["Started", BAD, "Restarted", GOOD, "Completed"]
        assert isinstance(events[0], Started)


@frozen
class Fruit:
    name: str
    colour: Literal["red", "green", "yellow"]
    sweet: bool
    seeds: int | None = None


@frozen
class Brief:
    """A story that its validator keeps short: the grammar ends the text."""

    story: str = field(validator=max_len(20))


BRIEFLY: Final = Preferences(max_tokens=64, temperature=0)
PROMPT: Final = 'Describe an apple as JSON like {"name": "pear", "colour": "green", "sweet": true, "seeds": 5}.'


async def test_a_text_is_the_prompt_of_a_request() -> None:
    assert (await run(generate_as("Two primes?", list[int]), scripted_env("[2, 3]"))).unwrap().value == [2, 3]
    error = (await run(generate_as(" ", list[int]), scripted_env("[2, 3]"))).failure()
    assert describe(error) == "InvalidRequest: prompt: must not be blank: give some text, or leave it out"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestTheSmallModel:
    async def test_a_model_in_this_process_answers_with_values(self) -> None:
        tiny = ModelConfig(provider="llama", model_path=str(model_or_skip()), context_length=1024, threads=1)
        async with open_env(LLMConfig(models={"tiny": tiny})) as env:
            for kind in (Fruit, Literal["red", "green"], Brief):
                asked = generate_as(LLMRequest(prompt=PROMPT, preferences=BRIEFLY), kind, max_repairs=0)
                structured = (await run(asked, env)).unwrap()
                assert structured.response.model == "tiny"
                assert len(structured.response.attempts) == 1
                assert structured.response.finish_reason is FinishReason.STOP

    async def test_a_model_over_http_answers_with_a_value(self, llama_server: str) -> None:
        served = ModelConfig(provider="llama-cpp", endpoint=llama_server)
        async with open_env(LLMConfig(models={"served": served})) as env:
            result = await run(
                generate_as(LLMRequest(prompt=PROMPT, preferences=BRIEFLY), bool | None, max_repairs=0), env
            )
        assert result.unwrap().value in {True, False, None}
