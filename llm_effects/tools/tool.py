"""Tools that a model may call, with the functions behind them, and the sets that they form.

``run_tools`` in ``llm_effects.tools.run`` lets a model use them.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, final, get_args, overload

from attrs import field, frozen
from returns.result import Result

from llm_effects.structured.decoding import Problems
from llm_effects.tools.signatures import Arguments, Handler, checked_name, read_any_object, signature_of
from llm_effects.tools.steps import Risk
from llm_effects.values.messages import Stays, valid_stays
from llm_effects.values.requests import Tool
from llm_effects.values.validation import instance, instances, invalid, is_list, number, one_of, to_tuple

TIMEOUT_S: Final = 60.0
"""Longest time for a call of a tool, in seconds, unless the tool sets its own."""


@final
@frozen(kw_only=True, eq=False)
class ToolFunction:
    """A tool and the function that runs when a model calls it.

    ``read`` parses the model's arguments (JSON text) into the function's, or lists what is wrong with them. ``risk`` is
    what a call may do: a ``dangerous`` one runs only with approval. The results of a tool that is not ``trusted`` hold
    content that others wrote. ``timeout_s`` is in seconds, ``None`` for no limit. The results of a tool that ``stays``
    remain on this machine: after one, only models that run on it are asked. A tool that ``leaves_machine`` sends its
    arguments to another one: it never receives what is made of content that stays here.
    """

    tool: Tool
    function: Handler = field(repr=False)
    read: Callable[[str], Result[Arguments, Problems]] = field(repr=False)
    risk: Risk = field(default="write", validator=one_of(*get_args(Risk)))
    trusted: bool = field(default=True, validator=instance(bool))
    timeout_s: float | None = field(default=TIMEOUT_S, validator=number(above=0))
    stays: Stays | None = field(default=None, validator=valid_stays)
    leaves_machine: bool = field(default=False, validator=instance(bool))

    @property
    def dangerous(self) -> bool:
        """Whether a call runs only with approval."""
        return self.risk == "dangerous"


def _risk(risk: Risk | None, *, dangerous: bool) -> Risk:
    if dangerous and risk not in {None, "dangerous"}:
        invalid("risk", f"{risk!r} contradicts dangerous=True: leave one of them out")
    return "dangerous" if dangerous else risk or "write"


OWN_SCHEMA: Final = "write toolkit(function), or tool_with_schema(Tool(name, ...), function) for a schema of your own"
"""The remedy for a tool that is a description and no function."""


def _check_function(value: object) -> None:
    """Reject what is no function."""
    if not callable(value):
        remedy = "write toolkit(*functions)" if is_list(value) else OWN_SCHEMA
        invalid("tool", f"must be a function, not {type(value).__name__}: {remedy}")


@overload
def tool(
    function: Handler,
    /,
    *,
    name: str | None = ...,
    description: str | None = ...,
    risk: Risk | None = ...,
    dangerous: bool = ...,
    trusted: bool = ...,
    timeout_s: float | None = ...,
    stays: Stays | None = ...,
    leaves_machine: bool = ...,
) -> ToolFunction: ...
@overload
def tool(
    *,
    name: str | None = ...,
    description: str | None = ...,
    risk: Risk | None = ...,
    dangerous: bool = ...,
    trusted: bool = ...,
    timeout_s: float | None = ...,
    stays: Stays | None = ...,
    leaves_machine: bool = ...,
) -> Callable[[Handler], ToolFunction]: ...
def tool(
    function: Handler | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    risk: Risk | None = None,
    dangerous: bool = False,
    trusted: bool = True,
    timeout_s: float | None = TIMEOUT_S,
    stays: Stays | None = None,
    leaves_machine: bool = False,
) -> ToolFunction | Callable[[Handler], ToolFunction]:
    """Make a tool of a typed function: plain, ``async``, or one that returns an ``Effect`` or a ``Result``.

    Its schema comes from the types of its parameters, its description from its docstring (Google's form or Sphinx's).
    A function that no model can call is an ``InvalidValue`` with the remedy. It is a decorator too: ``@tool`` or
    ``@tool(dangerous=True)``; the function itself is then ``its_name.function``. ``risk`` is ``read``, ``write`` (the
    default) or ``dangerous``, for which ``dangerous=True`` is short. ``trusted=False`` marks a tool whose results hold
    content that others wrote, ``leaves_machine=True`` one that sends its arguments to another machine.

    >>> from typing import Literal
    >>> @tool
    ... def free_space(path: str, unit: Literal["GB", "%"] = "%") -> float:
    ...     '''Return how much of a disk is free.'''
    ...     return 3.0
    >>> free_space.tool.name, free_space.tool.parameters["required"]
    ('free_space', ['path'])
    >>> tool(lambda path: 3.0, name="free_space")
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: <lambda>.path: needs a type, which the model sees
    """

    def make(function: Handler) -> ToolFunction:
        _check_function(function)
        signature = signature_of(function, name, description)
        return ToolFunction(
            tool=signature.tool,
            function=function,
            read=signature.read,
            risk=_risk(risk, dangerous=dangerous),
            trusted=trusted,
            timeout_s=timeout_s,
            stays=stays,
            leaves_machine=leaves_machine,
        )

    return make if function is None else make(function)


def tool_with_schema(
    tool: Tool,
    function: Callable[[Mapping[str, object]], object],
    *,
    risk: Risk | None = None,
    dangerous: bool = False,
    trusted: bool = True,
    timeout_s: float | None = TIMEOUT_S,
    stays: Stays | None = None,
    leaves_machine: bool = False,
) -> ToolFunction:
    """Make a tool whose schema comes from elsewhere, for example from a server of tools.

    The function receives the arguments as one JSON object, and has to check them against the schema itself.

    >>> echo = tool_with_schema(Tool("echo"), lambda arguments: arguments["text"])
    >>> echo.read('{"text": "hi"}').unwrap()
    {'arguments': {'text': 'hi'}}
    """
    checked_name(tool.name)

    def call(arguments: Mapping[str, object]) -> object:
        return function(arguments)

    return ToolFunction(
        tool=tool,
        function=call,
        read=read_any_object,
        risk=_risk(risk, dangerous=dangerous),
        trusted=trusted,
        timeout_s=timeout_s,
        stays=stays,
        leaves_machine=leaves_machine,
    )


def _functions(functions: Iterable[ToolFunction]) -> tuple[ToolFunction, ...]:
    return to_tuple("functions", functions)


@final
@frozen
class Toolkit:
    """A set of tools with different names; ``|`` joins two sets.

    >>> Toolkit() | Toolkit()
    Toolkit(functions=())
    """

    functions: tuple[ToolFunction, ...] = field(default=(), converter=_functions, validator=instances(ToolFunction))

    def __attrs_post_init__(self) -> None:
        names = [each.tool.name for each in self.functions]
        if len(set(names)) < len(names):
            invalid("functions", f"each tool needs a name of its own, and {sorted(names)} repeats one")

    def __or__(self, other: "Toolkit") -> "Toolkit":
        return Toolkit((*self.functions, *other.functions))

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools as a model sees them."""
        return tuple(each.tool for each in self.functions)


def toolkit(*functions: ToolFunction | Handler) -> Toolkit:
    """Build a set of tools; a plain function becomes a tool by ``tool``.

    >>> def uptime() -> str:
    ...     '''Return how long the machine has been up.'''
    ...     return "3 days"
    >>> toolkit(uptime).tools[0].description
    'Return how long the machine has been up.'
    """
    return Toolkit(tuple(each if isinstance(each, ToolFunction) else tool(each) for each in functions))


def check_toolkit(value: object) -> None:
    """Raise a ``TypeError`` with the remedy for a value that is no ``Toolkit``.

    >>> check_toolkit([max])
    Traceback (most recent call last):
        ...
    TypeError: tools are a Toolkit, not list: write toolkit(max)
    """
    if not isinstance(value, Toolkit):
        msg = f"tools are a Toolkit, not {type(value).__name__}: {_toolkit_remedy(value)}"
        raise TypeError(msg)


def _toolkit_remedy(value: object) -> str:
    if isinstance(value, AbstractAsyncContextManager):
        return "enter it, as in `async with mcp_toolkit(...) as tools`"
    many = value if is_list(value) else (value,)
    if any(isinstance(each, Mapping) for each in many):
        return OWN_SCHEMA
    names = (each.tool.name if isinstance(each, ToolFunction) else getattr(each, "__name__", "...") for each in many)
    return f"write toolkit({', '.join(names)})"
