"""The cost of the layers for limits and circuit breakers: ``python -m tests.benchmarks.limits``.

Calls of a scripted model alternate between pipelines with and without the two layers; the figures are medians.
"""

from itertools import count
from statistics import median
from time import perf_counter

import anyio

from llm_effects import LLMConfig, LLMRequest, ModelConfig, run, scripted_env
from llm_effects.config.routing import BreakerConfig, RoutingConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Generate, layered
from llm_effects.effects.env import LLMEnv
from llm_effects.policies.circuit_breaker import with_circuit_breaker
from llm_effects.policies.complete import complete
from llm_effects.policies.limits import with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.testing import scripted

ASK = LLMRequest(prompt="why?")


def env_of(*, enabled: bool = True, **limits: object) -> LLMEnv:
    model = ModelConfig(provider="lm-studio", model="m", **limits)  # type: ignore[arg-type]
    routing = RoutingConfig(breaker=BreakerConfig(enabled=enabled))
    return scripted_env(clients=scripted("ok"), config=LLMConfig(models={"m": model}, routing=routing))


async def compare(rounds: int = 3000) -> None:
    bare, both = layered(with_recording, complete), layered(with_circuit_breaker, with_limits, with_recording, complete)
    cases: dict[str, tuple[Generate, LLMEnv]] = {
        "without the layers": (bare, env_of()),
        "breaker off, no limits": (both, env_of(enabled=False)),
        "breaker, no limits": (both, env_of()),
        "breaker, all limits": (
            both,
            env_of(concurrency=8, requests_per_minute=1_000_000, tokens_per_minute=1_000_000_000),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    numbers = count()
    for _ in range(rounds):
        for name, (pipeline, env) in cases.items():
            call = Call(id=str(next(numbers)), request=ASK, attempt=AttemptContext(model="m"))
            started = perf_counter()
            await run(pipeline(call), env)
            times[name].append(perf_counter() - started)
    print(", ".join(f"{name} {median(taken) * 1e6:.0f} us" for name, taken in times.items()))


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(backend, end=": ")
        anyio.run(compare, backend=backend)
