"""Loading a configuration: the same values from every source, and every problem at once with its place."""

import copy
import os
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_effects.config import LLMConfig
from llm_effects.config.loading import TEMPLATE, embedded_model, load_config, select_models, substitute_variables
from llm_effects.config.models import Capabilities, ModelConfig, Price
from llm_effects.config.routing import RoutingConfig
from llm_effects.config.services import BudgetConfig, CacheConfig, ServeConfig, StorageConfig, TelemetryConfig
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.secrets import Secret

CANARY = "canary-7f3a91"


def problems(*args: Any, **kwargs: Any) -> list[str]:
    """Return the lines of the failure, without its header."""
    error = load_config(*args, **kwargs).failure()
    assert isinstance(error, ConfigurationError)
    header, *lines = error.message.split("\n")
    assert header.endswith("has 1 problem:" if len(lines) == 1 else f"has {len(lines)} problems:")
    return lines


# Mappings.

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
FAMILIES = st.sampled_from(["local", "gpt", "claude", "other"])
WHOLE = st.integers(1, 10**6)
TIMES = st.integers(1, 10**6) | st.floats(0.001, 10**6)
KEYS = st.text("abcdef0123456789", min_size=8, max_size=20).map("sk-".__add__)
MONEY = st.integers(0, 100) | st.floats(0, 100).map(lambda amount: round(amount, 4)) | st.just("0.15")


def table(**entries: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional=entries)


MODELS = st.fixed_dictionaries(
    {"provider": WORDS},
    optional={
        "model": WORDS,
        "api_key": KEYS,
        "max_tokens": WHOLE,
        "temperature": st.floats(0, 2) | st.integers(0, 2),
        "timeout_ms": TIMES,
        "wire_version": st.sampled_from(["2023-06-01", "2026-10-21"]),
        "capabilities": table(context_length=WHOLE, tools=st.booleans()),
        "price": st.fixed_dictionaries({"input": MONEY, "output": MONEY}, optional={"cache_read": MONEY}),
        "headers": st.dictionaries(WORDS, KEYS, max_size=2),
        "last_resort": st.booleans(),
    },
)
BUDGETS = st.lists(
    st.fixed_dictionaries({"name": WORDS, "limit_usd": MONEY}, optional={"period": st.sampled_from(["hour", "day"])}),
    max_size=2,
    unique_by=lambda budget: budget["name"],
)
SHAPES = st.fixed_dictionaries(
    {"models": st.dictionaries(WORDS, MODELS, min_size=1, max_size=3)},
    optional={
        "routing": table(
            strategy=st.sampled_from(["balanced", "cost", "performance"]),
            fallback_order=st.lists(FAMILIES, max_size=3),
            tasks=st.dictionaries(WORDS, st.lists(FAMILIES, max_size=2), max_size=2),
            max_retries=st.integers(0, 9),
            timeout_ms=TIMES,
        ),
        "cache": table(enabled=st.booleans(), ttl_seconds=TIMES, max_size=WHOLE),
        "storage": table(url=st.just("sqlite:///llm.db")),
        "budgets": BUDGETS,
        "telemetry": table(bodies=st.booleans()),
    },
)


def model(shape: dict[str, Any]) -> ModelConfig:
    nested: dict[str, type] = {"capabilities": Capabilities, "price": Price}
    return ModelConfig(**{key: nested[key](**value) if key in nested else value for key, value in shape.items()})


def constructed(shape: Mapping[str, Any]) -> LLMConfig:
    return LLMConfig(
        models={name: model(each) for name, each in shape["models"].items()},
        routing=RoutingConfig(**shape.get("routing", {})),
        cache=CacheConfig(**shape.get("cache", {})),
        storage=StorageConfig(**shape.get("storage", {})),
        budgets=tuple(BudgetConfig(**each) for each in shape.get("budgets", ())),
        telemetry=TelemetryConfig(**shape.get("telemetry", {})),
    )


@given(SHAPES)
def test_a_valid_mapping_loads_the_values_that_the_constructors_create(shape: dict[str, Any]) -> None:
    config = load_config(shape, environ={}).unwrap()
    assert config == constructed(shape)
    assert list(config.models) == list(shape["models"])


@given(SHAPES)
def test_loading_does_not_change_the_mapping(shape: dict[str, Any]) -> None:
    before = copy.deepcopy(shape)
    assert load_config(shape, environ={}) == load_config(shape, environ={})
    assert shape == before


# Corruption: one invalid leaf is one problem that names its path.


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def invalid_values_for(value: object) -> list[object]:
    """Return values of other types, which a lenient reader might accept."""
    match value:
        case bool():
            return [1, 0, "true", None, b"x"]
        case int() | float():
            return [True, [value], b"1", float("nan"), float("inf"), -1, 10**400, {"": value}]
        case _:
            return [5, True, [value], {"": value}, b"bytes", object()]


@given(SHAPES, st.data())
def test_one_corrupted_leaf_is_one_problem_that_names_its_path(shape: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(leaves(shape), key=str)))
    shape = copy.deepcopy(shape)
    inner: Any = shape
    for key in path[:-1]:
        inner = inner[key]
    money = path[-1] in {"input", "output", "cache_read", "limit_usd"}
    wrong = [True, [1], b"1", float("nan"), -1, "-1", "cheap"] if money else invalid_values_for(inner[path[-1]])
    if path[-1] == "tools":
        wrong.remove(None)  # ``None`` means unknown, which is valid
    inner[path[-1]] = data.draw(st.sampled_from(wrong))
    (line,) = problems(shape, environ={})
    assert line.startswith(f"{dotted(path)}: must be ")


@given(SHAPES, st.data())
def test_an_unknown_key_is_one_problem_that_names_its_path(shape: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(shape["models"])))
    shape = copy.deepcopy(shape) | {"rooting": {}}
    shape["models"][name]["max_token"] = 5
    assert sorted(problems(shape, environ={})) == [
        f"models.{name}.max_token: unknown key: did you mean max_tokens?",
        "rooting: unknown key: did you mean routing?",
    ]


def test_all_problems_are_reported_at_once() -> None:
    shape = {
        "models": {
            "claude": {"provider": "anthropic", "max_tokens": -1, "temperature": "hot", "api_key": "env:NO_KEY"},
            "gpt 4.1": {"model": "gpt-4.1", "wibble": 1},
            7: {"provider": "vllm"},
            "flat": "vllm",
        },
        "routing": {"strategy": "random", "fallback_order": "claude", "tasks": {"triage": ["gpt", 4]}},
        "budgets": [{"name": "daily", "limit_usd": 5}, {"name": "none", "limit_usd": "NaN", "period": "year"}],
        "telemetry": [],
    }
    assert problems(shape, environ={}) == [
        "models.claude.max_tokens: must be at least 1, not -1",
        "models.claude.temperature: must be a number, not str",
        "models.claude.api_key: the environment variable NO_KEY is not set: set it",
        f'models."gpt 4.1".wibble: unknown key: the keys here are {", ".join(attrs.fields_dict(ModelConfig))}',
        'models."gpt 4.1".provider: is missing: give it a value',
        "models.7: must be named by a text, not int",
        "models.flat: must be a table, not str",
        "routing.strategy: must be one of balanced, cost, performance, not 'random'",
        "routing.fallback_order: must be a list, not str",
        "routing.tasks.triage[1]: must be a text, not int",
        "budgets[1].limit_usd: must be an amount of US dollars such as 0.15, 0 or more, not NaN",
        "budgets[1].period: must be one of hour, day, month, not 'year'",
        "telemetry: must be a table, not list",
    ]


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ({}, "models: is missing: give it a value"),
        ({"models": None}, "models: must be a table, not NoneType"),
        ({"models": {" ": {"provider": "vllm"}}}, "models: each model needs a name that is not blank"),
        ({"models": {"a": {}}}, "models.a.provider: is missing: give it a value"),
        ({"models": {"a": {"provider": None}}}, "models.a.provider: must be a text, not NoneType"),
        ({"models": {"a": {"provider": "x", "headers": {"a b": "c"}}}},
         "models.a.headers: 'a b' is not a valid header name: use letters, digits and dashes"),
        ({"models": {"a": {"provider": "x", "max_tokens": 10**500}}},
         "models.a.max_tokens: must be a number of at most 64 bits"),
    ],
)  # fmt: skip
def test_a_single_problem_names_its_place(shape: dict[str, object], line: str) -> None:
    assert problems(shape, environ={}) == [line]


def test_none_means_unset_for_an_optional_field() -> None:
    shape = {"models": {"a": {"provider": "vllm", "api_key": None, "price": None}}, "cache": {"ttl_seconds": None}}
    config = load_config(shape, environ={}).unwrap()
    assert config == LLMConfig(models={"a": ModelConfig(provider="vllm")}, cache=CacheConfig(ttl_seconds=None))


def test_names_of_models_providers_and_tasks_are_free() -> None:
    shape = {"models": {"my.own": {"provider": "no-such-preset"}}, "routing": {"tasks": {"poetry": ["my.own"]}}}
    config = load_config(shape, environ={}).unwrap()
    assert config.models["my.own"].provider == "no-such-preset"
    assert config.routing.tasks == {"poetry": ("my.own",)}


def test_unknown_names_in_an_order_are_reported_with_their_places() -> None:
    shape = {
        "models": {"studio": {"provider": "lm-studio"}},
        "routing": {"fallback_order": ["local", "unknown"], "tasks": {"triage": ["studio", "stduio"]}},
    }
    names = "studio, local, gpt, claude, other"
    assert problems(shape, environ={}) == [
        "routing.tasks.triage[1]: 'stduio' is not a configured model or a family: did you mean studio?",
        f"routing.fallback_order[1]: 'unknown' is not a configured model or a family: the names are {names}",
    ]


# Secrets


def test_a_key_can_name_an_environment_variable() -> None:
    shape = {"models": {"a": {"provider": "vllm", "api_key": "env:MY_KEY", "headers": {"x-team": "env: TEAM"}}}}
    config = load_config(shape, environ={"MY_KEY": CANARY, "TEAM": "ops"}).unwrap()
    assert config.models["a"].api_key == Secret(CANARY)
    assert config.models["a"].headers == (("x-team", Secret("ops")),)
    assert CANARY not in repr(config)
    assert problems(shape, environ={"MY_KEY": "", "TEAM": "ops"}) == [
        "models.a.api_key: the environment variable MY_KEY is not set: set it"
    ]


def test_a_secret_object_is_used_unchanged() -> None:
    shape = {"models": {"a": {"provider": "vllm", "api_key": Secret("env:literal")}}}
    assert load_config(shape, environ={}).unwrap().models["a"].api_key == Secret("env:literal")


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": [CANARY]},
        {"api_key": {"value": CANARY}},
        {"api_key": f"{CANARY}\n"},
        {"api_key": f"{CANARY} {CANARY}"},
        {"api_key": f"<{CANARY}>"},
        {"api_key": CANARY.encode()},
        {"api_key": "env:KEY"},
        {"headers": {"x-team": [CANARY]}},
        {"headers": {"x-team": f"{CANARY}\r\n"}},
        {"headers": CANARY},
        {"apikey": CANARY},
        {"max_tokens": CANARY},
        {"capabilities": CANARY},
        {"wire_version": f"sk-{CANARY}"},
    ],
)
def test_no_problem_shows_a_secret(wrong: dict[str, object]) -> None:
    failure = load_config({"models": {"a": {"provider": "vllm", **wrong}}}, environ={"KEY": f"{CANARY}\n"}).failure()
    assert CANARY not in repr(failure)
    assert CANARY not in failure.message  # type: ignore[union-attr]
    assert CANARY not in repr(attrs.asdict(failure))


# TOML

TOML = """
[models.claude]
provider = "anthropic"
api_key = "env:CLAUDE"
max_tokens = 500
temperature = 1
price = {input = 3, output = 15.5, cache_read = "0.30"}
capabilities.tools = true

[models.tiny]
provider = "llama"
model_path = "models/tiny.gguf"

[models.absolute]
provider = "llama"
model_path = "/models/tiny.gguf"

[models.home]
provider = "llama"
model_path = "~/tiny.gguf"

[routing]
tasks.triage = ["local", "claude"]

[[budgets]]
name = "daily"
limit_usd = 0.1
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "llm.toml"


def test_paths_in_a_toml_file_start_from_its_folder(toml: Path) -> None:
    toml.write_text(TOML, encoding="utf-8")
    config = load_config(toml, environ={"CLAUDE": CANARY}).unwrap()
    assert list(config.models) == ["claude", "tiny", "absolute", "home"]
    assert config.models["claude"].price == Price(input=3, output="15.5", cache_read="0.30")
    assert config.models["claude"].capabilities == Capabilities(tools=True)
    assert [each.model_path for each in config.models.values()] == [
        None,
        str(toml.parent / "models/tiny.gguf"),
        "/models/tiny.gguf",
        str(Path.home() / "tiny.gguf"),
    ]
    assert config.routing.tasks == {"triage": ("local", "claude")}
    assert config.budgets == (BudgetConfig(name="daily", limit_usd=Decimal("0.1")),)
    assert load_config(str(toml), environ={"CLAUDE": CANARY}).unwrap() == config


def test_paths_in_a_mapping_start_from_the_working_directory() -> None:
    shape = {"models": {name: {"provider": "llama", "model_path": name} for name in ("a.gguf", "~no-such-user/a.gguf")}}
    config = load_config(shape, environ={}).unwrap()
    assert [each.model_path for each in config.models.values()] == ["a.gguf", "~no-such-user/a.gguf"]


def test_problems_of_a_toml_file_are_reported_under_its_name(toml: Path) -> None:
    toml.write_text("[models.a]\nprovider = 5\ntemperature = nan\ntimeout_ms = inf\n", encoding="utf-8")
    assert load_config(toml).failure() == ConfigurationError(
        message=f"{toml} has 3 problems:\n"
        "models.a.provider: must be a text, not int\n"
        "models.a.temperature: must be a finite number, not nan\n"
        "models.a.timeout_ms: must be a finite number, not inf"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[models.a]\napi_key = " + CANARY.encode(), "is not valid TOML: .*line 2, column 11"),
        (b"[models.a]\nprovider = 'a'\nprovider = 'b'\n", "is not valid TOML: .*line 3"),
        (b"\xff\xfe", "is not valid TOML: .*utf-8"),
        (b"a = " + b"9" * 5000, "is not valid TOML: .*limit"),
        (b"a = " + b"[" * 100_000, "is nested too deep"),
    ],
)
def test_an_invalid_toml_file_is_reported_with_the_line(toml: Path, content: bytes, message: str) -> None:
    toml.write_bytes(content)
    (line,) = problems(toml)
    assert line.startswith(f"{toml}: ")
    assert re.search(message, line)
    assert CANARY not in repr(load_config(toml))


def test_a_byte_order_mark_is_accepted(toml: Path) -> None:
    toml.write_text("[models.a]\nprovider = 'vllm'\n", encoding="utf-8-sig")
    assert list(load_config(toml).unwrap().models) == ["a"]


def test_an_unreadable_file_is_reported_by_name(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert problems(missing) == [f"{missing}: cannot be read (No such file or directory): give the path of a TOML file"]
    (line,) = problems(str(tmp_path))
    assert line.startswith(f"{tmp_path}: cannot be read (")
    cause = load_config(missing).failure().cause
    assert cause is not None
    assert cause.type == "FileNotFoundError"


@pytest.mark.parametrize("path", ["a\0b", "~a\0b/x.toml", "a\ud83db"])
def test_an_impossible_path_is_reported_as_a_path(path: str) -> None:
    (line,) = problems(path)
    assert line.startswith(f"{path}: is not a path (")
    assert line.endswith("): give the path of a TOML file")


def test_a_home_of_an_unknown_user_is_reported() -> None:
    (line,) = problems("~no-such-user/x.toml")
    remedy = "cannot be read (No such file or directory): give the path of a TOML file"
    assert line == f"~no-such-user/x.toml: {remedy}"


# The environment

EVERYTHING = {
    "LM_STUDIO_ENDPOINT": "http://127.0.0.1:9/v1",
    "LM_STUDIO_MODEL": "qwen",
    "LLAMA_MODEL_PATH": "~/tiny.gguf",
    "OPENAI_API_KEY": "sk-openai",
    "OPENAI_MODEL": "gpt-6-luna",
    "OPENAI_MAX_TOKENS": "500",
    "OPENAI_TEMPERATURE": "0.5",
    "OPENAI_BASE_URL": "https://proxy.example/v1",
    "CLAUDE_API_KEY": "sk-claude",
    "CLAUDE_MODEL": "claude-opus-5",
    "LLM_ROUTING_STRATEGY": "cost",
    "LLM_CACHE_ENABLED": "Off",
    "LLM_CACHE_TTL_SECONDS": "1.5",
    "LLM_CACHE_MAX_SIZE": "7",
    "LLM_CACHE_URL": "sqlite:///cache.db",
    "LLM_STORAGE_URL": "sqlite:///llm.db",
    "LLM_SERVE_KEY": "key-of-the-endpoint",
    "LLM_TRANSPORT": "httpx",
}
LM_STUDIO = ModelConfig(provider="lm-studio", endpoint="http://localhost:1234/v1")


def from_environment(environ: Mapping[str, str], embedded: Path | None = None) -> LLMConfig:
    """Load as ``load_config(environ=...)`` does, but with the given embedded model instead of the installed one."""
    return select_models(load_config(substitute_variables(TEMPLATE, environ)).unwrap(), embedded)


def test_an_empty_environment_loads_the_local_models_and_the_defaults() -> None:
    config = load_config(environ={}).unwrap()
    embedded = embedded_model()
    assert config.models["lm-studio"] == LM_STUDIO
    assert list(config.models) == ["lm-studio", *(["smollm2"] if embedded else [])]
    assert attrs.evolve(config, models={}) == LLMConfig(models={})
    assert all(model.api_key is None for model in config.models.values())


def test_every_variable_sets_its_field() -> None:
    assert load_config(environ=EVERYTHING).unwrap() == LLMConfig(
        models={
            "lm-studio": ModelConfig(provider="lm-studio", endpoint="http://127.0.0.1:9/v1", model="qwen"),
            "llama": ModelConfig(provider="llama", model_path=str(Path.home() / "tiny.gguf")),
            "gpt": ModelConfig(
                provider="openai",
                model="gpt-6-luna",
                api_key="sk-openai",
                max_tokens=500,
                temperature=0.5,
                endpoint="https://proxy.example/v1",
            ),
            "claude": ModelConfig(provider="anthropic", model="claude-opus-5", api_key="sk-claude"),
        },
        routing=RoutingConfig(strategy="cost"),
        cache=CacheConfig(enabled=False, ttl_seconds=1.5, max_size=7, url="sqlite:///cache.db"),
        storage=StorageConfig(url="sqlite:///llm.db"),
        serve=ServeConfig(keys={"default": "key-of-the-endpoint"}),
        transport="httpx",
    )


def test_models_are_in_the_order_of_the_template() -> None:
    assert list(from_environment(dict(reversed(EVERYTHING.items()))).models) == ["lm-studio", "llama", "gpt", "claude"]


def test_remote_models_have_default_names() -> None:
    config = from_environment({"OPENAI_API_KEY": "sk-a", "ANTHROPIC_API_KEY": "sk-b"})
    assert (config.models["gpt"].model, config.models["claude"].model) == ("gpt-6.1-terra", "claude-sonnet-5-5")
    assert config.models["claude"].api_key == Secret("sk-b")
    assert config.models["gpt"].endpoint is None


def test_the_first_of_two_names_wins_unless_it_is_empty() -> None:
    both = {"CLAUDE_API_KEY": "sk-a", "ANTHROPIC_API_KEY": "sk-b"}
    assert from_environment(both).models["claude"].api_key == Secret("sk-a")
    assert from_environment(both | {"CLAUDE_API_KEY": ""}).models["claude"].api_key == Secret("sk-b")


def test_empty_variables_count_as_unset() -> None:
    assert load_config(environ=dict.fromkeys(EVERYTHING, "")) == load_config(environ={})


def test_the_default_environment_is_that_of_the_process() -> None:
    assert load_config() == load_config(environ=dict(os.environ))


@pytest.mark.parametrize(
    ("variable", "text", "remedy"),
    [
        *(
            ("OPENAI_MAX_TOKENS", text, f"must be a whole number, not {text!r}")
            for text in ("abc", "1.5", " ", "1e3", "nan")
        ),
        ("OPENAI_MAX_TOKENS", "-1", "must be at least 1, not -1"),
        ("OPENAI_MAX_TOKENS", "0", "must be at least 1, not 0"),
        ("OPENAI_MAX_TOKENS", "9" * 5000, "must be a whole number"),
        ("OPENAI_TEMPERATURE", "hot", "must be a number, not 'hot'"),
        ("OPENAI_TEMPERATURE", "nan", "must be a finite number, not nan"),
        ("OPENAI_TEMPERATURE", "3", "must be at most 2, not 3.0"),
        ("LLM_CACHE_TTL_SECONDS", "1e999", "must be a finite number, not inf"),
        ("LLM_CACHE_TTL_SECONDS", "-1", "must be at least 0, not -1.0"),
        ("LLM_CACHE_MAX_SIZE", "0", "must be at least 1, not 0"),
        ("LLM_CACHE_ENABLED", "maybe", "must be one of true, 1, yes, on, false, 0, no, off, not 'maybe'"),
        ("LLM_ROUTING_STRATEGY", "fastest", "must be one of balanced, cost, performance, not 'fastest'"),
        ("LLM_TRANSPORT", "curl", "must be one of auto, httpx, fast, not 'curl'"),
        ("LLM_STORAGE_URL", " ", "must not be blank: give some text, or leave it out"),
        (
            "OPENAI_API_KEY",
            f"{CANARY}\n",
            "contains a space, a line break or a character outside ASCII: copy the key again",
        ),
        (
            "ANTHROPIC_API_KEY",
            "\udcff",
            "contains a space, a line break or a character outside ASCII: copy the key again",
        ),
        (
            "CLAUDE_API_KEY",
            "None",
            "is a placeholder: give the key itself, or leave it out for a server that needs none",
        ),
    ],
)
def test_an_invalid_variable_is_reported_with_its_remedy(variable: str, text: str, remedy: str) -> None:
    assert problems(environ={variable: text}) == [f"{variable}: {remedy}"]


def test_all_invalid_variables_are_reported_at_once() -> None:
    lines = problems(environ={"LLM_CACHE_MAX_SIZE": "x", "OPENAI_MAX_TOKENS": "y", "OPENAI_TEMPERATURE": "z"})
    assert [line.partition(":")[0] for line in lines] == [
        "OPENAI_MAX_TOKENS",
        "OPENAI_TEMPERATURE",
        "LLM_CACHE_MAX_SIZE",
    ]


BOOLEANS = {True: ("true", "1", "yes", "on"), False: ("false", "0", "no", "off")}


@pytest.mark.parametrize(("value", "word"), [(value, word) for value, words in BOOLEANS.items() for word in words])
@given(st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.differing_executors])
def test_a_boolean_may_be_spelled_in_any_case(value: bool, word: str, data: st.DataObject) -> None:
    spelled = "".join(data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in word)
    assert from_environment({"LLM_CACHE_ENABLED": spelled}).cache.enabled is value


# The embedded model


def finder(folder: Path) -> Any:
    def find(name: str) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(folder)])

    return find


def test_an_installed_model_is_found_without_importing_it(tmp_path: Path) -> None:
    package = tmp_path / "toy_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    assert embedded_model("toy_model", finder(tmp_path)) is None
    (package / "b.gguf").touch()
    (package / "a.gguf").touch()
    assert embedded_model("toy_model", finder(tmp_path)) == package / "a.gguf"
    assert "toy_model" not in sys.modules


def test_a_module_that_is_not_a_package_has_no_model(tmp_path: Path) -> None:
    (tmp_path / "toy_module.py").touch()
    assert embedded_model("toy_module", finder(tmp_path)) is None
    assert embedded_model("not_there_at_all", finder(tmp_path)) is None


def test_the_embedded_model_is_the_last_resort() -> None:
    config = from_environment({"OPENAI_API_KEY": "sk-a"}, Path("/packages/tiny.gguf"))
    assert list(config.models) == ["lm-studio", "gpt", "smollm2"]
    assert config.models["smollm2"] == ModelConfig(
        provider="llama",
        model_path=str(Path("/packages/tiny.gguf")),
        last_resort=True,
        capabilities=Capabilities(tools=False),
    )


def test_a_configured_llama_model_replaces_the_embedded_one() -> None:
    config = from_environment({"LLAMA_MODEL_PATH": "/mine.gguf"}, Path("/packages/tiny.gguf"))
    assert list(config.models) == ["lm-studio", "llama"]
    assert config.models["llama"].last_resort is False


# Several keys.


def test_a_document_may_list_several_keys() -> None:
    keys = {"models": {"gpt": {"provider": "openai-chat", "model": "m", "api_keys": ["env:FIRST", "sk-second"]}}}
    config = load_config(keys, environ={"FIRST": "sk-first"}).unwrap()
    assert {name: model.api_key for name, model in config.models.items()} == {
        "gpt#1": Secret("sk-first"),
        "gpt#2": Secret("sk-second"),
    }


def test_a_key_beside_several_is_a_problem_with_its_place() -> None:
    keys = {"provider": "openai-chat", "model": "m", "api_key": "sk-first", "api_keys": ["sk-second"]}
    [problem] = problems({"models": {"gpt": keys}}, environ={})
    assert problem == "models.gpt.api_keys: use api_key for one key or api_keys for several, not both"
