"""Faults of MCP servers: each is a value, within its time, and costs the run nothing else."""

import json
import logging
import sys
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from attrs import evolve

from llm_effects import run, run_tools, scripted_env
from llm_effects.testing.scripted import calling
from llm_effects.tools import ToolOutcome
from llm_effects.tools import mcp as mcp_module
from llm_effects.tools import mcp_transports as transports
from llm_effects.tools.mcp import mcp_toolkit
from llm_effects.values import InvalidValue, Secret
from tests.fixtures.mcp_servers import COMMAND, LONG_S, alive, call, ended, function_of, liar, process_of, until
from tests.fixtures.servers import Peer, chunked, reply, reply_json, serving
from tests.fixtures.tool_calls import QUESTION, answer_of
from tests.fixtures.tool_calls import call as tool_call

pytestmark = pytest.mark.anyio


# 238: a server that dies.


async def test_fault_238_a_server_that_dies_is_a_tool_error_and_is_started_again() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        first = await process_of(tools)
        env = scripted_env(calling(tool_call("t_die"), tool_call("t_lots", '{"length": 3}', "c2")), "sorry")
        safe = evolve(tools, functions=tuple(each for each in tools.functions if not each.dangerous))
        finished = (await run(run_tools(QUESTION, safe), env)).unwrap()
        died, _ = finished.answers
        assert finished.response.content == "sorry"
        assert died.outcome is ToolOutcome.FAILED
        problem = "its process was ended by signal 9: it may or may not have taken effect"
        assert died.result.content == f"the MCP server t: {problem}"
        second = await process_of(tools)
    assert first != second
    assert not alive(first)
    assert not alive(second)


async def test_fault_238_what_dies_again_and_again_is_not_started_for_every_call(tmp_path: Path) -> None:
    count = tmp_path / "count"
    dying = f"import pathlib; p = pathlib.Path({str(count)!r}); p.write_text(p.read_text() + '.'); raise SystemExit(3)"
    count.write_text("")
    server = liar("fine")
    async with server as tools:
        assert (await call(tools, "it")).unwrap() == "fine"
        server.server = (sys.executable, "-c", dying)  # as if its installation broke meanwhile
        assert server._session is not None
        server._session.end("it ended")
        failures = [(await call(tools, "it")).failure() for _ in range(12)]
    assert failures[0] == "the MCP server t: its process ended with 3"
    assert "the next start is in" in failures[-1]
    assert 2 <= len(count.read_text()) <= 4


async def test_fault_238_a_server_that_cannot_start_says_why() -> None:
    wrong = mcp_toolkit("t", [sys.executable, "-c", "import absent_module"])
    with pytest.raises(ConnectionError, match=r"its process ended with 1; the end of its error .*No module named"):
        async with wrong:
            pass
    with pytest.raises(ConnectionError, match="No such file or directory: 'absent-program'"):
        async with mcp_toolkit("t", ["absent-program"]):
            pass
    with pytest.raises(ConnectionError, match="ConnectError"):
        async with mcp_toolkit("t", "http://127.0.0.1:9/mcp"):
            pass


ENDS_BEFORE_ITS_ERROR: Final = """
import os, time
if os.fork() == 0:
    os.close(0), os.close(1)
    time.sleep(0.3)  # longer than it takes to see that the other process has ended
    os.write(2, b"no port is free")
    os._exit(0)
os._exit(3)
"""


async def test_fault_238_the_end_of_an_error_output_is_read_after_the_process() -> None:
    wrong = mcp_toolkit("t", [sys.executable, "-c", ENDS_BEFORE_ITS_ERROR])
    with pytest.raises(ConnectionError, match=r"ended with 3; the end of its error output: no port is free"):
        async with wrong:
            pass


async def test_fault_238_a_server_by_http_that_forgets_its_session_is_asked_for_another() -> None:
    sessions = list[int]()

    async def behave(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            head, _, body = request.partition(b"\r\n\r\n")
            message = json.loads(body or b"{}")
            if message.get("method") == "initialize":
                sessions.append(1)
                told = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
                result = {**told, "serverInfo": {"name": "s", "version": "1"}}
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
                await peer.send(reply_json(answer, "200 OK", f"mcp-session-id: s{len(sessions)}"))
            elif b"mcp-session-id: s1" in head and message.get("method") == "tools/call":
                await peer.send(reply(b"", "404 Not Found"))
            else:
                await peer.send(http_answer(message, fine))

    with serving(behave) as server:
        async with mcp_toolkit("t", f"{server.url}/mcp") as tools:
            assert (await call(tools, "it")).failure().endswith("it has forgotten this session, and did not run this")
            assert (await call(tools, "it")).unwrap() == "fine"
    assert len(sessions) == 2


# 239: a server that hangs.


async def test_fault_239_a_call_that_hangs_is_cancelled_at_the_server(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with mcp_toolkit("t", COMMAND, timeout_s=1) as tools:
        first = await process_of(tools)
        answer = await answer_of(function_of(tools, "hang"), json.dumps({"note": str(note)}))
        assert answer.outcome is ToolOutcome.TIMED_OUT
        await until(lambda: note.read_text() == "cancelled")
        assert await process_of(tools) == first


async def test_fault_239_a_server_that_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_module, "PING_S", 0.2)
    monkeypatch.setattr(transports, "GRACE_S", 0.2)
    async with mcp_toolkit("t", COMMAND, timeout_s=1) as tools:
        first = await process_of(tools)
        assert (await answer_of(function_of(tools, "freeze"))).outcome is ToolOutcome.TIMED_OUT
        assert await process_of(tools) != first
    assert not alive(first)


@pytest.mark.parametrize("kind", ["mute", "silent"])
async def test_fault_239_a_server_that_never_answers_costs_only_its_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "GRACE_S", 0.2)
    server = liar(kind, connect_s=1.0 if kind == "mute" else LONG_S, timeout_s=0.2)
    if kind == "mute":
        with pytest.raises(ConnectionError, match="it did not list its tools within 1 s"):
            async with server:
                pass
        return
    async with server as tools:
        assert (await answer_of(function_of(tools, "it"))).outcome is ToolOutcome.TIMED_OUT


async def test_fault_239_a_cancelled_program_leaves_no_process() -> None:
    numbers = list[int]()
    with anyio.CancelScope() as scope:
        async with mcp_toolkit("t", COMMAND) as tools:
            numbers += [await process_of(tools), int((await call(tools, "descendant")).unwrap())]
            scope.cancel()
            await anyio.sleep(LONG_S)
    assert not alive(numbers[0])
    assert await ended(numbers[1])


# 240: too much of everything.


async def test_fault_240_a_line_without_end_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "GRACE_S", 0.2)
    async with liar("endless_line") as tools:
        problem = (await call(tools, "it")).failure()
    assert problem.startswith(f"the MCP server t: it sent a message of more than {transports.MESSAGE_BYTES} bytes")


@pytest.mark.parametrize("kind", ["deep", "values"])
async def test_fault_240_an_answer_of_too_many_values_is_an_error_of_its_call(kind: str) -> None:
    async with liar(kind) as tools:
        assert "its answer cannot be read" in (await call(tools, "it")).failure()


@pytest.mark.parametrize("kind", ["flood", "requests", "garbage"])
async def test_fault_240_noise_is_passed_over(kind: str) -> None:
    async with liar(kind) as tools:
        assert (await call(tools, "it")).unwrap() == "fine"


async def test_fault_240_a_long_result_is_cut_for_the_model() -> None:
    async with mcp_toolkit("t", COMMAND) as tools:
        answer = await answer_of(function_of(tools, "lots"), '{"length": 1000000}')
    assert answer.outcome is ToolOutcome.DONE
    assert len(answer.result.content) < 51_000


LISTED: Final = {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]}


def http_answer(message: dict[str, Any], answer: Any) -> bytes:
    """Answer what a session begins with, and a call by ``answer``."""
    if "id" not in message:
        return reply(b"", "202 Accepted")
    if message["method"] == "tools/call":
        return answer(message)
    if message["method"] == "server/discover":
        return reply_json({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}})
    told = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    result = LISTED if message["method"] == "tools/list" else told
    return reply_json({"jsonrpc": "2.0", "id": message["id"], "result": result})


def fine(message: dict[str, Any]) -> bytes:
    result = {"content": [{"type": "text", "text": "fine"}]}
    return reply_json({"jsonrpc": "2.0", "id": message["id"], "result": result})


async def failure_by_http(answer: Any) -> str:
    """Return the error of a call that is answered so; the call after it still works."""
    seen = list[int]()

    def once(message: dict[str, Any]) -> bytes:
        seen.append(1)
        return answer(message) if len(seen) == 1 else fine(message)

    async def behave(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            sent = http_answer(json.loads(request.partition(b"\r\n\r\n")[2] or b"{}"), once)
            await peer.send(sent)
            if sent == b"":
                return

    with serving(behave) as server:
        async with mcp_toolkit("t", f"{server.url}/mcp") as tools:
            problem = (await call(tools, "it")).failure()
            assert (await call(tools, "it")).unwrap() == "fine"
    return str(problem)


def with_text(message: dict[str, Any], text: str) -> bytes:
    result = {"content": [{"type": "text", "text": text}]}
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()


async def test_fault_240_answers_by_http_are_bounded() -> None:
    long = await failure_by_http(lambda message: reply(with_text(message, "x" * transports.MESSAGE_BYTES)))
    assert f"its answer has more than {transports.MESSAGE_BYTES} bytes" in long
    packed = await failure_by_http(lambda message: reply(b"?" * 20, "200 OK", "content-encoding: gzip"))
    assert "its answer is compressed" in packed
    events = b"data: " + b"x" * (transports.MESSAGE_BYTES + 100) + b"\n\n"
    assert "an event of the stream is larger" in await failure_by_http(lambda message: chunked(events))
    noise = b'data: {"jsonrpc": "2.0", "method": "notifications/message"}\n\n' * 1200
    assert "its stream ended without an answer" in await failure_by_http(lambda message: chunked(noise))


# 241: answers that are not true.


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("schema", "its result does not fit its schema: $.n: 'xxxx"),
        ("bare", "its result does not fit its schema: it has no structured content"),
        ("content", "its answer is not as the protocol has it"),
        ("list", "its answer is not an object"),
        ("error", " [31meeee"),
        ("input", "its answer is not as the protocol has it"),
    ],
)
async def test_fault_241_an_answer_that_breaks_its_promise_is_an_error(kind: str, problem: str) -> None:
    async with liar(kind) as tools:
        answer = await answer_of(function_of(tools, "it"))
    assert answer.outcome is ToolOutcome.FAILED
    assert answer.result.content.startswith(f"the MCP server t: {problem}")
    assert len(answer.result.content) < 1100


async def test_fault_241_an_answer_with_the_id_of_another_call_is_none() -> None:
    async with liar("wrong_id", timeout_s=0.3) as tools:
        assert (await answer_of(function_of(tools, "it"))).outcome is ToolOutcome.TIMED_OUT
    other = await failure_by_http(lambda message: fine({**message, "id": message["id"] + 7}))
    assert "its answer has the id of another request" in other


async def test_fault_241_errors_of_http_are_errors_of_their_call() -> None:
    assert "HTTP status 401" in await failure_by_http(lambda _: reply(b"", "401 Unauthorized"))
    assert "HTTP status 500, and its answer is no JSON-RPC" in await failure_by_http(
        lambda _: reply(b"{}", "500 Internal Server Error")
    )
    assert "RemoteProtocolError" in await failure_by_http(lambda _: b"")
    assert "Redirect to http://127.0.0.2/" in await failure_by_http(
        lambda _: reply(b"", "307 Temporary Redirect", "location: http://127.0.0.2/")
    )


# 242: tools that no provider accepts.


async def test_fault_242_names_and_schemas_are_made_valid_or_left_out() -> None:
    import mcp_types as wire

    from llm_effects.tools.mcp_tools import listed_tools

    def tool(name: str, **schema: object) -> wire.Tool:
        return wire.Tool(name=name, input_schema=schema or {"type": "object"})

    listing = listed_tools(
        "web",
        [
            tool("read page"),
            tool("x" * 100),
            tool("read.page"),
            tool("fine"),
            tool("fine"),
            tool("number", type="integer"),
            tool("away", type="object", properties={"a": {"$ref": "https://example.com/a"}}),
            tool("nowhere", type="object", properties={"a": {"$ref": "#/$defs/a"}}),
            tool("no_schema", type="object", properties={"a": {"type": "kangaroo"}}),
            tool("large", type="object", description="x" * 70_000),
            tool(""),
            tool("y" * 300),
        ],
    )
    names = [each.tool.name for each in listing.tools]
    assert len(set(names)) == 4
    assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in names)
    assert [problem.partition(" is left out: ")[2] for problem in listing.problems] == [
        "it is listed twice",
        "its schema is not that of an object",
        "'https://example.com/a' is not in the schema",
        "'#/$defs/a' is not in the schema",
        "its schema is not valid: 'kangaroo' is not valid under any of the given schemas",
        "its schema is larger than 65536 bytes",
        "its name is empty or too long",
        "its name is empty or too long",
    ]


# 243: secrets.


async def test_fault_243_a_process_gets_no_key_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567890")
    monkeypatch.setenv("SERVICE_PASSWORD", "p")
    async with mcp_toolkit("t", COMMAND, env={"NAME": "value", "TOKEN": Secret("tok-1234567890")}) as tools:
        variables = json.loads((await call(tools, "variables")).unwrap())
    inherited = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE"}
    assert set(variables) - inherited == {"NAME", "TOKEN"}
    assert (variables["NAME"], variables["TOKEN"]) == ("value", "***")


async def test_fault_243_keys_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = mcp_toolkit("t", [*COMMAND, "--key=arg-1234567890"], env={"MY_KEY": "tok-1234567890"})
    async with server as tools:
        shown = repr((server, tools, server.listing)), (await call(tools, "fail", key="tok-1234567890")).failure()
    assert "tok-1234567890" not in str(shown)
    assert "arg-1234567890" not in str(shown)
    assert "tok-1234567890" not in caplog.text.replace('"key":"tok-1234567890"', "").replace(
        "'key': 'tok-1234567890'", ""
    )


@pytest.mark.parametrize("url", ["http://example.com/mcp", "http://localhost.example.com/mcp", "http://127.1/mcp"])
def test_fault_243_headers_are_never_sent_in_the_clear(url: str) -> None:
    with pytest.raises(InvalidValue, match="never sent over plain HTTP to another machine"):
        mcp_toolkit("t", url, headers={"authorization": "Bearer tok-1234567890"})


# 244: texts that steer.


async def test_fault_244_what_a_server_says_is_plain_and_bounded() -> None:
    server = mcp_toolkit("t", COMMAND)
    async with server as tools:
        add = function_of(tools, "add").tool
        page = next(each for each in server.listing.tools if each.name == "read.page").tool.name
        read = (await call(tools, page.removeprefix("t_"), url="u")).unwrap()
    assert add.description.startswith("Add two numbers. [31m\nxxx")
    assert len(add.description) == 4096
    assert add.parameters["properties"]["left"]["description"] == "one  number"
    assert read == " [31mthe page at u\n\tnext line"


def test_fault_244_a_schema_is_never_run_for_long() -> None:
    from llm_effects.tools.schema_checks import STEPS, SchemaCheck, accepted_schema

    nested = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    exponential = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": {**nested, "a40": False}}
    evil = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(a+)+$"}}}
    itself = {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}
    for schema in (exponential, evil, itself):
        accepted = accepted_schema(schema).unwrap()
        assert SchemaCheck(accepted).problems({"x": "a" * 60 + "!"}) == ()
    enum = {"type": "object", "properties": {"x": {"items": {"enum": ["y" * 30_000, 1]}}}}
    assert SchemaCheck(enum).problems({"x": [2] * STEPS}) == ()
