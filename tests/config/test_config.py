"""The classes of the configuration: validation, immutability, and keys that never show."""

import copy
import pickle
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.config import LLMConfig
from llm_effects.config.models import Capabilities, ModelConfig, Price
from llm_effects.config.routing import RoutingConfig
from llm_effects.config.services import BudgetConfig, CacheConfig, StorageConfig, TelemetryConfig
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import InvalidValue

CANARY = "canary-7f3a91"
CONFIG = LLMConfig(
    models={
        "claude": ModelConfig(provider="anthropic", api_key=CANARY, headers={"x-team": CANARY}),
        "proxied": ModelConfig(provider="openai-compatible", endpoint=f"https://me:{CANARY}@example.org/v1"),
    },
    storage=StorageConfig(url=f"postgresql://me:{CANARY}@db/llm"),
    cache=CacheConfig(url=f"postgresql://db/llm?user=me&password={CANARY}&sslmode=require"),
)


@pytest.mark.parametrize("keys", [{"api_key": "env:THE_KEY"}, {"api_keys": ["sk-1", "env:THE_KEY"]}])
def test_the_name_of_a_variable_in_code_is_rejected_and_not_sent_as_the_key(keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=r'^api_keys?: only load_config reads .*: write os.environ\["THE_KEY"\]$'):
        ModelConfig(provider="groq", **keys)
    with pytest.raises(InvalidValue, match=r'environ\["NAME"\]$'):
        ModelConfig(provider="groq", api_key=f"env:{CANARY}")  # which may be a key by mistake


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StorageConfig("sqlite:///a.db"), "not str alone: write StorageConfig(url="),  # type: ignore[misc]
        (lambda: CacheConfig(ttl=5), "has no argument 'ttl': write ttl_seconds="),  # type: ignore[call-arg]
        (lambda: BudgetConfig(name="a", limit=5), "has no argument 'limit': write limit_usd="),  # type: ignore[call-arg]
        (lambda: BudgetConfig(name="a", tenant="b"), "has no argument 'tenant': write scope="),  # type: ignore[call-arg]
        (lambda: BudgetConfig(name="a"), "needs limit_usd: write BudgetConfig("),  # type: ignore[call-arg]
    ],
)
def test_a_wrong_argument_of_a_service_names_the_right_one(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def test_no_rendering_of_a_configuration_shows_a_key() -> None:
    shown = [repr(CONFIG), str(CONFIG), f"{CONFIG}", repr(copy.deepcopy(CONFIG)), repr(CONFIG.models["claude"])]
    models = attrs.asdict(CONFIG.models["claude"], recurse=True)
    shown += [
        repr(models),
        repr(attrs.astuple(CONFIG.models["claude"])),
        repr(attrs.asdict(CONFIG)["models"]["claude"]),
    ]
    assert [each for each in shown if CANARY in each] == []


def test_a_url_is_shown_without_its_password() -> None:
    assert "'postgresql://***@db/llm'" in repr(CONFIG.storage)
    assert "'postgresql://db/llm?user=me&password=***&sslmode=require'" in repr(CONFIG.cache)
    assert "'sqlite:///data/llm.db'" in repr(StorageConfig(url="sqlite:///data/llm.db"))
    assert isinstance(CONFIG.storage.url, Secret)
    assert CONFIG.storage.url.reveal().endswith(f"{CANARY}@db/llm")


def test_keys_and_headers_are_secrets_with_the_original_text() -> None:
    claude = CONFIG.models["claude"]
    assert claude.api_key == Secret(CANARY)
    assert claude.headers == (("x-team", Secret(CANARY)),)
    assert copy.deepcopy(CONFIG) == CONFIG


def test_a_configuration_with_a_key_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="load the configuration again") as caught:
        pickle.dumps(CONFIG)
    assert CANARY not in str(caught.value)


def test_a_model_config_is_hashable() -> None:
    assert {CONFIG.models["claude"]: 1}[copy.deepcopy(CONFIG).models["claude"]] == 1


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "sk-a\n",
        "sk a",
        "sk-\u00e4",
        "sk-\u200b1",
        "None",
        "null",
        "<your key>",
        "your-api-key",
        "YOUR_OPENAI_KEY_HERE",
        "sk-...",
        "${OPENAI_API_KEY}",
        "$KEY",
        "{{ key }}",
        "changeme",
        "change-me",
    ],
)
def test_an_impossible_key_is_rejected_without_showing_it(key: str) -> None:
    with pytest.raises(InvalidValue, match=r"^api_key: (must not|contains|is a)") as caught:
        ModelConfig(provider="anthropic", api_key=key)
    assert not key.strip() or key not in str(caught.value)


@given(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=20, max_size=120))
def test_a_possible_key_is_accepted(body: str) -> None:
    model = ModelConfig(provider="anthropic", api_key=f"sk-{body}")
    assert model.api_key is not None
    assert model.api_key.reveal() == f"sk-{body}"
    assert body not in repr(model)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x team": "a"}, "'x team' is not a valid header name"),
        ({"": "a"}, "'' is not a valid header name"),
        ({"x-a\r\nx-b": "a"}, "is not a valid header name"),
        ({"x-team": f"{CANARY}\r\nx-admin: 1"}, "x-team contains a line break"),
        ({"x-team": 5}, "x-team must be a text or a Secret, not int"),
        ({"x team": "a", "x-b": f"{CANARY}\n"}, "'x team' is not a valid .*; x-b contains a line break"),
    ],
)
def test_an_invalid_header_is_rejected_without_showing_its_value(headers: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^headers: .*{message}") as caught:
        ModelConfig(provider="vllm", headers=headers)
    assert CANARY not in str(caught.value)


LIMITS = ["max_tokens", "context_length", "threads", "slots"]
TIMES = ["timeout_ms", "connect_ms", "first_content_ms", "between_content_ms"]


@pytest.mark.parametrize("field", [*LIMITS, *TIMES])
@pytest.mark.parametrize(
    "value", [0, -1, True, "5", float("nan"), float("inf"), 10**400, pytest.param(-(10**5000), id="huge")]
)
def test_limits_and_times_must_be_positive_numbers(field: str, value: object) -> None:
    with pytest.raises(InvalidValue, match=f"^{field}: must be "):
        ModelConfig(provider="vllm", **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(provider=" "), "provider: must not be blank"),
        (lambda: ModelConfig(provider="x", api_key=5), "api_key: must be a text or a Secret, not int"),
        (lambda: ModelConfig(provider="x", temperature=2.5), "temperature: must be at most 2, not 2.5"),
        (lambda: ModelConfig(provider="x", wire_version="2020-01-01"), "wire_version: must be one of 2023-06-01, "),
        (lambda: Capabilities(context_length=0), "context_length: must be at least 1, not 0"),
        (
            lambda: RoutingConfig(strategy="random"),
            "strategy: must be one of balanced, cost, performance, not 'random'",
        ),
        (lambda: RoutingConfig(max_retries=-1), "max_retries: must be at least 0, not -1"),
        (
            lambda: RoutingConfig(tasks={"triage": "claude"}),
            "tasks.triage: must be several values, not the single text",
        ),
        (lambda: RoutingConfig(tasks={"triage": 5}), "tasks.triage: must be several values, not int"),
        (lambda: RoutingConfig(tasks={"triage": ["a", 5]}), r"tasks\.triage\[1\]: must be str, not int"),
        (lambda: RoutingConfig(tasks=[]), "tasks: must be a table, not list"),
        (lambda: RoutingConfig(tasks={5: []}), "tasks: each key must be a text, not int"),
        (lambda: RoutingConfig(fallback_order=5), "fallback_order: must be several values, not int"),
        (lambda: RoutingConfig(max_retries=None), "max_retries: must be a whole number, not None"),
        (lambda: ModelConfig(provider=None), "provider: must be a text, not NoneType"),
        (lambda: ModelConfig(provider="x", headers=5), "headers: must be a table, not int"),
        (lambda: ModelConfig(provider="x", headers=("a",)), r"headers\[0\]: must be a pair of a name and a value"),
        (lambda: ModelConfig(provider="x", headers={5: "a"}), "headers: each key must be a text, not int"),
        (lambda: ModelConfig(provider="x", capabilities={}), "capabilities: must be Capabilities, not dict"),
        (lambda: ModelConfig(provider="x", price=5), "price: must be Price, not int"),
        (lambda: ModelConfig(provider="x", last_resort="no"), "last_resort: must be bool, not str"),
        (lambda: Capabilities(tools="no"), "tools: must be bool, not str"),
        (lambda: CacheConfig(enabled="no"), "enabled: must be bool, not str"),
        (lambda: TelemetryConfig(bodies=0), "bodies: must be bool, not int"),
        (lambda: Price(input=10**5000, output=1), "input: must be an amount of US dollars"),
        (lambda: Price(input=None, output=1), "input: must be an amount of US dollars"),
        (lambda: Price(input="1e999999", output=1), r"input: .* not 1e\+999999$"),
        (lambda: LLMConfig(models=[]), "models: must be a table, not list"),
        (lambda: LLMConfig(models={5: ModelConfig(provider="x")}), "models: each key must be a text, not int"),
        (lambda: LLMConfig(models={}, routing={"max_retries": 0}), "routing: must be RoutingConfig, not dict"),
        (lambda: LLMConfig(models={}, cache=None), "cache: must be CacheConfig, not NoneType"),
        (lambda: LLMConfig(models={}, storage="memory://"), "storage: must be StorageConfig, not str"),
        (lambda: LLMConfig(models={}, telemetry=True), "telemetry: must be TelemetryConfig, not bool"),
        (lambda: LLMConfig(models={}, budgets=5), "budgets: must be several values, not int"),
        (lambda: CacheConfig(max_size=0), "max_size: must be at least 1, not 0"),
        (lambda: CacheConfig(ttl_seconds=-1), "ttl_seconds: must be at least 0, not -1"),
        (lambda: StorageConfig(url=""), "url: must not be blank"),
        (lambda: Price(input="cheap", output=1), "input: must be an amount of US dollars such as 0.15"),
        (lambda: Price(input=1, output=-1), "output: must be an amount of US dollars such as 0.15, 0 or more, not -1"),
        (lambda: Price(input=1, output=1, cache_read="inf"), "cache_read: must be an amount of US dollars"),
        (lambda: BudgetConfig(name="a", limit_usd=-1), "limit_usd: must be an amount of US dollars"),
        (lambda: BudgetConfig(name="a", limit_usd=1, period="year"), "period: must be one of hour, day, month"),
        (lambda: LLMConfig(models={"": ModelConfig(provider="x")}), "models: each model needs a name"),
        (lambda: LLMConfig(models={"a": "b"}), "models.a: must be ModelConfig, not str"),
        (lambda: LLMConfig(models={}, budgets=["a"]), r"budgets\[0\]: must be BudgetConfig, not str"),
    ],
)
def test_an_invalid_value_names_the_field_and_the_remedy(make: object, message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{message}"):
        make()  # type: ignore[operator]


@given(st.decimals(min_value=0, max_value=10**6, places=4))
def test_amounts_keep_their_written_digits(amount: Decimal) -> None:
    assert Price(input=amount, output=str(amount)) == Price(input=str(amount), output=amount)
    assert Price(input=0.1, output=1).input == Decimal("0.1")


def test_an_order_may_name_only_models_and_families() -> None:
    models = {"studio": ModelConfig(provider="lm-studio"), "my gpt": ModelConfig(provider="openai")}
    fine = RoutingConfig(fallback_order=("my gpt", "local", "gpt", "claude", "other"), tasks={"triage": ["studio"]})
    assert LLMConfig(models=models, routing=fine).routing == fine
    names = ["studio", "my gpt", "local", "gpt", "claude", "other"]
    with pytest.raises(InvalidValue) as caught:
        LLMConfig(models=models, routing=RoutingConfig(fallback_order=["x"], tasks={"my own": ["gpt", "cluade"]}))
    assert str(caught.value).splitlines() == [
        "routing.tasks.\"my own\"[1]: 'cluade' is not a configured model or a family: did you mean claude?",
        "routing.fallback_order[0]: 'x' is not a configured model or a family: the names are " + ", ".join(names),
    ]


def test_tables_are_copied() -> None:
    models = {"a": ModelConfig(provider="vllm"), "b": ModelConfig(provider="vllm")}
    tasks = {"triage": ["a", "b"]}
    config = LLMConfig(models=models, routing=RoutingConfig(tasks=tasks))
    models.clear()
    tasks["triage"].clear()
    assert list(config.models) == ["a", "b"]
    assert config.routing.tasks == {"triage": ("a", "b")}


@pytest.mark.parametrize(
    "value",
    [CONFIG, CONFIG.models["claude"], CONFIG.cache, CONFIG.storage, CONFIG.routing, Capabilities(), TelemetryConfig()],
)
def test_every_value_is_frozen(value: attrs.AttrsInstance) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, None)
