"""``open_env(config, check=True)`` tells at once what cannot work (real files and sockets)."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from llm_effects import (
    LLMConfig,
    LLMRequest,
    ModelConfig,
    generate,
    list_conversations,
    load_config,
    open_env,
    run,
    start_conversation,
)
from llm_effects.config import CacheConfig, LimitsConfig, StorageConfig
from llm_effects.manager import check_setup
from llm_effects.values import InvalidValue
from llm_effects.values.extras import install_command
from tests.fixtures.chaos import CANARY, Chaos, good, problem, says
from tests.fixtures.faults import config_of, model
from tests.fixtures.redis_server import free_port
from tests.fixtures.servers import reply_json

pytestmark = pytest.mark.anyio

LISTED = reply_json({"data": [{"id": "m"}]})

GPT = {"gpt": ModelConfig(provider="openai", api_key="sk-test")}


async def problems_of(config: LLMConfig) -> str:
    with anyio.fail_after(20), pytest.raises(InvalidValue) as raised:
        async with open_env(config, check=True):
            pytest.fail("it opened")
    return str(raised.value)


@pytest.mark.parametrize("path", ["no/such/folder/llm.db", "a_folder", "a_file/llm.db"])
async def test_fault_187_a_storage_that_cannot_be_opened_is_told_at_once(tmp_path: Path, path: str) -> None:
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_file").write_text("text")
    config = LLMConfig(models=GPT, storage=StorageConfig(url=f"sqlite:///{tmp_path}/{path}"))
    assert "storage.url: " in await problems_of(config)


async def test_fault_187_every_problem_is_listed(tmp_path: Path) -> None:
    config = LLMConfig(
        models={"gpt": ModelConfig(provider="openai", model="gpt-6-luna")},
        storage=StorageConfig(url="redis://host"),
        cache=CacheConfig(url="ftp://host"),
        limits=LimitsConfig(url="ftp://host"),
    )
    problems = (await problems_of(config)).splitlines()
    assert [
        place
        for place in ("models.gpt.api_key", "storage.url", "cache.url", "limits.url")
        if not any(place in line for line in problems)
    ] == []
    assert len(problems) == 4


async def test_fault_187_a_cache_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    config = LLMConfig(models=GPT, cache=CacheConfig(url=f"sqlite:///{tmp_path}/no/such/cache.db"))
    assert "cache.url: " in await problems_of(config)


async def test_fault_187_a_postgres_server_that_is_not_there_is_told_at_once() -> None:
    url = f"postgresql://app:hunter2@127.0.0.1:{free_port()}/talks"
    problems = await problems_of(LLMConfig(models=GPT, storage=StorageConfig(url=url)))
    assert "storage.url: " in problems
    assert "hunter2" not in problems


async def test_fault_187_a_bare_installation_says_the_remedy() -> None:
    environ = {"LM_STUDIO_ENDPOINT": f"http://127.0.0.1:{free_port()}/v1"}
    config = load_config(environ=environ).unwrap()
    servers = {name: each for name, each in config.models.items() if each.provider != "llama"}
    problems = await problems_of(LLMConfig(models=servers))
    assert problems.count("no server on this machine answers") == 1
    assert install_command("local") in problems
    assert "OPENAI_API_KEY" in problems


async def test_fault_187_a_model_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    models = {"mine": ModelConfig(provider="llama", model_path=str(tmp_path / "no.gguf"))}
    assert "no model file at" in await problems_of(LLMConfig(models=models))


async def test_fault_187_a_rejected_key_is_told_at_once_although_another_model_answers(chaos: Chaos) -> None:
    rejected = says(problem(401, "Incorrect API key provided", code="invalid_api_key"))
    config = config_of({"first": model(chaos, rejected), "second": model(chaos, says(LISTED))})
    problems = await problems_of(config)
    assert problems.startswith("models.first: ")
    assert "second" not in problems
    assert CANARY not in problems


async def test_fault_187_a_model_that_is_down_beside_another_is_a_warning(chaos: Chaos) -> None:
    down = ModelConfig(provider="openai-compatible", endpoint=f"http://127.0.0.1:{free_port()}/v1", model="m")
    config = LLMConfig(models={"down": down, **config_of({"up": model(chaos, says(LISTED))}).models})
    async with open_env(config, check=True) as env:
        checks = {check.place: check.state for check in (await run(check_setup(), env)).unwrap()}
    assert checks["models.down"] == "warning"
    assert checks["models.up"] == "ok"


async def test_fault_187_a_storage_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "llm.db"
    config = LLMConfig(models=GPT, storage=StorageConfig(url=f"sqlite:///{file}"))
    async with open_env(config) as env:
        (await run(start_conversation(), env)).unwrap()
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON llm_conversations BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    database.close()
    assert "storage.url: StorageFailed" in await problems_of(config)


async def test_fault_187_a_check_leaves_no_conversation(tmp_path: Path) -> None:
    config = LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{tmp_path}/llm.db"))
    async with open_env(config) as env:
        checks = (await run(check_setup(), env)).unwrap()
        assert (await run(list_conversations(), env)).unwrap() == ()
    assert [check.place for check in checks if check.state == "problem"] == ["models"]


async def test_fault_187_limits_without_their_server_are_told_at_once() -> None:
    config = LLMConfig(models=GPT, limits=LimitsConfig(url=f"redis://127.0.0.1:{free_port()}"))
    assert "limits.url: " in await problems_of(config)


@pytest.mark.parametrize("check", [True, False])
async def test_fault_187_what_can_work_opens(chaos: Chaos, tmp_path: Path, check: bool) -> None:
    config = LLMConfig(
        models=config_of({"first": model(chaos, good)}).models,
        storage=StorageConfig(url=f"sqlite:///{tmp_path}/llm.db"),
        cache=CacheConfig(url=f"sqlite:///{tmp_path}/cache.db"),
    )
    async with open_env(config, check=check) as env:
        assert (await run(generate(LLMRequest(prompt="why?")), env)).unwrap().content == "because"
