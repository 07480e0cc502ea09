"""Rows of a dataset: requests, answers, keys and columns, without Ray; and whole jobs, where Ray is installed."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
import pytest
from attrs import evolve
from returns.result import Failure, Success

from llm_effects import (
    ContentRefused,
    Cost,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMFailure,
    LLMRequest,
    ModelConfig,
    run,
    scripted_env,
)
from llm_effects.config import BudgetConfig, StorageConfig
from llm_effects.plain import datasets
from llm_effects.plain.datasets import (
    COLUMNS,
    answer_all,
    ask,
    check_columns,
    check_job,
    generate_dataset,
    result_row,
)
from llm_effects.values.errors import Cause
from tests.fixtures.house import MODULES, PACKAGE, ROOT
from tests.fixtures.postgres_server import Postgres, postgres_server
from tests.fixtures.ray_programs import RAY, WITHOUT_RAY, ray_program
from tests.fixtures.redis_server import redis_server

__all__ = ["postgres_server", "redis_server"]


def text(row: dict[str, Any]) -> str:
    return str(row["text"])


def key_of(row: dict[str, Any], key: str | None = None) -> str:
    return ask(row, text, key).key


def test_a_row_keeps_its_key_while_its_request_stays_the_same() -> None:
    assert key_of({"id": 1, "text": "why?"}) == key_of({"id": 2, "text": "why?"})
    assert key_of({"id": 1, "text": "why?"}) != key_of({"id": 1, "text": "how?"})


def test_a_column_distinguishes_rows_whose_requests_are_equal() -> None:
    assert key_of({"id": 1, "text": "why?"}, "id") != key_of({"id": 2, "text": "why?"}, "id")
    assert key_of({"id": 1, "text": "why?"}, "id") == key_of({"id": 1, "text": "why?"}, "id")


def raises(_: object) -> NoReturn:
    secret = os.environ["HOUSE_API_KEY"]
    msg = f"refused for {secret}"
    raise RuntimeError(msg)


def test_fault_263_whatever_a_row_raises_is_a_value_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_API_KEY", "k9-12345678")
    asked = ask({"id": 1}, raises, None)
    cause = asked.request.failure()
    assert isinstance(cause, Cause)
    assert cause.message.startswith("refused for *** (test_datasets.py, line ")
    row = result_row(asked.key, asked.request)  # type: ignore[arg-type]
    assert (row["llm_error"], row["llm_text"], row["llm_cost_usd"]) == ("RuntimeError", None, "0")
    assert "k9-12345678" not in str(row)


def test_fault_263_an_invalid_request_is_an_error_of_its_row() -> None:
    assert isinstance(ask({"text": " "}, text, None).request.failure(), InvalidRequest)
    assert isinstance(ask({}, lambda _: LLMRequest(prompt=""), None).request.failure(), InvalidRequest)
    assert not isinstance(ask({}, lambda _: {"prompt": "why?"}, None).request, Success)  # type: ignore[arg-type,return-value]


async def test_fault_263_a_row_that_fails_costs_the_others_nothing(anyio_backend: str) -> None:
    env = scripted_env("one", ContentRefused(), "three")
    requests = [ask({"text": f"{number}?"}, text, None).request for number in range(3)]
    broken = Failure(Cause("KeyError", "'text'"))
    answered = (await run(answer_all([broken, *requests], anyio.CapacityLimiter(1)), env)).unwrap()
    rows = [result_row("k", each) for each in answered]
    assert [row["llm_text"] for row in rows] == [None, "one", None, "three"]
    assert [row["llm_error"] for row in rows] == ["KeyError", None, "ContentRefused", None]


async def test_fault_263_a_defect_of_the_pipeline_costs_its_row(anyio_backend: str) -> None:
    def now() -> NoReturn:
        msg = "a defect"
        raise RuntimeError(msg)

    env = evolve(scripted_env("one"), now=now)
    [outcome] = (await run(answer_all([Success(LLMRequest(prompt="why?"))], anyio.CapacityLimiter(1)), env)).unwrap()
    assert (result_row("k", outcome)["llm_error"], result_row("k", outcome)["llm_text"]) == ("RuntimeError", None)


async def test_blocks_of_one_actor_share_its_slots(anyio_backend: str) -> None:
    asked = [Success(LLMRequest(prompt=f"{number}?")) for number in range(8)]
    slots, most = anyio.CapacityLimiter(3), 0
    env = scripted_env("yes")

    def now() -> object:
        nonlocal most
        most = max(most, int(slots.borrowed_tokens))
        return env.now()

    watched = evolve(env, now=now)  # type: ignore[arg-type]
    async with anyio.create_task_group() as blocks:
        for _ in range(2):
            blocks.start_soon(run, answer_all(asked, slots), watched)
    assert most == 3


def test_an_answer_has_every_column_and_its_cost_as_a_decimal() -> None:
    env = scripted_env("Because.")
    [outcome] = anyio.run(run, answer_all([Success(LLMRequest(prompt="?"))], anyio.CapacityLimiter(1)), env).unwrap()
    row = result_row("k", outcome)
    assert set(row) == set(COLUMNS)
    assert (row["llm_key"], row["llm_text"], row["llm_model"]) == ("k", "Because.", "scripted")
    assert (row["llm_finish_reason"], row["llm_cached"], row["llm_error"]) == ("stop", False, None)


def test_a_cost_is_exact_and_an_unknown_one_is_missing() -> None:
    [outcome] = anyio.run(
        run, answer_all([Success(LLMRequest(prompt="?"))], anyio.CapacityLimiter(1)), scripted_env("Yes.")
    ).unwrap()
    tiny = result_row("k", outcome.map(lambda answer: evolve(answer, cost=Cost(Decimal("1E-7")))))
    unknown = result_row("k", outcome.map(lambda answer: evolve(answer, cost=Cost.UNKNOWN)))
    assert (tiny["llm_cost_usd"], unknown["llm_cost_usd"]) == ("0.0000001", None)


def test_half_a_character_cannot_break_a_block() -> None:
    row = result_row("k", Failure(Cause("ValueError", "\ud83d")))
    assert row["llm_message"].encode()


def test_columns_that_clash_or_are_missing_end_the_job_with_their_names() -> None:
    with pytest.raises(ValueError, match="rename llm_key, llm_text"):
        check_columns(["id", "llm_text", "llm_key"], None)
    with pytest.raises(ValueError, match="there is no column 'id', only text"):
        check_columns(["text"], "id")
    check_columns(["id", "text"], "id")


async def test_a_job_without_a_model_ends_before_its_first_row(anyio_backend: str) -> None:
    empty = evolve(scripted_env("never"), config=LLMConfig(models={}))
    assert (await run(check_job(1), empty)).failure().tag == "ConfigurationError"
    assert (await run(check_job(1), scripted_env("yes"))).unwrap() is None


async def test_actors_that_do_not_share_a_budget_are_refused(anyio_backend: str) -> None:
    budgets = (BudgetConfig(name="house", limit_usd="1"),)
    models = {"scripted": ModelConfig(provider="openai-compatible", model="m", endpoint="http://127.0.0.1:9/v1")}
    alone = evolve(scripted_env("yes"), config=LLMConfig(models=models, budgets=budgets))
    assert (await run(check_job(1), alone)).unwrap() is None
    assert "each of 4 actors would spend them" in (await run(check_job(4), alone)).failure().message
    storage = StorageConfig(url="sqlite:///house.db")
    shared = evolve(alone, config=evolve(alone.config, storage=storage))
    assert (await run(check_job(4), shared)).unwrap() is None


class Table:
    """As much of a table of Arrow as an actor uses."""

    def __init__(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.rows, self.column_names = rows, columns

    def to_pylist(self) -> list[dict[str, Any]]:
        return self.rows

    def take(self, numbers: list[int]) -> "Table":
        return Table([self.rows[number] for number in numbers], self.column_names)

    def append_column(self, name: str, values: list[object]) -> "Table":
        rows = [{**row, name: value} for row, value in zip(self.rows, values, strict=True)]
        return Table(rows, [*self.column_names, name])


def fake_library(name: str) -> Any:
    parts: dict[str, Any] = {
        "ray.cloudpickle": pickle,
        "ray": SimpleNamespace(get=lambda value: value),
        "pyarrow": SimpleNamespace(array=lambda values, **_: values),
    }
    return parts[name]


def yes() -> LLMEnv:
    return scripted_env("yes")


def test_fault_264_rows_that_are_answered_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_library", fake_library)
    rows = [{"id": number, "text": f"{number}?"} for number in range(5)]
    done = sorted(key_of(rows[number], "id").encode() for number in (1, 2))
    actor = datasets.GenerateRows(datasets._pickled(datasets._Job(text, yes, "id", 1, 2)), done)
    table = actor(Table(rows, ["id", "text"]))
    assert [(row["id"], row["llm_text"]) for row in table.rows] == [(0, "yes"), (3, "yes"), (4, "yes")]
    assert table.column_names == ["id", "text", *COLUMNS]
    changed = [{"id": 1, "text": "how?"}]
    assert len(actor(Table(changed, ["id", "text"])).rows) == 1
    actor.__del__()
    with pytest.raises(LLMFailure, match="closed"):
        actor(Table(changed, ["id", "text"]))


def test_fault_265_a_configuration_is_refused_and_cannot_be_pickled() -> None:
    config = LLMConfig(models={"gpt": ModelConfig(provider="openai-chat", model="m", api_key="k9-12345678")})
    with pytest.raises(TypeError, match="load must be a function"):
        generate_dataset([], text, load=config)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(config)


def test_fault_265_a_function_that_holds_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_library", lambda _: pickle)
    monkeypatch.setenv("HOUSE_API_KEY", "k9-12345678")
    pickled = datasets._pickled
    job = datasets._Job(text, dict, None, 1, 1)
    assert pickled(job)
    with pytest.raises(TypeError, match="read it inside of load"):
        pickled(evolve(job, key="k9-12345678"))


@pytest.mark.skipif(sys.executable == RAY, reason="Ray is installed")
def test_without_ray_the_error_names_the_command() -> None:
    with pytest.raises(LLMFailure, match=r"needs ray: pip install .*\[ray\]"):
        generate_dataset([], text)


def test_only_this_module_imports_ray_and_only_on_use() -> None:
    with_ray = [str(path.relative_to(PACKAGE)) for path in MODULES if '"ray' in path.read_text(encoding="utf-8")]
    assert with_ray == ["plain/datasets.py"]
    loaded = "import sys, llm_effects.plain.datasets; print({'ray', 'numpy', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
    unused = "import sys, llm_effects.plain; print('llm_effects.plain.datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", unused], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_fault_263_264_265_jobs_on_ray(tmp_path: Path) -> None:
    ray_program("-m", "tests.fixtures.ray_jobs", str(tmp_path))


def test_the_blocks_of_the_guide_run_on_ray(tmp_path: Path) -> None:
    ray_program("-m", "tests.fixtures.ray_jobs", str(tmp_path), "guide")


@pytest.fixture
def run_on_ray(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that runs a job of actors that share a real Redis and a real Postgres."""
    if RAY is None:
        pytest.skip(WITHOUT_RAY)
    redis: str = request.getfixturevalue("redis_server")
    postgres: Postgres = request.getfixturevalue("postgres_server")

    def run(job: str) -> None:
        said = ray_program("-m", "tests.fixtures.ray_fleet", str(tmp_path), redis, postgres.new_url(), job)
        print(said)  # figures for the guide
        assert f"{job}: " in said

    return run


def test_fault_293_actors_on_ray_keep_one_limit_and_ask_duplicates_once(run_on_ray: Callable[[str], None]) -> None:
    run_on_ray("actors_keep_one_limit_and_ask_duplicates_once")


def test_fault_294_actors_on_ray_spend_one_budget(run_on_ray: Callable[[str], None]) -> None:
    run_on_ray("actors_spend_one_budget")


def test_fault_295_when_an_actor_on_ray_is_killed_others_resume(run_on_ray: Callable[[str], None]) -> None:
    run_on_ray("a_killed_actor_resumes")
