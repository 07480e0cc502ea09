"""Prompts of conversations that outgrow the window, summaries, and learning how a model counts tokens."""

from decimal import Decimal

import pytest
from attrs import evolve

from llm_effects import (
    AuthenticationFailed,
    ContextTooLarge,
    Effect,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    Preferences,
    StreamEvent,
    Usage,
    converse,
    generate,
    load_conversation,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import StorageConfig
from llm_effects.config.services import Window
from llm_effects.conversations import append_messages
from llm_effects.conversations.context import SUMMARY_PROMPT, SUMMARY_TAG
from llm_effects.conversations.turn_lifecycle import NEWEST
from llm_effects.conversations.window import SUMMARY_HEADING
from llm_effects.policies.limits import expected_usage
from llm_effects.testing import Reply
from llm_effects.testing.scripted import answer
from llm_effects.values.responses import Cost
from llm_effects.values.tokens import estimate_tokens

pytestmark = pytest.mark.anyio

WORDS = "word " * 60  # about 79 tokens in a message


def config(window: Window, context_length: int | None = 1000, **storage: str) -> LLMConfig:
    small = ModelConfig(provider="lm-studio", model="small", context_length=context_length)
    return LLMConfig(models={"small": small}, storage=StorageConfig(window=window, **storage))


async def fill_conversation(env: LLMEnv, number: int, pinned: tuple[int, ...] = ()) -> None:
    await run(start_conversation("c", system="Be brief."), env)
    for at in range(number):
        turn = (Message("user", f"q{at} {WORDS}"), Message("assistant", f"a{at} {WORDS}"))
        (await run(append_messages("c", turn, pinned=at in pinned), env)).unwrap()


async def answered(effect: Effect[LLMResponse], env: LLMEnv) -> LLMResponse:
    return (await run(effect, env)).unwrap()


def first_words(env: LLMEnv, call: int = -1) -> list[str]:
    return [each.text.split()[0] for each in env.clients.calls[call].request.messages]


async def test_the_oldest_exchanges_are_dropped_whole_with_a_warning() -> None:
    env = scripted_env("ok", config=config("drop"))
    await fill_conversation(env, 8, pinned=(1,))
    response = await answered(converse("c", "now"), env)
    assert first_words(env) == ["q1", "a1", "q5", "a5", "q6", "a6", "q7", "a7", "now"]
    assert "left out" in response.warnings[0]
    assert estimate_tokens(env.clients.calls[-1].request) <= 750
    assert len((await run(load_conversation("c"), env)).unwrap().turns) == 9


async def test_a_failed_pinned_question_is_in_no_later_prompt_and_only_once_in_its_retry() -> None:
    env = scripted_env(AuthenticationFailed(), "ok", config=config("drop"))
    (await run(start_conversation("c"), env)).unwrap()
    await run(converse("c", "pinned", pinned=True, turn_id="p"), env)
    for at in range(NEWEST + 1):
        turn = (Message("user", f"q{at} {WORDS}"), Message("assistant", f"a{at} {WORDS}"))
        (await run(append_messages("c", turn), env)).unwrap()
    await answered(converse("c", "now"), env)
    assert not [text for text in first_words(env) if "pinned" in text]
    await answered(converse("c", "pinned", pinned=True, turn_id="p"), env)
    assert [text for text in first_words(env) if "pinned" in text] == ["pinned"]


async def test_a_history_that_fits_is_sent_whole_without_a_warning() -> None:
    env = scripted_env("ok", config=config("fail"))
    await fill_conversation(env, 3)
    assert (await answered(converse("c", "now"), env)).warnings == ()
    assert len(first_words(env)) == 7


async def test_max_tokens_are_reserved_for_the_answer() -> None:
    env = scripted_env("ok", config=config("drop"))
    await fill_conversation(env, 8)
    await answered(converse("c", LLMRequest(prompt="now", preferences=Preferences(max_tokens=600))), env)
    assert first_words(env) == ["q6", "a6", "q7", "a7", "now"]


async def test_the_policy_fail_fails_before_any_model_is_asked() -> None:
    env = scripted_env("never", config=config("fail"))
    await fill_conversation(env, 8)
    refused = (await run(converse("c", "now"), env)).failure()
    assert isinstance(refused, ContextTooLarge)
    assert (refused.limit, refused.model, env.clients.calls) == (1000, "small", [])
    assert refused.token_count is not None
    assert refused.token_count > 1000
    assert "storage.window" in refused.message


@pytest.mark.parametrize("window", ["drop", "summarise"])
async def test_a_question_that_is_too_large_alone_fails_with_every_policy(window: Window) -> None:
    env = scripted_env("never", config=config(window))
    await fill_conversation(env, 1)
    assert (await run(converse("c", "word " * 4000), env)).failure().tag == "ContextTooLarge"
    assert env.clients.calls == []


async def test_an_unknown_window_limits_nothing() -> None:
    env = scripted_env("ok", config=config("drop", None))
    await fill_conversation(env, 40)
    await answered(converse("c", "now"), env)
    assert len(first_words(env)) == 81


async def test_the_window_is_that_of_the_first_candidate_and_not_the_largest() -> None:
    large = ModelConfig(provider="openai-chat", model="gpt", api_key="sk-x", context_length=100_000)
    both = config("drop")
    env = scripted_env("ok", config=evolve(both, models={**both.models, "large": large}))
    await fill_conversation(env, 8)
    assert (await answered(converse("c", "now"), env)).model == "small"
    assert (await answered(converse("c", LLMRequest(prompt="all", model="large")), env)).model == "large"
    assert len(first_words(env)) == 19


async def test_only_turns_that_may_fit_are_read_from_a_long_conversation() -> None:
    env = scripted_env("ok", config=config("drop"))
    await fill_conversation(env, 50)
    read: list[int | None] = []
    inner = env.conversations.load

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(env.conversations, name)

        def load(self, conversation_id: str, owner: str | None, newest: int | None = None) -> object:
            read.append(newest)
            return inner(conversation_id, owner, newest)

    assert (await answered(converse("c", "now"), evolve(env, conversations=Counting()))).content == "ok"
    assert read == [32]


def summariser(request: LLMRequest) -> Reply:
    if request.system == SUMMARY_PROMPT:
        return "They spoke of words."
    return f"answer to {len(request.messages)}"


async def test_a_summary_is_made_once_and_reused() -> None:
    env = scripted_env(summariser, config=config("summarise"))
    await fill_conversation(env, 8)
    first = await answered(converse("c", "now"), env)
    *summary_calls, turn_call = env.clients.calls
    assert first.warnings == ()
    assert {call.request.tags for call in summary_calls} == {(SUMMARY_TAG,)}
    assert "q0" in summary_calls[0].request.prompt
    texts = [each.text for each in turn_call.request.messages]
    assert texts[0].startswith(SUMMARY_HEADING + "They spoke of words.\n\nq")
    assert texts[-1] == "now"
    assert [each.role for each in turn_call.request.messages] == ["user", "assistant"] * (len(texts) // 2) + ["user"]
    await answered(converse("c", "more"), env)
    assert len(env.clients.calls) == len(summary_calls) + 2
    history = (await run(load_conversation("c"), env)).unwrap()
    assert history.summary is not None
    assert history.summary.provenance is not None
    assert len(history.turns) == 10


async def test_a_summary_is_extended_when_the_window_is_full_again() -> None:
    env = scripted_env(summariser, config=config("summarise"))
    await fill_conversation(env, 8)
    await answered(converse("c", "now"), env)
    before = (await run(load_conversation("c"), env)).unwrap().summary
    for at in range(6):
        await run(append_messages("c", (Message("user", f"x{at} {WORDS}"), Message("assistant", WORDS))), env)
    await answered(converse("c", "then"), env)
    summary_call = env.clients.calls[-2].request
    after = (await run(load_conversation("c"), env)).unwrap().summary
    assert summary_call.prompt.startswith("Summary so far:\nThey spoke of words.")
    assert "q0" not in summary_call.prompt
    assert before is not None
    assert after is not None
    assert after.upto > before.upto


async def test_a_history_too_long_for_one_request_is_summarised_in_chunks() -> None:
    env = scripted_env(summariser, config=config("summarise"))
    await fill_conversation(env, 30)
    await answered(converse("c", "now"), env)
    assert len(env.clients.calls) > 4
    assert all(estimate_tokens(call.request) < 1000 for call in env.clients.calls)


async def test_if_the_summary_fails_the_oldest_turns_are_dropped_with_a_warning() -> None:
    def broken(request: LLMRequest) -> Reply:
        return AuthenticationFailed() if request.system == SUMMARY_PROMPT else "ok"

    env = scripted_env(broken, config=config("summarise"))
    await fill_conversation(env, 8)
    response = await answered(converse("c", "now"), env)
    assert "AuthenticationFailed" in response.warnings[0]
    assert first_words(env)[-1] == "now"


async def test_summary_model_makes_the_summaries() -> None:
    other = ModelConfig(provider="lm-studio", model="other")
    small = config("summarise", summary_model="other")
    env = scripted_env(summariser, config=evolve(small, models={**small.models, "other": other}))
    await fill_conversation(env, 8)
    await answered(converse("c", "now"), env)
    assert list(dict.fromkeys(call.model for call in env.clients.calls)) == ["other", "small"]


async def test_a_prompt_that_a_server_finds_too_large_is_shortened() -> None:
    def picky(request: LLMRequest) -> Reply:
        tokens = estimate_tokens(request)
        return "ok" if tokens < 300 else ContextTooLarge(token_count=tokens, limit=300)

    env = scripted_env(picky, config=config("drop"))
    await fill_conversation(env, 8)
    response = await answered(converse("c", "now"), env)
    assert first_words(env)[-1] == "now"
    assert "left out" in response.warnings[-1]
    assert len(env.clients.calls) <= 3


async def test_shortening_the_prompt_is_invisible_in_a_stream() -> None:
    env = scripted_env(ContextTooLarge(limit=500), "ok", config=config("drop"))
    await fill_conversation(env, 8)
    seen: list[str] = []

    async def show(event: StreamEvent) -> None:
        seen.append(type(event).__name__)

    await answered(converse("c", "now", sink=show), env)
    assert seen == ["Started", "TextDelta", "Completed"]


def counted(tokens: int) -> LLMResponse:
    return evolve(answer("ok"), usage=Usage(input_tokens=tokens, output_tokens=1))


async def test_token_estimates_learn_from_the_counts_of_a_provider() -> None:
    env = scripted_env(counted(1500), config=config("drop", None))
    for _ in range(20):
        await answered(generate(LLMRequest(prompt="x" * 4000)), env)
    assert env.tokens.ratio("small") == pytest.approx(1.5, abs=0.03)
    assert env.tokens.ratio("other") == 1.0


async def test_a_model_that_counts_more_tokens_gets_less_history() -> None:
    env = scripted_env("ok", config=config("drop"))
    await fill_conversation(env, 8)
    for _ in range(40):
        env.tokens.learn("small", 1000, 2500)
    await answered(converse("c", "now"), env)
    assert len(first_words(env)) == 3
    assert env.clients.calls[-1].turn.tokens == pytest.approx(
        estimate_tokens(env.clients.calls[-1].request) * 2.5, rel=0.05
    )


async def test_the_token_ratio_is_applied_once_to_a_turn() -> None:
    env = scripted_env("ok", config=config("drop"))
    await fill_conversation(env, 2)
    for _ in range(40):
        env.tokens.learn("small", 1000, 2500)
    await answered(converse("c", "now"), env)
    call = env.clients.calls[-1]
    assert expected_usage(call, env).input_tokens == call.turn.tokens


async def test_a_silently_truncated_prompt_is_a_warning_and_does_not_change_the_ratio() -> None:
    env = scripted_env(counted(2050), config=config("drop", None))
    response = await answered(generate(LLMRequest(prompt="word " * 4000)), env)
    assert "2050 tokens of about 5004" in response.warnings[0]
    assert env.tokens.ratio("small") == 1.0


@pytest.mark.parametrize("prompt", ["-" * 20_000, "word" + " " * 20_000, "x " * 1000 + "=" * 18_000])
async def test_a_prompt_of_few_words_and_many_letters_raises_no_truncation_warning(prompt: str) -> None:
    env = scripted_env(counted(2050), config=config("drop", None))
    assert not (await answered(generate(LLMRequest(prompt=prompt)), env)).warnings


async def test_missing_usage_is_estimated_and_marked_as_such() -> None:
    silent = evolve(answer("one two"), usage=Usage(output_tokens=None))

    class Silent:
        keeps_time = True

        def complete(self, call: object) -> object:
            from returns.future import FutureResult

            return FutureResult.from_value(evolve(silent, model="small"))

    env = evolve(scripted_env(config=config("drop")), clients=Silent())
    response = await answered(generate(LLMRequest(prompt="x" * 400)), env)
    assert response.usage == Usage(input_tokens=104, output_tokens=6, estimated=True)
    assert response.cost == Cost(Decimal(0))
