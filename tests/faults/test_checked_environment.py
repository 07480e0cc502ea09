"""``open_env(config, check=True)`` tells at once what cannot work (real files and sockets)."""

from pathlib import Path

import anyio
import pytest

from llm_effects import LLMConfig, LLMRequest, ModelConfig, generate, load_config, open_env, run
from llm_effects.config import CacheConfig, LimitsConfig, StorageConfig
from llm_effects.values import InvalidValue
from llm_effects.values.extras import install_command
from tests.fixtures.chaos import Chaos, good
from tests.fixtures.faults import config_of, model
from tests.fixtures.redis_server import free_port

pytestmark = pytest.mark.anyio

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


@pytest.mark.parametrize("check", [True, False])
async def test_fault_187_what_can_work_opens(chaos: Chaos, tmp_path: Path, check: bool) -> None:
    config = LLMConfig(
        models=config_of({"first": model(chaos, good)}).models,
        storage=StorageConfig(url=f"sqlite:///{tmp_path}/llm.db"),
        cache=CacheConfig(url=f"sqlite:///{tmp_path}/cache.db"),
    )
    async with open_env(config, check=check) as env:
        assert (await run(generate(LLMRequest(prompt="why?")), env)).unwrap().content == "because"
