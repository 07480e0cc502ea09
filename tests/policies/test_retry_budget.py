"""The budget of retries that all calls share. Time is virtual."""

from attrs import evolve

from llm_effects import LLMConfig, LLMRequest, ModelConfig, NetworkError, generate, run, scripted_env
from llm_effects.config import RoutingConfig
from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.testing import run_in_virtual_time, scripted

ASK = LLMRequest(prompt="why?")
DEAD = NetworkError(phase="reset")


def config(*names: str, **routing: object) -> LLMConfig:
    models = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    settings = {"fallback_order": names, **routing}
    return LLMConfig(models=models, routing=RoutingConfig(**settings))  # type: ignore[arg-type]


def test_all_calls_share_one_retry_budget_and_successes_refill_it() -> None:
    budget = RetryBudgetConfig(tokens=30, transient=14)
    routing = {"breaker": BreakerConfig(enabled=False), "retry_budget": budget, "max_retries": 5}
    model = scripted(*[DEAD] * 6, *["ok"] * 12, *[DEAD] * 10)

    async def main() -> list[int]:
        env = evolve(scripted_env(clients=model, config=config("a", **routing)), draw=lambda: 0.0)
        attempts = []
        for _ in range(4 + 12 + 1):
            before = len(model.calls)
            await run(generate(ASK), env)
            attempts.append(len(model.calls) - before)
        return attempts

    # The budget pays for two retries; first attempts need none; then twelve successes pay for one more retry.
    assert run_in_virtual_time(main) == [3, 1, 1, 1, *[1] * 12, 2]


def test_an_empty_retry_budget_does_not_stop_the_fallback() -> None:
    routing = {"retry_budget": RetryBudgetConfig(tokens=1), "max_retries": 3}
    model = scripted(DEAD, "from b")
    response = run_in_virtual_time(
        run, generate(ASK), scripted_env(clients=model, config=config("a", "b", **routing))
    ).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [("a", "NetworkError"), ("b", "success")]
