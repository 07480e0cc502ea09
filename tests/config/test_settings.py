"""The values in effect and their origins: every field, no secret."""

from pathlib import Path

import pytest

from llm_effects.config.settings import Setting, config_settings

CANARY = "canary-7f3a91-4711"

DOCUMENT = """
[models.mini]
provider = "openai-chat"
model = "m"
api_keys = ["env:FIRST", "canary-7f3a91-4711"]
headers = { x-tenant = "canary-7f3a91-4711" }
price = { input = 1, output = 2, tiers = [{ above_tokens = 100, input = 3, output = 4 }] }

[storage]
url = "postgresql://app:canary-7f3a91-4711@db/talks"

[[budgets]]
name = "all"
limit_usd = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llm.toml"
    path.write_text(DOCUMENT)
    return path


def by_place(*settings: Setting) -> dict[str, tuple[object, str]]:
    return {each.place: (each.value, each.origin) for each in settings}


def test_values_of_the_environment_name_their_variables() -> None:
    environ = {"OPENAI_API_KEY": CANARY, "ANTHROPIC_API_KEY": CANARY, "LLM_CACHE_ENABLED": "off"}
    found = by_place(*config_settings(environ=environ).unwrap())
    assert found["models.gpt.api_key"] == ("***", "variable OPENAI_API_KEY")
    assert found["models.claude.api_key"] == ("***", "variable ANTHROPIC_API_KEY")
    assert found["models.gpt.model"][1] == "default"
    assert found["cache.enabled"] == (False, "variable LLM_CACHE_ENABLED")
    assert found["storage.url"] == ("memory://", "default")
    assert found["budgets"] == ([], "default")
    assert found["cache.keep"] == (["stop"], "default")


def test_values_of_a_file_name_the_file_and_the_variables_of_their_keys(file: Path) -> None:
    found = by_place(*config_settings(file, environ={"FIRST": CANARY}).unwrap())
    assert found['models."mini#1".api_key'] == ("***", f"variable FIRST, named in {file}")
    assert found['models."mini#2".api_key'] == ("***", str(file))
    assert found['models."mini#2".headers.x-tenant'] == ("***", str(file))
    assert found["storage.url"] == ("postgresql://***@db/talks", str(file))
    assert found['models."mini#1".price.tiers[0].input'] == ("3", str(file))
    assert found["budgets[0].limit_usd"] == ("5", str(file))
    assert found["budgets[0].period"] == ("day", "default")


def test_values_of_a_mapping_say_so() -> None:
    found = by_place(*config_settings({"models": {}, "cache": {"max_size": 5}}, environ={}).unwrap())
    assert found["cache.max_size"] == (5, "the given mapping")


def test_no_value_is_a_secret(file: Path) -> None:
    environ = {"FIRST": CANARY, "OPENAI_API_KEY": CANARY, "LM_STUDIO_ENDPOINT": f"http://a:{CANARY}@localhost/v1"}
    for source in (None, file):
        shown = repr(config_settings(source, environ=environ).unwrap())
        assert CANARY not in shown


def test_a_wrong_configuration_is_its_error() -> None:
    error = config_settings(environ={"LLM_CACHE_MAX_SIZE": "many"}).failure()
    assert error.tag == "ConfigurationError"
