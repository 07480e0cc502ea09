"""The layers of the library pass every check, and a layer that breaks a rule fails the check of that rule."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Success

from llm_effects import LLMEnv, NetworkError, TextDelta, run
from llm_effects import pipeline as pipeline_module
from llm_effects.effects import Call, Generate, Policy
from llm_effects.effects.effect import Answer, layer
from llm_effects.testing import answer
from llm_effects.testing.layer_checks import LAYER_CHECKS, LayerCheck

pytestmark = pytest.mark.anyio

LAYERS = {name: value for name, value in vars(pipeline_module).items() if name.startswith("with_")}


@pytest.mark.parametrize("check", LAYER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LAYERS)
async def test_a_layer_of_the_library_passes(name: str, check: LayerCheck) -> None:
    await check(LAYERS[name])


async def test_all_layers_are_among_them() -> None:
    assert len(LAYERS) >= 12


def broken(handle: Any) -> Policy:
    return layer(handle)


@broken
async def refuses(next: Generate, call: Call, env: LLMEnv) -> Answer:
    return Failure(NetworkError())


@broken
async def raises(next: Generate, call: Call, env: LLMEnv) -> Answer:
    result = await run(next(call), env)
    if not is_successful(result):
        raise ValueError(result.failure())
    return result


@broken
async def unwraps(next: Generate, call: Call, env: LLMEnv) -> Any:
    result = await run(next(call), env)
    return result if is_successful(result) else result.failure()


@broken
async def catches(next: Generate, call: Call, env: LLMEnv) -> Answer:
    try:
        return await run(next(call), env)
    except Exception:  # noqa: BLE001 - the fault
        return Failure(NetworkError())


@broken
async def groups(next: Generate, call: Call, env: LLMEnv) -> Answer:
    results: list[Answer] = []

    async def ask() -> None:
        results.append(await run(next(call), env))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
    return results[0]


@broken
async def swallows(next: Generate, call: Call, env: LLMEnv) -> Answer:
    try:
        return await run(next(call), env)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        return Success(answer("late"))


@broken
async def repeats(next: Generate, call: Call, env: LLMEnv) -> Answer:
    result = await run(next(call), env)
    return result if is_successful(result) else await run(next(call), env)


@broken
async def doubles(next: Generate, call: Call, env: LLMEnv) -> Answer:
    async def sink(event: object) -> None:
        if call.sink is not None:
            await call.sink(event)  # type: ignore[arg-type]
            if isinstance(event, TextDelta):
                await call.sink(event)

    return await run(next(evolve(call, sink=None if call.sink is None else sink)), env)


@broken
async def mutes(next: Generate, call: Call, env: LLMEnv) -> Answer:
    return await run(next(evolve(call, sink=None)), env)


@broken
async def oversleeps(next: Generate, call: Call, env: LLMEnv) -> Answer:
    result = await run(next(call), env)
    if not is_successful(result):
        await anyio.sleep(result.failure().retry_after or 0)
    return result


NEWEST: list[Call] = []


@broken
async def mixes(next: Generate, call: Call, env: LLMEnv) -> Answer:
    NEWEST[:] = [call]
    await anyio.lowlevel.checkpoint()
    return await run(next(NEWEST[0]), env)


BROKEN = {
    "an_answer_passes": (refuses,),
    "an_error_is_returned": (unwraps, raises),
    "an_exception_passes": (catches, groups),
    "an_exception_of_the_consumer_passes": (catches, groups),
    "a_cancellation_passes": (swallows,),
    "a_stream_passes": (doubles, mutes),
    "a_committed_call_is_not_repeated": (repeats,),
    "the_deadline_is_kept": (oversleeps,),
    "calls_at_once_do_not_mix": (mixes,),
}


@pytest.mark.parametrize(("check", "layer"), [(c, layer) for c in LAYER_CHECKS for layer in BROKEN[c.__name__]])
async def test_a_layer_that_breaks_the_rule_fails(check: LayerCheck, layer: Policy) -> None:
    with pytest.raises(AssertionError):
        await check(layer)
