"""``LLMRequest`` and its settings."""

from collections.abc import Iterable, Mapping
from enum import Enum, unique
from typing import ClassVar, Literal, TypeAlias, cast, final, get_args

from attrs import field, fields, frozen

from llm_effects.values.display import shown
from llm_effects.values.json import to_json_object
from llm_effects.values.messages import Message, Stays, Text, valid_stays
from llm_effects.values.validation import (
    explain_arguments,
    instance,
    instances,
    invalid,
    is_a,
    new_dict,
    number,
    one_of,
    short_repr,
    text,
    to_member,
    to_metadata,
    to_tuple,
    valid_owner,
)
from llm_effects.values.value import Value

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How long a reasoning model may think; each model supports some of these."""


PromptCache: TypeAlias = Literal["off", "5m", "1h"]
"""How long a provider keeps the prefix of a prompt, where the request decides: not at all, 5 minutes, or an hour."""


@final
class TaskType(str):
    """The task of a request, which selects the order of models. Any other name is valid too.

    >>> TaskType.ANALYSIS, TaskType("triage")
    (TaskType('analysis'), TaskType('triage'))
    """

    __slots__ = ()

    ANALYSIS: ClassVar["TaskType"]
    UI_GENERATION: ClassVar["TaskType"]
    CONFIG_MANAGEMENT: ClassVar["TaskType"]
    GENERAL: ClassVar["TaskType"]

    def __repr__(self) -> str:
        return f"TaskType({str(self)!r})"


TaskType.ANALYSIS = TaskType("analysis")
TaskType.UI_GENERATION = TaskType("ui_generation")
TaskType.CONFIG_MANAGEMENT = TaskType("config_management")
TaskType.GENERAL = TaskType("general")


@final
@unique
class CachePolicy(Enum):
    """The use of the cache by a request."""

    USE = "use"  # read, and store on a miss
    REFRESH = "refresh"  # do not read, but store
    BYPASS = "bypass"  # neither read nor store
    ONLY = "only"  # read, and fail on a miss


@final
@unique
class Recovery(Enum):
    """The reaction to a stream that breaks after its first content."""

    FAIL = "fail"  # fail with the partial text
    RESTART = "restart"  # start the answer again, after a ``Restarted`` event
    RESUME = "resume"  # let the next model continue the partial text if it can, else restart


@final
@unique
class Allow(Enum):
    """A permission that a request grants beyond the defaults."""

    FALLBACK_ON_REFUSAL = "fallback_on_refusal"  # try the next model after ``ContentRefused``
    CHEAPER_MODEL = "cheaper_model"  # try a cheaper model after ``BudgetExceeded``


def _parameters(value: Mapping[str, object]) -> Mapping[str, object]:
    return to_json_object("parameters", value)


@final
@frozen(eq=False, repr=False)
class Tool(Value):
    """A function that the model may call. ``parameters`` is the JSON Schema of its arguments."""

    name: str = field(validator=text())
    description: str = field(default="", validator=text(empty=True))
    parameters: Mapping[str, object] = field(
        factory=lambda: {"type": "object", "properties": {}}, converter=_parameters
    )


def _stops(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else to_tuple("stop", value)


@final
@frozen(kw_only=True)
class Preferences:
    """Sampling and limits; for ``None`` the model's configuration applies.

    ``max_tokens`` counts output tokens; ``timeout_ms`` is the whole call in milliseconds, with queueing, retries and
    fallback. A setting that the chosen model does not accept is dropped with a warning.
    """

    __repr__ = shown

    max_tokens: int | None = field(default=None, validator=number(at_least=1, whole=True))
    temperature: float | None = field(default=None, validator=number(at_least=0, at_most=2))
    top_p: float | None = field(default=None, validator=number(above=0, at_most=1))
    stop: tuple[str, ...] = field(default=(), converter=_stops, validator=instances(str))
    seed: int | None = field(default=None, validator=number(whole=True))
    reasoning_effort: ReasoningEffort | None = field(default=None, validator=one_of(*get_args(ReasoningEffort)))
    timeout_ms: float | None = field(default=None, validator=number(above=0))


def _messages(value: Iterable[Message]) -> tuple[Message, ...]:
    if value == ():
        return ()
    if is_a(value, str) or is_a(value, Message):
        invalid("messages", f"must be several messages, not one {type(value).__name__}: write [{_message(value)}]")
    messages = to_tuple("messages", value)
    for index, each in enumerate(messages):
        if not is_a(each, Message):
            invalid(f"messages[{index}]", f"must be Message, not {type(each).__name__}: write {_message(each)}")
    return messages


def _message(value: object) -> str:
    """Return how to write a message, by what was given instead."""
    if isinstance(value, Mapping):
        role = cast("Mapping[object, object]", value).get("role", "user")
        return f'Message({short_repr(role)}, "...")'
    return 'Message("user", "...")'


def _tools(value: Iterable[Tool]) -> tuple[Tool, ...]:
    return to_tuple("tools", value)


def _tags(value: Iterable[str]) -> tuple[str, ...]:
    return to_tuple("tags", value)


def _task(value: str) -> TaskType:
    if not is_a(value, str):
        invalid("task_type", f"must be a text, not {type(value).__name__}")
    return value if isinstance(value, TaskType) else TaskType(value)


def _schema(value: Mapping[str, object] | None) -> Mapping[str, object] | None:
    return None if value is None else to_json_object("response_schema", value)


def _cache(value: CachePolicy | str) -> CachePolicy:
    return to_member("cache", CachePolicy, value)


def _recovery(value: Recovery | str) -> Recovery:
    return to_member("recovery", Recovery, value)


def _permissions(value: Iterable[Allow | str]) -> frozenset[Allow]:
    if value == frozenset():  # as in nearly every request
        return frozenset()
    return frozenset(to_member("allow", Allow, each) for each in to_tuple("allow", value))


@final
@frozen(kw_only=True)
class LLMRequest:
    """A request, which routing sends to the most suitable model. Give either ``prompt`` or ``messages``.

    ``model`` pins a model, by your name for it or the provider's. ``tool_choice`` is ``auto``, ``none``, ``required``
    or the name of a tool. ``response_schema`` is a JSON Schema of the answer. ``owner`` and ``tags`` are for the ledger
    and budgets, ``metadata`` for custom layers; no model receives them. ``cache``, ``recovery`` and ``allow`` also
    accept their choices as texts. ``conversation`` names what the request is a part of: its requests share the
    provider's prompt cache, for which ``prompt_cache`` replaces the setting of the model. ``stays`` keeps all of it on
    this machine, and all that is made of it: only models that run on it are asked. A request with a part that stays has
    it by itself.

    >>> LLMRequest(prompt="why is p99 up?", task_type="analysis").task_type
    TaskType('analysis')
    >>> LLMRequest()
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: prompt: give either prompt or messages
    """

    __repr__ = shown

    prompt: str | None = field(default=None, validator=text())
    messages: tuple[Message, ...] = field(default=(), converter=_messages)
    system: str | None = field(default=None, validator=text())
    task_type: TaskType = field(default=TaskType.GENERAL, converter=_task, validator=text())
    preferences: Preferences = field(default=Preferences(), validator=instance(Preferences))
    tools: tuple[Tool, ...] = field(default=(), converter=_tools, validator=instances(Tool))
    tool_choice: str | None = field(default=None, validator=text())
    response_schema: Mapping[str, object] | None = field(default=None, converter=_schema)
    model: str | None = field(default=None, validator=text())
    cache: CachePolicy = field(default=CachePolicy.USE, converter=_cache)
    recovery: Recovery = field(default=Recovery.FAIL, converter=_recovery)
    allow: frozenset[Allow] = field(default=frozenset(), converter=_permissions)
    owner: str | None = field(default=None, validator=valid_owner)
    conversation: str | None = field(default=None, validator=text(), repr=False)
    prompt_cache: PromptCache | None = field(default=None, validator=one_of(*get_args(PromptCache)))
    stays: Stays | None = field(default=None, validator=valid_stays)
    tags: tuple[str, ...] = field(default=(), converter=_tags, validator=instances(str))
    metadata: Mapping[str, str] = field(factory=new_dict, converter=to_metadata, validator=instances(str), repr=False)

    def __attrs_post_init__(self) -> None:
        if self.prompt is None and not self.messages:
            invalid("prompt", "give either prompt or messages")
        if self.prompt is not None and self.messages:
            invalid("prompt", "give either prompt or messages, not both: put the prompt last among the messages")
        _check_tools(self)
        if self.messages and any(part.stays is not None for turn in self.messages for part in turn.parts):
            object.__setattr__(self, "stays", "machine")  # once, for every layer; a copy keeps it


explain_arguments(
    LLMRequest,
    "LLMRequest(prompt=...)",
    {
        **{each.name: f"write preferences=Preferences({each.name}=...)" for each in fields(Preferences)},
        **dict.fromkeys(("content", "text", "input"), "write prompt=..."),
        "user": "write prompt=... for what is asked, owner=... for whose call it is",
        **dict.fromkeys(("task", "type"), "write task_type=..."),
        **dict.fromkeys(("timeout", "timeout_s"), "write preferences=Preferences(timeout_ms=...), in milliseconds"),
        "max_completion_tokens": "write preferences=Preferences(max_tokens=...)",
        "response_format": "call generate_as with a class, or write response_schema=... for a JSON Schema",
        **dict.fromkeys(("max_retries", "num_retries"), "it is configured: RoutingConfig(max_retries=...)"),
        "stream": "call stream or open_stream instead of generate",
    },
    trust_defaults=True,
)
explain_arguments(Preferences, "Preferences(temperature=...)", trust_defaults=True)


def _check_tools(request: LLMRequest) -> None:
    if not request.tools and request.tool_choice is None:
        return
    names = [tool.name for tool in request.tools]
    if len(set(names)) < len(names):
        invalid("tools", f"names must be unique, but {sorted(names)} repeats one")
    if request.tool_choice not in {None, "none", "auto", *(["required", *names] if names else [])}:
        invalid(
            "tool_choice",
            f"must be auto, none, required or the name of a tool in tools, not {short_repr(request.tool_choice)}",
        )


def request_messages(request: LLMRequest) -> tuple[Message, ...]:
    """Return the messages of a request, or its prompt as one message; ``system`` is not included.

    >>> request_messages(LLMRequest(prompt="hello"))
    (Message(role='user', parts=(Text(text='hello'),)),)
    """
    if request.prompt is None:
        return request.messages
    return (Message("user", (Text(request.prompt, stays=request.stays),)),)


def is_growing(request: LLMRequest) -> bool:
    """Return whether later requests probably begin like this one: it is part of a conversation or of a tool loop.

    >>> is_growing(LLMRequest(prompt="hello")), is_growing(LLMRequest(prompt="hello", conversation="c"))
    (False, True)
    """
    if request.conversation is not None:
        return True
    return any(message.role == "assistant" for message in request.messages[:-1])  # the last may be a beginning
