"""Tools of an MCP server as a toolkit: ``mcp_toolkit`` starts or reaches the server and holds a session open.

The server is a stranger. What it says of its tools and returns from them is bounded and made plain, its hints never
make a call less careful, and whatever it does, a call of a tool ends as a value within its time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, cast, final
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import EventLoopToken, current_token
from attrs import define, field, fields, frozen
from attrs.validators import optional
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import Signal, in_steps, task_group
from llm_effects.providers.target import is_loopback
from llm_effects.tools.mcp_tools import (
    MOST_TOOLS,
    McpListing,
    McpTool,
    listed_tools,
    problems_of,
    read_arguments,
    text_of_result,
)
from llm_effects.tools.schema_checks import SchemaCheck, plain, shortened
from llm_effects.tools.signatures import checked_name
from llm_effects.tools.tool import TIMEOUT_S, ToolFunction, Toolkit
from llm_effects.values import caps
from llm_effects.values.extras import install_command
from llm_effects.values.secrets import Secret, secret_values, secrets_of_environment, valid_headers
from llm_effects.values.validation import instance, invalid, is_a, number, printable, text, to_table, to_tuple

if TYPE_CHECKING:
    import mcp_types as wire
    from mcp import Client, ClientSession
    from mcp.client import Transport
    from pydantic import TypeAdapter

CONNECT_S: Final = 30.0
"""Longest time until a server has listed its tools, in seconds."""

CLOSE_S: Final = 10.0
"""Longest time to close a session, in seconds."""

PING_S: Final = 5.0
"""How long a server may take to show that it is alive after a call that was given up, in seconds."""

LONGEST_PAUSE_S: Final = 60.0
"""Longest pause before a server that failed is started or reached again, in seconds."""

MOST_PAGES: Final = 64
"""Most pages of a list of tools."""

MOST_PATIENCE_S: Final = 2.0
"""Longest pause that a call waits for, in seconds; before a longer one, it fails at once."""

_RELIST_S: Final = 1.0
_RELISTEN_S: Final = 30.0
_UNKNOWN: Final = "it may or may not have taken effect"

Values: TypeAlias = Mapping[str, str | Secret]
"""Variables or headers, by their names."""


def mcp_toolkit(
    name: str,
    server: str | Sequence[str],
    *,
    env: Values | None = None,
    headers: Values | None = None,
    cwd: str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    connect_s: float = CONNECT_S,
    leaves_machine: bool | None = None,
) -> McpServer:
    """Return an MCP server whose tools a model may call, to be entered with ``async with`` or ``with``.

    ``server`` is the command line of a program that speaks MCP over its standard input and output, or the URL of one
    that speaks streamable HTTP. A model sees each tool as ``name_tool``. A process gets ``env`` and, of this process,
    only variables such as ``PATH`` and ``HOME``; a URL gets ``headers``. Their values stay hidden as a ``Secret`` does.
    ``timeout_s`` limits each call, ``connect_s`` the start, in seconds; entering raises ``ConnectionError`` if the
    server does not list its tools by then. A URL counts as another machine unless its host is a loopback address, a
    program as this one; ``leaves_machine`` says otherwise. Needs the extra ``[mcp]``.

    >>> mcp_toolkit("files", ["mcp-server-files", "/srv"], env={"TOKEN": "t-12345678"})
    McpServer('files', 'mcp-server-files')
    >>> mcp_toolkit("web", "http://example.com/mcp", headers={"authorization": "Bearer t-12345678"})
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: server: headers are never sent over plain HTTP to another machine: ...
    """
    if find_spec("mcp") is None:
        invalid("server", f"the MCP client is not installed: {install_command('mcp')}")
    return McpServer(
        name=name,
        server=server if isinstance(server, str) else to_tuple("server", server),
        env=env or {},
        headers=headers or {},
        cwd=cwd,
        timeout_s=timeout_s,
        connect_s=connect_s,
        leaves_machine=leaves_machine,
    )


def _secrets(name: str, values: Values) -> dict[str, Secret]:
    pairs = to_table(name, values).items()
    return {key: value if isinstance(value, Secret) else Secret(value) for key, value in pairs}


def _env(values: Values) -> dict[str, Secret]:
    return _secrets("env", values)


def _headers(values: Values) -> dict[str, Secret]:
    return _secrets("headers", values)


# A session with the server: it begins with the first call that needs it, and ends with the server.


@final
@define(eq=False)
class _Session:
    """A session. ``gone`` is set to end it, or when the server is; ``doubtful`` after a call that was given up.

    ``expired`` is why no other call may use it, while those under way still may end.
    """

    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    gone: anyio.Event = field(factory=anyio.Event)
    ready: anyio.Event = field(factory=anyio.Event)
    closed: anyio.Event = field(factory=anyio.Event)
    changed: anyio.Event = field(factory=anyio.Event)
    client: ClientSession | None = None
    problem: str = "it was closed"
    details: str = ""
    expired: str = ""
    doubtful: bool = False
    useful: bool = False

    def expire(self, problem: str) -> None:
        """Make the next call begin another session."""
        self.expired = problem

    def end(self, problem: str, details: str = "") -> None:
        """End the session for a reason, with details that no model sees; the first reason stays."""
        if not self.gone.is_set():
            self.problem, self.details = problem, details
            self.gone.set()


@final
@frozen
class _Home:
    """The event loop that holds an open server, its tasks there, and the way to it from other event loops."""

    token: EventLoopToken
    tasks: TaskGroup
    portal: BlockingPortal


def pause_before(failures: int) -> float:
    """Return how long to wait after so many sessions in a row that were of no use, in seconds.

    >>> [pause_before(failures) for failures in (0, 1, 2, 3, 100)]
    [0.0, 1.0, 2.0, 4.0, 60.0]
    """
    return min(LONGEST_PAUSE_S, 2.0 ** min(failures - 1, 10)) if failures else 0.0


@final
@define(eq=False, kw_only=True, repr=False)
class McpServer:
    """An MCP server, by ``mcp_toolkit``: entered, it is a ``Toolkit`` whose tools run in any event loop or thread.

    ``async with`` holds its session in the running event loop, ``with`` in a thread of its own. A call that finds the
    server gone starts it or connects again, once; what was under way when it went is not repeated. After each session
    that was of no use the next one waits: 1 second, 2, 4, at most ``LONGEST_PAUSE_S``.
    """

    name: str = field(validator=text())
    server: str | tuple[str, ...] = field()
    env: Mapping[str, Secret] = field(converter=_env)
    headers: Mapping[str, Secret] = field(converter=_headers)
    cwd: str | None = None
    timeout_s: float | None = field(validator=optional(number(above=0)))
    connect_s: float = field(validator=number(above=0))
    leaves_machine: bool | None = field(default=None, validator=optional(instance(bool)))
    listing: McpListing = field(factory=McpListing, init=False)
    _home: _Home | None = field(default=None, init=False)
    _session: _Session | None = field(default=None, init=False)
    _lock: anyio.Lock = field(factory=anyio.Lock, init=False)
    _failures: int = field(default=0, init=False)
    _next_start: float = field(default=0.0, init=False)
    _masks: tuple[str, ...] = field(default=(), init=False)
    _async_scope: AbstractAsyncContextManager[Toolkit] | None = field(default=None, init=False)
    _scope: ExitStack | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        checked_name(self.name)
        _check_server(self)
        texts = {name: secret.reveal() for name, secret in self.env.items()}
        keys = [("x-api-key", secret) for secret in self.headers.values()]
        found = (*secret_values(keys), *secrets_of_environment(texts))
        self._masks = tuple(sorted(dict.fromkeys(found), key=len, reverse=True))

    def __repr__(self) -> str:
        where = self.server[0] if isinstance(self.server, tuple) else urlsplit(self.server).netloc.rpartition("@")[2]
        return f"McpServer({self.name!r}, {where!r})"

    @property
    def toolkit(self) -> Toolkit:
        """The current tools: those of entering, until the server changes them. A run keeps the tools it began with."""
        return Toolkit(tuple(map(self._function, self.listing.tools)))

    def _function(self, tool: McpTool) -> ToolFunction:
        return ToolFunction(
            tool=tool.tool,
            function=partial(self._call, tool),
            read=partial(read_arguments, SchemaCheck(tool.tool.parameters)),
            risk="dangerous" if tool.destructive is True else "write",
            trusted=False,
            timeout_s=self.timeout_s,
            leaves_machine=self._is_elsewhere if self.leaves_machine is None else self.leaves_machine,
        )

    @property
    def _is_elsewhere(self) -> bool:
        return isinstance(self.server, str) and not is_loopback(urlsplit(self.server).hostname or "")

    async def __aenter__(self) -> Toolkit:
        if self._home is not None or self._async_scope is not None:
            msg = f"{self!r} is open already: make another one by mcp_toolkit"
            raise RuntimeError(msg)
        self._async_scope = self._opened()
        try:
            return await self._async_scope.__aenter__()
        except BaseException:
            self._async_scope = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope, self._async_scope = self._async_scope, None
        return None if scope is None else await scope.__aexit__(kind, error, traceback)

    def __enter__(self) -> Toolkit:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(name="llm-effects mcp"))
            toolkit = stack.enter_context(portal.wrap_async_context_manager(self))
            self._scope = stack.pop_all()
        return toolkit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.__exit__(kind, error, traceback)

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Toolkit]:
        """Hold the server open: its first session has to begin, and the last one is closed."""
        async with task_group() as tasks:
            portal: BlockingPortal = await tasks.start(_hold_portal)
            self._lock, self._session, self._failures, self._next_start = anyio.Lock(), None, 0, 0.0
            self._home = _Home(current_token(), tasks, portal)
            try:
                session = await self._current_session(self._home)
                if not is_successful(session):
                    raise ConnectionError(session.failure() + self._details())
                yield self.toolkit
            finally:
                self._home = None
                with anyio.CancelScope(shield=True):
                    await _close(self._session)
                tasks.cancel_scope.cancel()

    # A call.

    async def _call(self, tool: McpTool, arguments: Mapping[str, object]) -> Result[str, str]:
        """Call a tool, in the event loop that holds the session."""
        home = self._home
        if home is None:
            return Failure(f"the MCP server {self.name} is closed: use its tools inside of its with block")
        work = partial(self._call_here, home, tool, arguments)
        return await (work() if current_token() == home.token else _elsewhere(home.portal, work))

    async def _call_here(self, home: _Home, tool: McpTool, arguments: Mapping[str, object]) -> Result[str, str]:
        session = await self._current_session(home)
        if not is_successful(session):
            return Failure(session.failure())
        client = session.unwrap().client
        assert client is not None  # noqa: S101 - of a session that is ready
        answer = await self._ask(session.unwrap(), client, tool, arguments)
        if not is_successful(answer):
            return Failure(answer.failure())
        return await self._outcome(tool, answer.unwrap())

    async def _ask(
        self, session: _Session, client: ClientSession, tool: McpTool, arguments: Mapping[str, object]
    ) -> Result[wire.CallToolResult, str]:
        import mcp_types as wire
        from mcp import MCPError
        from pydantic import ValidationError

        request = wire.CallToolRequest(params=wire.CallToolRequestParams(name=tool.name, arguments=dict(arguments)))
        try:
            answer = await client.send_request(request, _answer_kinds())
        except anyio.get_cancelled_exc_class():
            session.doubtful = True
            raise
        except MCPError as problem:
            lost = session.gone.is_set() and problem.code == wire.CONNECTION_CLOSED
            return Failure(self._text(f"{session.problem}: {_UNKNOWN}" if lost else problem.message))
        except ValidationError:
            return Failure(self._text(f"its answer is not as the protocol has it: {_UNKNOWN}"))
        session.useful, self._failures = True, 0
        if isinstance(answer, wire.InputRequiredResult):
            return Failure(self._text("it asks for input, which is not supported here"))
        return Success(answer)

    async def _outcome(self, tool: McpTool, answer: wire.CallToolResult) -> Result[str, str]:
        size = sum(len(getattr(each, "text", "")) for each in answer.content)
        text = await in_steps(partial(text_of_result, answer, self._masks), size)
        if answer.is_error:
            return Failure(text or "the tool failed, and says nothing about it")
        problems = problems_of(tool, answer)
        return Failure(self._text(f"its result does not fit its schema: {problems}")) if problems else Success(text)

    def _text(self, problem: str) -> str:
        """Return a sentence about the server, with what it said bounded and made plain."""
        return f"the MCP server {self.name}: {shortened(plain(problem, self._masks), 2 * caps.MESSAGE_CHARACTERS)}"

    def _details(self) -> str:
        details = self._session.details if self._session is not None else ""
        return f"; {plain(details, self._masks)}" if details else ""

    # The session.

    async def _current_session(self, home: _Home) -> Result[_Session, str]:
        """Return the session, or begin one; at most one task does so."""
        async with self._lock:
            session = self._session
            if session is not None and session.expired:
                session.end(session.expired)
            if session is not None and session.doubtful and not session.gone.is_set():
                await _ping(session)
            if session is None or session.gone.is_set():
                await _close(session)
                wait_s = self._next_start - anyio.current_time()
                if session is not None and wait_s > MOST_PATIENCE_S:
                    return Failure(self._text(f"{session.problem}; the next start is in {wait_s:.0f} s"))
                await anyio.sleep_until(self._next_start)
                session = self._session = _Session()
                home.tasks.start_soon(self._hold, session)
            await session.ready.wait()
        return Success(session) if session.client is not None else Failure(self._text(session.problem))

    async def _hold(self, session: _Session) -> None:
        """Hold a session open until it ends. Only a cancellation leaves this: the client is not our code."""
        session.scope.deadline = anyio.current_time() + self.connect_s
        try:
            with session.scope:
                await self._serve(session)
            if session.scope.cancelled_caught:
                session.end(f"it did not list its tools within {self.connect_s:g} s")
        except Exception as problem:  # noqa: BLE001 - whatever a client makes of a server is a reason to begin anew
            session.end(_reason(problem))
        finally:
            self._note_end(session)

    def _note_end(self, session: _Session) -> None:
        session.end("it ended the session")
        self._failures = 0 if session.useful else self._failures + 1
        self._next_start = anyio.current_time() + pause_before(self._failures)
        session.client = None
        session.ready.set()
        session.closed.set()

    async def _serve(self, session: _Session) -> None:
        from mcp import Client, Implementation

        async def notice(message: object) -> None:
            if isinstance(message, _change_class()):
                session.changed.set()

        info = Implementation(name="llm_effects", version=version("llm-effects"))
        async with Client(self._transport(session), message_handler=notice, client_info=info, cache=None) as client:
            self.listing = await self._listed(client.session)
            session.scope.deadline = float("inf")
            session.client = client.session
            session.ready.set()
            async with task_group() as group:
                group.start_soon(self._follow_changes, session, client.session)
                group.start_soon(_listen, session, client)
                await session.gone.wait()
                session.scope.deadline = anyio.current_time() + CLOSE_S
                group.cancel_scope.cancel()

    def _transport(self, session: _Session) -> Transport:
        from llm_effects.tools.mcp_transports import http_streams, process_streams

        if isinstance(self.server, tuple):
            env = {name: value.reveal() for name, value in self.env.items()}
            return process_streams(self.server, env, self.cwd, session.end)
        headers = {name: value.reveal() for name, value in self.headers.items()}
        return http_streams(self.server, headers, self.timeout_s, session.expire)

    async def _listed(self, client: ClientSession) -> McpListing:
        """List all tools, page by page; what is wrong with some of them does not cost the others."""
        import mcp_types as wire

        found: list[wire.Tool] = []
        cursor, seen, problems = None, set[str | None](), list[str]()
        while len(seen) < MOST_PAGES and len(found) <= MOST_TOOLS:
            page = await client.list_tools(params=wire.PaginatedRequestParams(cursor=cursor))
            found += page.tools
            seen.add(cursor)
            cursor = page.next_cursor
            if cursor is None or cursor in seen:
                break
        if cursor is not None or len(found) > MOST_TOOLS:
            problems.append(f"it lists more than {MOST_TOOLS} tools, or pages without end: the rest is left out")
        listing = listed_tools(self.name, found[:MOST_TOOLS], self._masks)
        return McpListing(listing.tools, (*problems, *listing.problems))

    async def _follow_changes(self, session: _Session, client: ClientSession) -> None:
        """List the tools anew after a change, at most once a second; if that fails, the old ones stay."""
        from mcp import MCPError
        from pydantic import ValidationError

        while True:
            await session.changed.wait()
            session.changed = anyio.Event()
            with anyio.move_on_after(self.connect_s):
                try:
                    self.listing = await self._listed(client)
                except (MCPError, ValidationError) as problem:
                    kept = self._text(f"the list of tools could not be renewed: {problem}")
                    self.listing = McpListing(self.listing.tools, (kept,))
            await anyio.sleep(_RELIST_S)


def _check_server(server: McpServer) -> None:
    if isinstance(server.server, tuple):
        if not server.server or not all(is_a(each, str) for each in server.server):
            invalid("server", "must be a URL, or a command line such as ['uvx', 'mcp-server-git']")
        if server.headers:
            invalid("headers", "a process has no headers: pass env")
        return
    url = urlsplit(server.server)
    if url.scheme not in {"http", "https"} or not url.hostname:
        invalid("server", "must be a URL with http or https, or a command line such as ['uvx', 'mcp-server-git']")
    valid_headers(server, fields(McpServer).headers, tuple(server.headers.items()))
    if server.env:
        invalid("env", "a server at a URL has no environment: pass headers")
    if "@" in url.netloc:
        invalid("server", "must not hold a password: pass headers")
    if server.headers and url.scheme == "http" and not is_loopback(url.hostname):
        invalid("server", "headers are never sent over plain HTTP to another machine: use https or a loopback address")


async def _hold_portal(*, task_status: TaskStatus[BlockingPortal]) -> None:
    async with BlockingPortal() as portal:
        task_status.started(portal)
        await anyio.sleep_forever()


async def _elsewhere(portal: BlockingPortal, work: Callable[[], Awaitable[Result[str, str]]]) -> Result[str, str]:
    """Do some work in the event loop of a portal; a caller that is cancelled cancels it."""
    closed = Failure[str]("the MCP server was closed meanwhile")
    try:
        future = portal.start_task_soon(work)
    except RuntimeError:  # the portal has ended
        return closed
    done = Signal()
    future.add_done_callback(done.set)
    try:
        await done.wait()
        return future.result()
    except CancelledError:
        return closed
    finally:
        future.cancel()


async def _close(session: _Session | None) -> None:
    """End a session and wait until its process or connection is closed."""
    if session is not None:
        session.end("it was closed")
        if not session.ready.is_set():
            session.scope.cancel()
        await session.closed.wait()


async def _ping(session: _Session) -> None:
    """End a session whose server does not answer at all; any answer is a sign of life."""
    import mcp_types as wire
    from mcp import MCPError

    assert session.client is not None  # noqa: S101 - of a session that is ready
    with anyio.move_on_after(PING_S):
        with suppress(MCPError):
            await session.client.send_request(wire.PingRequest(), wire.EmptyResult)
        session.doubtful = False
        return
    session.end(f"it stopped answering: no sign of life within {PING_S:g} s")


async def _listen(session: _Session, client: Client) -> None:
    """Subscribe to changes of the tools where the protocol wants that; older servers report them unasked."""
    from mcp import MCPError
    from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost

    tools = client.server_capabilities.tools
    while tools is not None and tools.list_changed:
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    session.changed.set()
        except ListenNotSupportedError:
            return
        except (MCPError, SubscriptionLost, TimeoutError):
            pass
        await anyio.sleep(_RELISTEN_S)
        session.changed.set()  # there is no replay


@cache
def _answer_kinds() -> TypeAdapter[wire.CallToolResult | wire.InputRequiredResult]:
    import mcp_types as wire
    from pydantic import TypeAdapter

    return TypeAdapter(wire.CallToolResult | wire.InputRequiredResult)


def _change_class() -> type[wire.ToolListChangedNotification]:
    import mcp_types as wire

    return wire.ToolListChangedNotification


def _reason(problem: BaseException) -> str:
    """Return the innermost reason of a failure in one line."""
    while isinstance(problem, BaseExceptionGroup):
        problem = cast("BaseExceptionGroup[BaseException]", problem).exceptions[0]
    return shortened(printable(str(problem)) or type(problem).__name__, caps.MESSAGE_CHARACTERS)
