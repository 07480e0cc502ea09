"""The public names: a locked list, each documented, each the one that type checkers see."""

import ast
import inspect
import pydoc
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import attrs
import pytest

import llm_effects
from tests.fixtures.house import MODULES, PACKAGE, Function, is_text, run_python, tree_of

# A change of this list is a change of the public API: say so in docs/changelog.md.
NAMES = """
Allow AsyncLLM Attempt AuthenticationFailed BudgetExceeded CachePolicy Completed ConfigurationError ContentRefused
ContextTooLarge ConversationConflict Cost Document Effect Failed FinishReason Image InvalidRequest LLM LLMConfig LLMEnv
LLMError LLMFailure LLMManager LLMRequest LLMResponse MalformedResponse Message ModelConfig ModelUnavailable
NetworkError Preferences RateLimitExceeded Reasoning ReasoningDelta Recovery RequestFailed RequestTimeout Restarted
SchemaMismatch Started StorageFailed StreamEvent TaskType Text TextDelta ToolCall ToolCallDelta ToolResult Toolkit
Usage check_health check_local_model_health converse create_default_llm_manager create_default_local_client describe
effect embed explain exponential fail fallback from_env from_result gather generate generate_as generate_many hedge
is_retryable jittered list_conversations load_config load_conversation make_llm_manager make_model_router open_converse
open_env open_stream race rescue retry run run_sync run_tools scripted_env start_conversation stream succeed then
timeout tool toolkit up_to usage_report using within
"""
PUBLIC = NAMES.split()


def documented_names(module: Path) -> Iterator[str]:
    """Yield each top-level name that has a docstring, or a text right below its value."""
    body = tree_of(module).body
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.ClassDef | Function) and ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text(below):
            yield node.target.id


def test_the_public_names_are_these() -> None:
    assert sorted(llm_effects.__all__) == PUBLIC


def test_public_names_are_what_dir_shows() -> None:
    shown = run_python("import llm_effects; print(*(name for name in dir(llm_effects) if name[0] != '_'))")
    assert sorted(shown.split()) == PUBLIC


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    imports = [node for node in ast.walk(tree_of(PACKAGE / "__init__.py")) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names if "llm_effects" in str(node.module)}
    assert sorted(seen) == PUBLIC
    assert all(getattr(llm_effects, name) is getattr(import_module(str(home)), name) for name, home in seen.items())


def test_every_public_name_is_documented() -> None:
    documented = {name for module in MODULES for name in documented_names(module)}
    assert set(PUBLIC) - documented == set()


def test_the_environment_has_these_services_and_no_others() -> None:
    services = (
        "background cache clients config conversations draw health ledger limits new_id now prices redact telemetry "
        "tokens"
    )
    assert sorted(each.name for each in attrs.fields(llm_effects.LLMEnv)) == services.split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="generat_"):
        llm_effects.generat_  # noqa: B018 - the look-up is the test


@pytest.mark.parametrize(
    ("name", "returned"),
    [("generate", "Effect[LLMResponse]"), ("stream", "Effect[LLMResponse]"), ("explain", "Effect[RoutingDecision]")],
)
def test_help_shows_the_alias_and_not_what_is_behind_it(name: str, returned: str) -> None:
    text = pydoc.render_doc(getattr(llm_effects, name), renderer=pydoc.plaintext)
    assert returned in text, text
    assert "RequiresContextFutureResult" not in text, text


def help_on(name: str) -> str:
    return pydoc.render_doc(getattr(llm_effects, name), renderer=pydoc.plaintext)


@pytest.mark.parametrize(
    "name", ["explain", "fallback", "gather", "generate", "rescue", "retry", "run", "stream", "then"]
)
def test_the_help_of_an_operation_is_short(name: str) -> None:
    text = help_on(name)
    assert len(text) < 1_600, text
    assert max(map(len, text.splitlines()[2].split(" -> "))) < 220, text
    assert "RateLimitExceeded |" not in text


@pytest.mark.parametrize("name", ["LLMConfig", "LLMRequest", "Message", "ModelConfig", "Preferences"])
def test_the_help_of_a_value_names_its_fields_without_modules(name: str) -> None:
    signature = str(inspect.signature(getattr(llm_effects, name)))
    assert "llm_effects." not in signature
    assert "NOTHING" not in signature
    assert signature in help_on(name)
    assert "**named" in help_on(name).partition("__init__")[2]


def test_the_help_of_the_package_begins_with_what_there_is() -> None:
    text = pydoc.render_doc(llm_effects, renderer=pydoc.plaintext)[:1_400]
    assert all(name in text for name in ("generate", "stream", "converse", "run_tools", "explain", "open_env"))
