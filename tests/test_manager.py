"""``LLMManager``: several event loops, direct use and ``async with``, closing, and defaults without configuration."""

import gc
import weakref
from collections.abc import Iterator

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.unsafe import unsafe_perform_io

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMManager,
    LLMRequest,
    ModelConfig,
    Preferences,
    create_default_llm_manager,
    create_default_local_client,
    generate,
    make_llm_manager,
)
from llm_effects.config import RoutingConfig
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.testing import scripted
from tests.fixtures.llama_server import llama_server, model_or_skip  # noqa: F401
from tests.fixtures.servers import Server, answering, reply_json, serving

ASK = LLMRequest(prompt="Say hi.", preferences=Preferences(max_tokens=4, temperature=0.0))

CHAT = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answering(reply_json(CHAT))) as running:
        yield running


def manager_of(server: Server) -> LLMManager:
    model = ModelConfig(provider="lm-studio", endpoint=server.url)
    return make_llm_manager(LLMConfig(models={"m": model}, routing=RoutingConfig(max_retries=0)))


async def ask(manager: LLMManager) -> str:
    return (await manager.run(generate(ASK))).map(lambda response: response.content).value_or("failed")


def test_one_manager_works_in_several_event_loops(server: Server) -> None:
    manager = manager_of(server)
    answers = [anyio.run(ask, manager, backend=backend) for backend in ("asyncio", "trio", "asyncio", "trio")]
    anyio.run(manager.aclose)
    gc.collect()  # an unclosed connection would warn now, and warnings are errors
    assert answers == ["hi"] * 4


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_direct_use_leaves_no_connection_open(server: Server, backend: str) -> None:
    async def use() -> int:
        await ask(manager)
        await ask(manager)
        return server.settled()

    manager = manager_of(server)
    assert anyio.run(use, backend=backend) == 0


@pytest.mark.anyio
async def test_async_with_reuses_its_connection(server: Server) -> None:
    async with manager_of(server) as manager:
        assert [await ask(manager) for _ in range(3)] == ["hi"] * 3
        assert server.accepted == 1


def test_a_manager_can_be_entered_again(server: Server) -> None:
    async def use(manager: LLMManager) -> str:
        async with manager:
            return await ask(manager)

    manager = manager_of(server)
    assert [anyio.run(use, manager, backend=backend) for backend in ("asyncio", "trio", "trio")] == ["hi"] * 3


def test_services_can_be_replaced() -> None:
    manager = make_llm_manager(LLMConfig(models={"m": ModelConfig(provider="lm-studio")}), with_scripted_clients)
    assert anyio.run(ask, manager) == "scripted"


def with_scripted_clients(env: LLMEnv) -> LLMEnv:
    return evolve(env, clients=scripted("scripted"))


@pytest.mark.anyio
async def test_closing_twice_is_fine_and_later_use_fails(server: Server) -> None:
    async with manager_of(server) as manager:
        await ask(manager)
        await manager.aclose()
    await manager.aclose()
    error = (await manager.run(generate(ASK))).failure()
    assert error.tag == "ConfigurationError"
    assert "closed" in str(error)


@pytest.mark.anyio
async def test_generate_returns_a_future_to_compose(server: Server) -> None:
    async with manager_of(server) as manager:
        answer = await manager.generate(ASK).map(lambda response: response.content.upper())
        assert unsafe_perform_io(answer.unwrap()) == "HI"


@pytest.mark.anyio
async def test_every_operation_reports_an_invalid_configuration() -> None:
    manager = create_default_llm_manager({"LLM_CACHE_TTL_SECONDS": "soon", "OPENAI_API_KEY": "sk canary"})
    for error in (
        (await manager.run(generate(ASK))).failure(),
        unsafe_perform_io((await manager.generate(ASK)).failure()),
    ):
        assert error.tag == "ConfigurationError"
        assert "LLM_CACHE_TTL_SECONDS" in repr(error)
        assert "canary" not in repr(error)


@pytest.mark.anyio
async def test_without_configuration_the_installed_model_is_the_last_candidate() -> None:
    model_or_skip()
    async with create_default_llm_manager({"LM_STUDIO_ENDPOINT": "http://127.0.0.1:9/v1"}) as manager:
        response = (await manager.run(generate(ASK))).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [
        ("lm-studio", "NetworkError"),
        ("smollm2", "success"),
    ]
    assert response.cost.usd == 0


def test_the_local_client_keeps_invalid_models_and_drops_remote_endpoints() -> None:
    invalid = create_default_local_client({"LM_STUDIO_ENDPOINT": "not a url"})
    assert anyio.run(invalid.run, generate(ASK)).failure().tag == "ConfigurationError"
    remote = create_default_local_client({"LM_STUDIO_ENDPOINT": "https://example.com/v1"})
    assert "lm-studio" not in remote.config.unwrap().models


def test_the_local_client_has_no_remote_models() -> None:
    client = create_default_local_client({"OPENAI_API_KEY": "sk-1", "CLAUDE_API_KEY": "sk-2"})
    assert not {"gpt", "claude"} & set(client.config.unwrap().models)


@pytest.mark.anyio
async def test_the_same_model_over_http_and_in_process_gives_the_same_answer(llama_server: str) -> None:  # noqa: F811
    file = str(model_or_skip())
    config = LLMConfig(
        models={
            "server": ModelConfig(provider="llama-cpp", endpoint=llama_server),
            "in-process": ModelConfig(provider="llama", model_path=file, context_length=2048),
        }
    )
    request = LLMRequest(prompt="Count to three.", preferences=Preferences(max_tokens=12, temperature=0.0, seed=1))
    answers = {}
    async with make_llm_manager(config) as manager:
        for name in config.models:
            response = (await manager.run(generate(evolve(request, model=name)))).unwrap()
            answers[name] = (response.content, response.finish_reason, response.usage.output_tokens)
    assert answers["in-process"] == answers["server"]


@pytest.mark.anyio
async def test_fault_160_the_last_of_two_scopes_closes_a_manager(server: Server) -> None:
    manager = manager_of(server)
    entered, left = anyio.Event(), anyio.Event()

    async def other() -> None:
        async with manager:
            entered.set()
            await left.wait()
            assert await ask(manager) == "hi"

    async with anyio.create_task_group() as group:
        async with manager:
            group.start_soon(other)
            await entered.wait()
            assert await ask(manager) == "hi"
        left.set()
    assert not is_successful(await manager.run(generate(ASK)))


@pytest.mark.anyio
async def test_fault_160_a_closed_manager_leaves_nothing_in_its_event_loop() -> None:
    async def state_of_a_closed_manager() -> weakref.ref[object]:
        limits = MemoryLimits()
        async with make_llm_manager(LLMConfig(models={}), lambda env: evolve(env, limits=limits)):
            state = weakref.ref[object](limits._states.of("m"))  # pyright: ignore[reportPrivateUsage]
        assert state() is not None
        return state

    state = await state_of_a_closed_manager()
    gc.collect()
    assert state() is None
