"""The cost of telemetry per call: ``python -m tests.benchmarks.telemetry``.

First the layer and the hooks of an attempt alone, without a provider. Then the same scripted call through every layer:
with telemetry off, with the API package but no provider, with the SDK (spans to an exporter that drops them, metrics to
a reader that is never read), and with a log record of every attempt. Calls alternate; the figures are medians in
microseconds.
"""

import logging
import timeit
from collections.abc import Awaitable, Callable

import anyio
from attrs import evolve
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from llm_effects import LLMEnv, LLMRequest, generate, run, scripted_env
from llm_effects.effects import Call
from llm_effects.effects.effect import succeed
from llm_effects.effects.env import Telemetry
from llm_effects.policies.tracing import begin_attempt, end_attempt, with_tracing
from llm_effects.stores.disabled import NoTelemetry
from llm_effects.telemetry.logs import LOGGER
from llm_effects.telemetry.otel import open_telemetry
from tests.benchmarks.turns import alternating, timed

QUESTION = LLMRequest(prompt="Why is the sky blue?")


class Dropping(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def calls_of(env: LLMEnv) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        return (await run(generate(QUESTION), env)).unwrap()

    return call


def logged(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """Log every attempt, to a handler that drops it."""

    async def call_and_log() -> object:
        LOGGER.setLevel(logging.DEBUG)
        try:
            return await call()
        finally:
            LOGGER.setLevel(logging.NOTSET)

    return call_and_log


async def idle_cost(telemetry: Telemetry, rounds: int) -> float:
    """Return the microseconds of the tracing layer and the hooks of one attempt, without a provider."""
    env = evolve(scripted_env("because"), telemetry=telemetry)
    response = (await run(generate(QUESTION), env)).unwrap()
    (attempt,), outcome, call = (
        response.attempts,
        await run(succeed(response), env),
        Call(id="1", request=QUESTION),
    )
    hooks = min(
        timeit.repeat(lambda: end_attempt(call, env, begin_attempt(call, env), attempt, outcome), number=rounds)
    )
    inner = succeed(response)
    layer = with_tracing(lambda _: inner)
    with_it = min([await timed(lambda: run(layer(call), env)) for _ in range(rounds)])
    without = min([await timed(lambda: run(inner, env)) for _ in range(rounds)])
    return hooks / rounds * 1e6 + with_it - without


async def compare(rounds: int = 3000) -> None:
    off_us, idle_us = await idle_cost(NoTelemetry(), rounds), await idle_cost(open_telemetry(), rounds)
    print(f"layer and hooks, off {off_us:.1f} us, no provider {idle_us:.1f} us")
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Dropping(), max_queue_size=100_000))
    meters = MeterProvider([InMemoryMetricReader()])
    env = scripted_env("because")
    off = calls_of(env)
    idle = calls_of(evolve(env, telemetry=open_telemetry()))
    on = calls_of(evolve(env, telemetry=open_telemetry(tracers, meters)))
    bare, *taken = await alternating(rounds, off, idle, on, logged(off))
    tracers.shutdown()
    meters.shutdown()
    named = zip(("no provider", "SDK on", "log records"), taken, strict=True)
    print(f"one scripted call, off {bare:.0f} us; " + ", ".join(f"{name} {us - bare:+.0f} us" for name, us in named))


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(backend, end=": ")
        anyio.run(compare, backend=backend)
