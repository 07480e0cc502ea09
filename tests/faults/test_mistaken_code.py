"""What the first mistakes of a newcomer say: at run time, and where an effect is dropped."""

import gc
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from returns.future import FutureResult
from returns.result import Failure, Success

import llm_effects
from llm_effects import (
    LLMConfig,
    LLMRequest,
    ModelConfig,
    RateLimitExceeded,
    RequestTimeout,
    describe,
    fallback,
    generate,
    race,
    rescue,
    run,
    run_sync,
    scripted_env,
    succeed,
)
from llm_effects.config import RoutingConfig
from llm_effects.values.extras import install_command
from tests.fixtures.house import ROOT, run_python
from tests.fixtures.mistakes import ALL, MISTAKES, SETTINGS, Mistake, perform, section

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="Why?")
NEVER_RUN = "effect '{}' was never run: run it with `await run(effect, env)` or `await manager.run(effect)`"


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("mistake", ALL, ids=lambda each: each.code)
async def test_a_mistake_says_what_was_passed_and_the_remedy(mistake: Mistake) -> None:
    with pytest.raises(mistake.error) as raised:
        await perform(mistake.code)
    assert str(raised.value) == mistake.message
    gc.collect()


def test_the_guide_lists_every_mistake_with_its_message() -> None:
    page = (ROOT / "docs/guides/first-mistakes.md").read_text(encoding="utf-8")
    for heading, rows in MISTAKES.items():
        shown = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert shown.strip("\n").splitlines() == section(rows)


def test_the_guide_shows_the_settings_of_type_checkers_and_the_warnings() -> None:
    page = (ROOT / "docs/guides/first-mistakes.md").read_text(encoding="utf-8")
    for lines in SETTINGS.values():
        assert "".join(f"    {line}\n" for line in lines.splitlines()) in page
    assert NEVER_RUN.format("generate") in page
    assert install_command("sql") in page or "pip install -e" in install_command("sql")


def test_containers_of_other_values_answer_as_before() -> None:
    for container, kind in ((Success(1), "Success"), (Failure("late"), "Failure")):
        with pytest.raises(AttributeError, match=f"^'{kind}' object has no attribute 'content'$"):
            container.content  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(FutureResult, "unwrap")


# An effect that is dropped.


def warnings_of(statement: str) -> list[str]:
    names = {"ASK": ASK, **{name: getattr(llm_effects, name) for name in llm_effects.__all__}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(f"def main():\n    {statement}\nmain()", "mistake.py", "exec"), names)
        gc.collect()
    assert all((each.category, each.filename, each.lineno) == (RuntimeWarning, "mistake.py", 2) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("statement", "operation"),
    [
        ("generate(ASK)", "generate"),
        ("generate('Why?')", "generate"),
        ("stream(ASK, print)", "stream"),
        ("usage_report()", "usage_report"),
        ("generate(ASK).map(str)", "generate"),
        ("then(generate(ASK), lambda _: generate(ASK))", "then"),
        ("[generate(ASK), generate(ASK)]", "generate"),
        ("if True: generate(ASK)", "generate"),
    ],
)
def test_an_effect_that_is_a_statement_is_a_warning_that_names_its_operation(statement: str, operation: str) -> None:
    assert warnings_of(statement) == [NEVER_RUN.format(operation)]


@pytest.mark.parametrize(
    "statement", ["kept = generate(ASK)", "a, b = generate(ASK), 1; a = 2", "len([generate(ASK)])"]
)
def test_an_effect_that_is_kept_or_passed_on_is_no_warning(statement: str) -> None:
    assert warnings_of(statement) == []


async def test_composed_stored_and_repeated_effects_are_no_warning() -> None:
    env = scripted_env(lambda _: "Because.")
    await run(fallback(generate(ASK), generate(ASK)), env)
    await run(rescue(generate(ASK), lambda _: generate(ASK)), env)
    await run(race(generate(ASK), generate(ASK)), env)
    await generate(ASK)(env)
    stored = [generate(ASK), generate(ASK), generate(ASK)]
    await run(stored[0], env)
    await run(stored[0], env)
    stored.pop(0)
    stored.clear()
    gc.collect()


def test_a_dropped_effect_in_a_blocking_script_is_no_warning_once_it_ran() -> None:
    run_sync(generate(ASK), scripted_env("Because."))
    run_sync(succeed(1), scripted_env())
    gc.collect()


def test_a_future_that_was_not_awaited_is_a_warning_that_names_its_operation() -> None:
    with pytest.warns(RuntimeWarning, match="^coroutine 'generate' was never awaited$"):
        generate(ASK)(scripted_env())


def test_a_coroutine_that_was_not_awaited_is_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="^coroutine 'run' was never awaited$"):
        run(generate(ASK), scripted_env(RateLimitExceeded()))  # type: ignore[unused-coroutine]


def test_the_end_of_the_interpreter_is_no_warning() -> None:
    program = "from llm_effects import generate, LLMRequest\nkept = [generate(LLMRequest(prompt='x'))]"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""


# Missing extras.


@pytest.mark.parametrize("extra", ["cli", "local", "otel", "prices", "redis", "sql"])
def test_the_command_for_an_extra_works_in_a_checkout_and_elsewhere(
    extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Distribution:
        def __init__(self, origin: str | None) -> None:
            self.origin = origin

        def read_text(self, _: str) -> str | None:
            return self.origin

    published, checkout = f"pip install 'llm-effects[{extra}]'", f"'/home/me/my code[{extra}]'"
    origins = {
        None: published,
        '{"url": "https://files.example/a.whl"}': published,
        '{"url": "file:///home/me/my%20code", "dir_info": {"editable": true}}': f"pip install -e {checkout}",
        '{"url": "file:///home/me/my%20code", "dir_info": {}}': f"pip install {checkout}",
        '{"url": "file:///home/me/a.whl", "archive_info": {}}': f"pip install '/home/me/a.whl[{extra}]'",
    }
    for origin, command in origins.items():
        install_command.cache_clear()
        monkeypatch.setattr("importlib.metadata.distribution", lambda _, origin=origin: Distribution(origin))
        assert install_command(extra) == command
    install_command.cache_clear()


@pytest.mark.parametrize(
    ("blocked", "program", "command"),
    [
        ("opentelemetry", "from llm_effects.telemetry.otel import open_telemetry", "otel"),
        ("sqlalchemy", "raise_of(StorageConfig(url='postgresql://h/d'))", "sql"),
        ("psycopg", "raise_of(StorageConfig(url='postgresql://h/d'))", "sql"),
    ],
)
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(
    blocked: str, program: str, command: str
) -> None:
    shown = run_python(
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "from llm_effects.config import StorageConfig\n"
        "from llm_effects.stores.open import open_storage\n"
        "def raise_of(config): raise ModuleNotFoundError(open_storage(config, None).failure().message)\n"
        f"try: {program}\nexcept ModuleNotFoundError as error: print(error)"
    )
    assert shown.strip().endswith(f"is not installed: {install_command(command)}")


async def test_a_time_out_of_an_attempt_names_the_model_and_where_the_time_went() -> None:
    too_late = RequestTimeout(timeout_ms=5.0, phase="first_content")

    model = ModelConfig(provider="lm-studio")
    env = scripted_env(too_late, config=LLMConfig(models={"scripted": model}, routing=RoutingConfig(max_retries=0)))
    sentence = describe((await run(generate(ASK), env)).failure())
    assert sentence.startswith("TimeoutError (scripted): first_content timed out after 5 ms: ")
    assert re.search(r"ask scripted \d+ ms", sentence)
