"""One attempt: its time, the server's counts, and the words of a prompt, which are counted only as far as needed."""

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import LLMConfig, LLMRequest, ModelConfig, RequestTimeout, Usage, generate, run, scripted_env, stream
from llm_effects.config import RoutingConfig
from llm_effects.policies.complete import has_more_words
from llm_effects.testing import Chunks, Delayed, answer, run_in_virtual_time

ASK = LLMRequest(prompt="why?")

TEXTS = st.lists(st.text(st.sampled_from("aö_ -\n"), max_size=40).map(lambda text: text * 250), max_size=3)


@given(TEXTS, st.integers(-3, 3))
def test_words_are_counted_exactly_across_pieces(texts: list[str], more: int) -> None:
    words = sum(len("".join(each if each.isalnum() or each == "_" else " " for each in text).split()) for text in texts)
    limit = max(0, words + more)
    assert has_more_words(texts, limit) is (words > limit)


def test_the_rest_of_a_long_prompt_is_not_counted() -> None:
    class Text(str):
        __slots__ = ()

        def __len__(self) -> int:
            return 10**9  # a billion characters would take half a minute

    assert has_more_words([Text("word " * 1000)], 500)


def test_an_attempt_ends_after_the_time_of_its_model() -> None:
    hasty = ModelConfig(provider="lm-studio", model="m", timeout_ms=2000)
    env = scripted_env(
        Delayed(100, "late"), config=LLMConfig(models={"m": hasty}, routing=RoutingConfig(max_retries=0))
    )
    error = run_in_virtual_time(run, generate(ASK), env).failure()
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms, [each.latency_ms for each in error.attempts]) == ("attempt", 2000, [2000])


def test_a_stream_with_content_goes_on_after_its_share_of_the_time() -> None:
    pair = {name: ModelConfig(provider="lm-studio", model=name) for name in ("one", "two")}
    env = scripted_env(Chunks(("a", "b", "c"), pause=60), "from two", config=LLMConfig(models=pair))

    async def ignore(_: object) -> None: ...

    response = run_in_virtual_time(run, stream(ASK, ignore), env).unwrap()
    assert (response.content, response.model, response.latency_ms) == ("abc", "one", 240_000)


def test_counts_that_cannot_be_true_are_replaced_by_the_estimate() -> None:
    absurd = evolve(answer("because"), usage=Usage(input_tokens=10, output_tokens=10**9))
    response = run_in_virtual_time(run, generate(ASK), scripted_env(absurd)).unwrap()
    assert response.usage.estimated
    assert (response.usage.output_tokens or 0) < 100
    assert "more than this call can have" in response.warnings[0]


def test_an_answer_to_a_truncated_prompt_is_doubtful() -> None:
    truncated = evolve(answer("because"), usage=Usage(input_tokens=100, output_tokens=1))
    long = LLMRequest(prompt="why does it rain? " * 1000)
    response = run_in_virtual_time(run, generate(long), scripted_env(truncated)).unwrap()
    assert response.doubtful
    assert "may have truncated the prompt" in response.warnings[0]
