"""Tools of MCP servers: real processes and HTTP, and servers that die, hang and lie."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import LLM, AsyncLLM, LLMRequest, ToolCall, Toolkit, run, run_tools, scripted_env
from llm_effects.testing.scripted import calling
from llm_effects.tools import Approved, ToolOutcome, Verdict, ask_later, decide_approval, resume_tools
from llm_effects.tools import mcp as mcp_module
from llm_effects.tools.mcp import mcp_toolkit
from llm_effects.tools.mcp_tools import McpListing, McpTool, names_for
from llm_effects.values import InvalidValue
from llm_effects.values.requests import Tool
from tests.fixtures.mcp_server import make_server
from tests.fixtures.mcp_servers import COMMAND, LONG_S, alive, call, ended, function_of, liar, process_of, until
from tests.fixtures.tool_calls import QUESTION, answer_of
from tests.fixtures.web import Service, served

pytestmark = pytest.mark.anyio


# A server that behaves.


async def test_a_model_calls_the_tools_of_a_process() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        env = scripted_env(calling(ToolCall("c1", "t_add", '{"left": 1, "right": 2}')), "3")

        async def approve(call: ToolCall) -> Verdict:
            return Approved()

        finished = (await run(run_tools(QUESTION, tools, approve=approve), env)).unwrap()
        number = await process_of(tools)
    assert [(each.outcome, each.result.content) for each in finished.answers] == [(ToolOutcome.DONE, "3")]
    assert not alive(number)


async def test_arguments_are_checked_before_the_server_sees_them() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        answer = await answer_of(function_of(tools, "add"), '{"left": "one"}')
    assert answer.outcome is ToolOutcome.BAD_ARGUMENTS
    assert "'one' is not of type 'integer'" in answer.result.content
    assert "'right' is a required property" in answer.result.content


async def test_hints_are_shown_and_only_make_a_call_more_careful() -> None:
    server = mcp_toolkit("t", COMMAND)
    async with server as tools:
        shown = {each.name: each for each in server.listing.tools}
        dangerous = [each.tool.name for each in tools.functions if each.dangerous]
        assert {each.risk for each in tools.functions if not each.dangerous} == {"write"}
        answer = await answer_of(function_of(tools, "add"), '{"left": 1, "right": 2}')
        assert not answer.result.trusted
    assert (shown["add"].read_only, shown["add"].destructive) == (True, False)
    assert (shown["wipe"].read_only, shown["wipe"].destructive, shown["fail"].destructive) == (None, True, None)
    assert dangerous == ["t_wipe"]


async def test_what_is_no_text_is_named() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        picture = (await call(tools, "picture")).unwrap()
        resources = (await call(tools, "resources")).unwrap()
    assert picture == "[image of type image/gif is left out: 102 bytes]"
    assert resources.splitlines() == [
        "[resource linked  at file:///c.txt]",
        "[resource file:///a.txt]",
        "inside",
        "[resource file:///b.bin is left out: it is no text]",
    ]


async def test_a_change_of_the_tools_is_seen_and_a_run_keeps_its_own() -> None:
    server = mcp_toolkit("t", COMMAND)
    async with server as tools:
        (await call(tools, "more")).unwrap()
        await until(lambda: "t_extra" in [each.name for each in server.toolkit.tools])
        assert (await call(server.toolkit, "extra")).unwrap() == "extra"
    assert "t_extra" not in [each.name for each in tools.tools]


async def test_an_older_server_reports_changes_unasked() -> None:
    server = liar("flood")
    async with server as tools:
        assert (await call(tools, "it")).unwrap() == "fine"
        await until(lambda: server._session is not None and not server._session.changed.is_set())
        listings = int((await call(tools, "it", count=True)).unwrap())
    assert 1 <= listings <= 5  # of a thousand changes at once


async def test_all_pages_are_listed() -> None:
    server = liar("pages")
    async with server as tools:
        assert [each.name for each in tools.tools] == [f"t_t{number}" for number in range(6)]
    assert server.listing.problems == ()


@pytest.mark.parametrize("kind", ["endless", "many"])
async def test_a_list_without_end_is_cut_and_said(kind: str) -> None:
    server = liar(kind)
    async with server as tools:
        assert 1 < len(tools.functions) <= 256
    assert server.listing.problems[0].startswith("it lists more than 256 tools, or pages without end")


async def test_the_body_may_raise_and_the_process_still_ends() -> None:
    numbers = list[int]()
    with pytest.raises(KeyError, match="mine"):
        async with mcp_toolkit("t", COMMAND) as tools:
            numbers.append(await process_of(tools))
            raise KeyError("mine")
    assert not alive(numbers[0])


async def test_a_cancelled_body_leaves_no_process() -> None:
    numbers = list[int]()
    with anyio.CancelScope() as scope:
        async with mcp_toolkit("t", COMMAND) as tools:
            numbers += [await process_of(tools), int((await call(tools, "descendant")).unwrap())]
            scope.cancel()
            await anyio.sleep(LONG_S)
    assert not alive(numbers[0])
    assert await ended(numbers[1])


async def test_a_toolkit_outlives_its_server_as_error_values() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        pass
    answer = await answer_of(function_of(tools, "add"), '{"left": 1, "right": 2}')
    assert answer.outcome is ToolOutcome.FAILED
    assert answer.result.content.startswith("the MCP server t is closed")


async def test_a_server_can_be_entered_again_but_not_twice() -> None:
    server = mcp_toolkit("t", COMMAND)
    async with server as tools:
        first = await process_of(tools)
        with pytest.raises(RuntimeError, match="open already"):
            async with server:
                pass
    async with server as tools:
        assert await process_of(tools) != first


# From other event loops and threads.


def test_the_blocking_face_uses_the_tools() -> None:
    env = scripted_env(calling(ToolCall("c1", "t_add", '{"left": 1, "right": 2}')), "3")
    with mcp_toolkit("t", COMMAND) as tools, LLM(env) as llm:
        finished = llm.run_tools(QUESTION, Toolkit(tools.functions[:1]))
    assert finished.answers[0].result.content == "3"


async def test_the_other_faces_use_the_tools() -> None:
    def env() -> Any:
        return scripted_env(calling(ToolCall("c1", "t_add", '{"left": 1, "right": 2}')), "3")

    async with mcp_toolkit("t", COMMAND) as tools:
        add = Toolkit(tools.functions[:1])
        async with AsyncLLM(env()) as llm:
            assert (await llm.run_tools(QUESTION, add)).answers[0].result.content == "3"


def test_a_call_from_another_event_loop_ends_in_time() -> None:
    with mcp_toolkit("t", COMMAND, timeout_s=0.5) as tools:
        hanging = anyio.run(answer_of, function_of(tools, "hang"), '{"note": "/dev/null"}', backend="trio")
        assert hanging.outcome is ToolOutcome.TIMED_OUT
        added = anyio.run(answer_of, function_of(tools, "add"), '{"left": 1, "right": 2}', backend="trio")
        assert added.result.content == "3"
    closed = anyio.run(answer_of, function_of(tools, "add"), '{"left": 1, "right": 2}')
    assert closed.result.content.startswith("the MCP server t is closed")


def test_a_call_under_way_when_the_block_is_left_is_an_error_value(tmp_path: Path) -> None:
    note, results = tmp_path / "note", list[Any]()
    with mcp_toolkit("t", COMMAND, timeout_s=None) as tools:
        hang = function_of(tools, "hang")
        thread = threading.Thread(target=lambda: results.append(anyio.run(answer_of, hang, f'{{"note": "{note}"}}')))
        thread.start()
        wait_until = time.monotonic() + LONG_S
        while not note.exists() and time.monotonic() < wait_until:
            time.sleep(0.01)
    thread.join(LONG_S)
    assert [each.outcome for each in results] == [ToolOutcome.FAILED]


# What is rejected before anything starts.


@pytest.mark.parametrize(
    ("server", "options", "problem"),
    [
        ([], {}, "server: must be a URL, or a command line"),
        (["a", 1], {}, "server: must be a URL, or a command line"),
        ("uvx mcp-server-git", {}, "server: must be a URL with http or https"),
        ("https://me:secret@example.com/mcp", {}, "server: must not hold a password: pass headers"),
        ("https://example.com/mcp", {"env": {"A": "b"}}, "env: a server at a URL has no environment"),
        (["a"], {"headers": {"a": "b"}}, "headers: a process has no headers"),
        ("https://example.com/mcp", {"headers": {"a": "b\nc"}}, "headers: a contains a line break"),
        (["a"], {"timeout_s": 0}, "timeout_s: must be above 0"),
        (["a"], {"env": 3}, "env: must be"),
    ],
)
def test_a_mistake_is_named_at_once(server: Any, options: Any, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem) as raised:
        mcp_toolkit("t", server, **options)
    assert "secret" not in str(raised.value)


def test_a_name_has_to_suit_providers() -> None:
    with pytest.raises(InvalidValue, match="must be at most 64 letters"):
        mcp_toolkit("my server", ["a"])


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_module, "find_spec", lambda _: None)
    with pytest.raises(InvalidValue, match=r"the MCP client is not installed: pip install .*\[mcp\]"):
        mcp_toolkit("t", ["a"])


@given(names=st.lists(st.text(min_size=1), unique=True), prefix=st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True))
def test_names_are_valid_and_different(names: list[str], prefix: str) -> None:
    made = names_for(prefix, names)
    assert list(made) == names
    assert len(set(made.values())) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each) for each in made.values())


# HTTP.


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with served(make_server().streamable_http_app()) as running:
        yield running


async def test_a_model_calls_the_tools_of_a_server_by_http(service: Service, tmp_path: Path) -> None:
    server = mcp_toolkit("t", f"{service.url}/mcp", headers={"authorization": "Bearer tok-12345678"}, timeout_s=0.5)
    async with server as tools:
        assert (await call(tools, "add", left=1, right=2)).unwrap() == "3"
        assert (
            await call(tools, "fail", key="tok-12345678")
        ).failure() == "Error executing tool fail: no such key: *** [0m"
        hanging = await answer_of(function_of(tools, "hang"), f'{{"note": "{tmp_path / "note"}"}}')
        assert hanging.outcome is ToolOutcome.TIMED_OUT
        await until(lambda: (tmp_path / "note").read_text() == "cancelled")
        assert (await call(tools, "add", left=1, right=2)).unwrap() == "3"


@pytest.mark.parametrize("allowed", [None, False])
async def test_fault_245_a_server_elsewhere_gets_nothing_that_stays(
    service: Service, allowed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_module, "is_loopback", lambda _: False)
    url = f"{service.url}/mcp"
    asked = LLMRequest(prompt="?", stays="machine")
    async with mcp_toolkit("t", url, leaves_machine=allowed) as tools, mcp_toolkit("u", COMMAND) as every:
        local = Toolkit(tuple(each for each in every.functions if each.tool.name == "u_add"))
        assert {each.leaves_machine for each in tools.functions} == {allowed is None}
        assert not any(each.leaves_machine for each in local.functions)
        calls = (ToolCall(f"c{name}", f"{name}_add", '{"left": 1, "right": 2}') for name in "tu")
        asks = run_tools(evolve(asked, tools=(function_of(tools, "add").tool, *local.tools)), tools | local)
        finished = (await run(asks, scripted_env(calling(*calls), "3"))).unwrap()
    elsewhere, here = finished.answers
    assert (elsewhere.outcome is ToolOutcome.REFUSED) is (allowed is None)
    assert (here.outcome, here.result.content) == (ToolOutcome.DONE, "3")


def test_fault_245_a_server_counts_as_elsewhere_by_its_address_unless_one_says_otherwise() -> None:
    for server, says, leaves in (
        ("https://example.com/mcp", None, True),
        ("https://example.com/mcp", False, False),
        ("http://127.0.0.1:8000/mcp", None, False),
        ("http://a.localhost:8000/mcp", None, True),
        (["mcp-server-fetch"], None, False),
        (["mcp-server-fetch"], True, True),
    ):
        made = mcp_toolkit("t", server, leaves_machine=says)
        made.listing = McpListing((McpTool(tool=Tool("t_a"), name="a"),))
        assert [each.leaves_machine for each in made.toolkit.functions] == [leaves]


async def test_fault_235_a_call_of_a_server_waits_for_approval_as_any_other() -> None:
    env = scripted_env(calling(ToolCall("c1", "t_wipe", '{"disk": "b"}')), "Done.")
    async with mcp_toolkit("t", COMMAND) as tools:
        asks = run_tools("Wipe it.", tools, approve=ask_later, run_id="r")
        (approval,) = (await run(asks, env)).unwrap().waiting
        assert (approval.reason, approval.arguments) == ("it is dangerous", '{"disk":"b"}')
        await run(decide_approval(approval.id, Approved()), env)
        finished = (await run(resume_tools("r", tools), env)).unwrap()
    assert finished.answers[0].result.content == "b is empty"
