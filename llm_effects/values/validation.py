"""Converters and attrs validators whose errors name the field and the remedy."""

import inspect
import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache, partial, wraps
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from socket import inet_aton
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NewType, NoReturn, TypeAlias, TypeGuard, TypeVar, cast, get_args
from urllib.parse import unquote

import attrs

JSONObject: TypeAlias = Mapping[str, object]
"""A JSON object, validated by ``llm_effects.values.json``."""

_Item = TypeVar("_Item")
_Choice = TypeVar("_Choice", bound=Enum)

# Every call makes some, and ``list[str]()`` takes eight times as long as ``list()``, half of a microsecond.
new_list: Final = cast("Callable[[], list[Any]]", list)
new_dict: Final = cast("Callable[[], dict[Any, Any]]", dict)

# For values that every call makes for itself: type checkers reject a change of one, but nothing does at run time, since
# attrs sets each field of a frozen value by a call. With five such classes the layers take 4 microseconds of 90 less.
# mypy: implicit-reexport
if TYPE_CHECKING:
    from attrs import frozen as frozen_in_types  # pyright: ignore[reportUnusedImport]
else:
    frozen_in_types = partial(attrs.define, unsafe_hash=True)

Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]
"""An attrs validator."""


class InvalidValue(ValueError):  # noqa: N818 - named like the tagged errors
    """An invalid value; the message names the field and the remedy.

    Raised by constructors only, where a wrong literal is a bug. For external data use ``checked``, which returns the
    same problem as an ``InvalidRequest``.

    >>> from llm_effects import Preferences
    >>> Preferences(max_tokens=-1)
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: max_tokens: must be at least 1, not -1
    """


def invalid(field: str, remedy: str) -> NoReturn:
    """Raise ``InvalidValue`` with the name of the field and the remedy."""
    msg = f"{field}: {remedy}"
    raise InvalidValue(msg)


def explain_arguments(
    kind: type, usage: str, hints: Mapping[str, str] | None = None, *, trust_defaults: bool = False
) -> None:
    """Make the constructor of an attrs class raise a ``TypeError`` that names the remedy for wrong arguments.

    ``usage`` shows a right call, ``hints`` the right argument for names that people expect. Where every field has a
    default, ``trust_defaults`` leaves out converting and validating those that are not given.

    >>> from llm_effects import Message
    >>> Message(role="user", content="why?")
    Traceback (most recent call last):
        ...
    TypeError: Message has no argument 'content': the text is its parts, as in Message("user", "why?")
    """
    construct: Callable[..., None] = vars(kind)["__init__"]
    trusting = _TrustingConstructor.of(kind) if trust_defaults else None

    @wraps(construct)
    def constructed(self: object, *args: object, **named: object) -> None:
        try:
            if trusting is None or args or not named.keys() <= trusting.fields.keys():
                construct(self, *args, **named)
            else:
                trusting.construct(self, named)
        except TypeError as problem:
            if problem.__traceback__ is None or problem.__traceback__.tb_next is not None:
                raise  # of a converter or a validator
            raise TypeError(_argument_remedy(kind, usage, hints or {}, args, named)) from None

    del constructed.__wrapped__  # help() shows the signature of the class
    setattr(kind, "__signature__", _Signature(construct))  # noqa: B010
    setattr(kind, "__init__", constructed)  # noqa: B010 - type checkers go on to see the constructor of attrs


@attrs.frozen(eq=False, repr=False)
class _TrustingConstructor:
    """The constructor of a class with slots: as that of attrs, but it converts and validates only what is given.

    A request has 15 fields, of which one or two are usually given: it takes 3 microseconds, the one of attrs takes 6.
    """

    fields: "Mapping[str, attrs.Attribute[Any]]"
    converters: Mapping[str, Callable[[object], object] | None]
    setters: Mapping[str, Callable[[object, object], None]]
    defaults: tuple[tuple[Callable[[object, object], None], object], ...]
    factories: tuple[tuple[Callable[[object, object], None], Callable[[], object]], ...]
    finish: Callable[[object], None]

    @classmethod
    def of(cls, kind: type) -> "_TrustingConstructor":
        """Return the constructor of a class whose fields all have defaults."""
        fields = {each.name: each for each in attrs.fields(kind)}
        setters = {name: vars(kind)[name].__set__ for name in fields}
        factories = {name: each.default.factory for name, each in fields.items() if is_a(each.default, _FACTORY)}
        return cls(
            fields,
            {name: each.converter for name, each in fields.items()},
            setters,
            tuple((setters[name], each.default) for name, each in fields.items() if name not in factories),
            tuple((setters[name], factory) for name, factory in factories.items()),
            getattr(kind, "__attrs_post_init__", _finished),
        )

    def construct(self, value: object, given: Mapping[str, object]) -> None:
        """Set every field of a new value."""
        for put, default in self.defaults:
            put(value, default)
        for put, factory in self.factories:
            put(value, factory())
        checks: list[tuple[Validator, attrs.Attribute[Any], object]] = []
        for name, item in given.items():
            field, convert = self.fields[name], self.converters[name]
            if item is not field.default:
                converted = item if convert is None else convert(item)
                self.setters[name](value, converted)
                if field.validator is not None:
                    checks.append((field.validator, field, converted))
        for check, field, converted in checks:
            check(value, field, converted)
        self.finish(value)


_FACTORY: Final[type] = cast("type", attrs.Factory)


def _finished(_: object) -> None:
    """Do nothing more."""


@attrs.frozen(eq=False, repr=False)
class _Signature:
    """The signature of a class for people, made when it is asked for: without modules, ``...`` for a made default."""

    construct: Callable[..., None]

    def __get__(self, owner: object, kind: type) -> inspect.Signature:
        _, *parameters = inspect.signature(self.construct).parameters.values()
        return inspect.Signature([_readable(each) for each in parameters])


@attrs.frozen(repr=False)
class _Plain:
    text: str

    def __repr__(self) -> str:
        return self.text


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", inspect.formatannotation(parameter.annotation))
    default = _Plain("...") if parameter.default is attrs.NOTHING else parameter.default
    return parameter.replace(annotation=_Plain(annotation), default=default)


def _argument_remedy(
    kind: type, usage: str, hints: Mapping[str, str], args: tuple[object, ...], named: Mapping[str, object]
) -> str:
    fields = [each for each in attrs.fields(kind) if each.init]
    for name in named:
        if name not in {each.name for each in fields}:
            known = [each.name for each in fields]
            near = _closest(name, (*known, *hints))
            remedy = (hints.get(near[0]) if near else None) or suggestion(name, known, "its arguments")
            return f"{kind.__name__} has no argument {name!r}: {remedy}"
    places = sum(not each.kw_only for each in fields)
    if len(args) > places:
        taken = f"at most {places} arguments without a name" if places else "its arguments by name"
        return f"{kind.__name__} takes {taken}, not {type(args[places]).__name__} alone: write {usage}"
    missing = [each.name for each in fields[len(args) :] if each.default is attrs.NOTHING and each.name not in named]
    return f"{kind.__name__} needs {' and '.join(missing)}: write {usage}"


def join_path(path: str, key: str | int) -> str:
    """Return the path of a key or an index within another path.

    >>> join_path(join_path("models", "gpt 4"), 1)
    'models."gpt 4"[1]'
    """
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)  # quoted as in TOML
    return f"{path}.{name}" if path else name


def suggestion(name: str, known: Iterable[str], these: str = "the keys here") -> str:
    """Return a hint at the closest known name, or else at all of them.

    >>> suggestion("gtp", ("gpt", "claude")), suggestion("x", ("gpt", "claude"), "the models")
    ('did you mean gpt?', 'the models are gpt, claude')
    """
    names = tuple(known)
    matches = _closest(name, names)
    return f"did you mean {matches[0]}?" if matches else f"{these} are {', '.join(names)}"


def _closest(name: str, names: Sequence[str]) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, names, n=1)


def short_repr(value: object) -> str:
    """Return a short text for a value in a message, without calling a ``repr`` of foreign classes.

    >>> short_repr("blue"), short_repr(-1), short_repr(10**5000), short_repr([1])
    ("'blue'", '-1', 'a number of more than 64 bits', 'list')
    """
    if isinstance(value, str):
        return reprlib.repr(str(value))
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # Python may even refuse to convert it to text
    return repr(value) if isinstance(value, bool | int | float | None) else type(value).__name__


Printable = NewType("Printable", str)
"""A text from outside, fit to be shown on one line: by ``printable``."""

_REPLACED: Final = {"Cf": "", "Cc": " ", "Zl": " ", "Zp": " ", "Zs": " "}
"""What replaces characters of these categories; the others that cannot be printed become U+FFFD."""


def printable(text: str) -> Printable:
    r"""Return a text from outside without what steers a terminal, a log or a reader's eye.

    Control characters and line breaks become spaces; bidirectional marks and other invisible characters are removed.

    >>> printable("ok\n\x1b[31mERROR \u202edaolyap")
    'ok  [31mERROR daolyap'
    """
    if text.isprintable():
        return Printable(text)
    return Printable("".join(each if each.isprintable() else _replacement(each) for each in text))


def _replacement(character: str) -> str:
    return _REPLACED.get(unicodedata.category(character), "\ufffd")


METADATA_HOST: Final = "is a link-local address or a metadata service, where clouds serve the credentials of machines"

_METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_METADATA: Final = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16",
            "fe80::/10",
            "fd00:ec2::254/128",  # AWS
            "fd20:ce::254/128",  # Google
            "fd00:c1::a9fe:a9fe/128",  # Oracle
            "100.100.100.200/32",  # Alibaba
            "168.63.129.16/32",  # Azure
        ),
    )
)
_EMBEDDING: Final = tuple(
    map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
"""Networks of IPv6 that hold an IPv4 address in their last 32 bits: compatible, mapped, translated."""


def is_metadata_host(host: str) -> bool:
    """Return whether a host is a link-local address or the metadata service of a cloud, however it is spelt.

    >>> [is_metadata_host(host) for host in ("169.254.169.254", "0xA9FEA9FE", "::ffff:169.254.169.254", "a.example")]
    [True, True, True, False]
    """
    name = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").lower()
    name = name.strip("[]").partition("%")[0].rstrip(".")
    return name in _METADATA_NAMES or any(address in network for address in _addresses(name) for network in _METADATA)


def _addresses(name: str) -> Iterator[IPv4Address | IPv6Address]:
    """Yield the address that a host is, in any spelling that resolvers accept, and the one inside it."""
    with suppress(ValueError):
        address = ip_address(name)
        yield address
        if isinstance(address, IPv6Address):
            yield from _embedded(address)
    with suppress(OSError, ValueError):
        yield IPv4Address(inet_aton(name))  # 2852039166, 0xA9FEA9FE, 0251.0376.43518


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    if any(address in network for network in _EMBEDDING):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield address.teredo[1]


def is_a(value: object, kind: type) -> bool:
    """Return whether a value is of a class, also where its static type already says so."""
    return isinstance(value, kind)


def is_table(value: object) -> TypeGuard[Mapping[object, object]]:
    """Return whether a value is a table with any keys and values."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Return whether a value is a list or a tuple of any items."""
    return isinstance(value, list | tuple)


def to_tuple(name: str, items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Return the items of a field as a tuple; a bare text is rejected, because it is almost surely a mistake."""
    if type(items) is tuple:
        return cast("tuple[_Item, ...]", items)
    if isinstance(items, str | bytes):
        text = short_repr(items)
        invalid(name, f"must be several values, not the single text {text}: write ({text},)")
    if not is_a(items, Iterable):
        invalid(name, f"must be several values, not {type(items).__name__}")
    return tuple(items)


def to_table(name: str, value: Mapping[str, _Item]) -> dict[str, _Item]:
    """Copy the table of a field, in the same order; its keys must be texts."""
    if not is_a(value, Mapping):
        invalid(name, f"must be a table, not {type(value).__name__}")
    for key in value:
        if not is_a(key, str):
            invalid(name, f"each key must be a text, not {type(key).__name__}")
    return dict(value)


def to_metadata(value: Mapping[str, str]) -> dict[str, str]:
    """Copy the ``metadata`` of a request or a conversation."""
    return to_table("metadata", value)


def to_member(name: str, kind: type[_Choice], value: _Choice | str) -> _Choice:
    """Return a member of an enumeration, by itself or by its text."""
    if isinstance(value, kind):
        return value
    for member in kind:
        if isinstance(value, str) and value == member.value:
            return member
    return invalid(name, f"must be one of {', '.join(member.value for member in kind)}, not {short_repr(value)}")


def _unset(attribute: "attrs.Attribute[Any]", value: object) -> bool:
    return value is None and _is_optional(cast("Hashable", attribute.type))


@cache
def _is_optional(kind: Hashable) -> bool:
    return NoneType in get_args(kind)


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, whole: bool = False
) -> Validator:
    """Return a validator for a finite number of at most 64 bits within bounds."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if _unset(attribute, value):
            return
        if remedy := _number_remedy(value, whole=whole):
            invalid(attribute.name, remedy)
        if not isinstance(value, int | float):
            return
        if value < at_least:
            invalid(attribute.name, f"must be at least {at_least:g}, not {value!r}")
        if value <= above:
            invalid(attribute.name, f"must be above {above:g}, not {value!r}")
        if value > at_most:
            invalid(attribute.name, f"must be at most {at_most:g}, not {value!r}")

    return check


def _number_remedy(value: object, *, whole: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"must be {'a whole number' if whole else 'a number'}, not {short_repr(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value!r}"
    return "must be a number of at most 64 bits" if abs(value) >= 2**63 else ""


def text(*, empty: bool = False) -> Validator:
    """Return a validator for a text, not blank unless ``empty``."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if isinstance(value, str):
            if not empty and not value.strip():
                invalid(attribute.name, "must not be blank: give some text, or leave it out")
        elif not _unset(attribute, value):
            invalid(attribute.name, f"must be a text, not {type(value).__name__}")

    return check


def one_of(*choices: str) -> Validator:
    """Return a validator for one of a few names."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (isinstance(value, str) and value in choices) and not _unset(attribute, value):
            invalid(attribute.name, f"must be one of {', '.join(choices)}, not {short_repr(value)}")

    return check


def each_of(*choices: str) -> Validator:
    """Return a validator for a tuple that holds only some of a few names."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        for index, item in enumerate(value):
            if item not in choices:
                name = join_path(attribute.name, index)
                invalid(name, f"must be one of {', '.join(choices)}, not {short_repr(item)}")

    return check


def instance(kind: type) -> Validator:
    """Return a validator for a value of this class."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, kind) and not _unset(attribute, value):
            remedy = f": write {kind.__name__}(...)" if is_table(value) or attrs.has(kind) else ""
            invalid(attribute.name, f"must be {kind.__name__}, not {type(value).__name__}{remedy}")

    return check


def instances(*kinds: type) -> Validator:
    """Return a validator for a tuple or a table that holds only these classes."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...] | Mapping[str, object]) -> None:
        if not value:
            return
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(item, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                invalid(join_path(attribute.name, key), f"must be {expected}, not {type(item).__name__}")

    return check


# Ids.

MAX_ID_BYTES: Final = 512
"""Longest id or owner, in bytes of UTF-8, that every store can index."""


def check_id(name: str, value: object) -> None:
    """Reject an id that some store could not distinguish; all others are opaque and stored character by character.

    >>> check_id("id", "../../x'; DROP TABLE messages")
    >>> check_id("id", "a" * 513)
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: id: must be at most 512 bytes long
    """
    if not isinstance(value, str):
        invalid(name, f"must be a text, not {type(value).__name__}")
    if not value.strip():
        invalid(name, "must not be blank")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        invalid(name, "must be Unicode without the character NUL")
    if len(value.encode()) > MAX_ID_BYTES:
        invalid(name, f"must be at most {MAX_ID_BYTES} bytes long")


def valid_id(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Reject an id that some store could not distinguish."""
    check_id(attribute.name, value)


valid_owner: Final[Validator] = attrs.validators.optional(valid_id)
"""Rejects the id of an owner that some store could not distinguish; ``None`` is an owner of its own."""
