"""Keys and tokens: a type that never shows them, the rules they keep, and the masking of texts from outside."""

import hmac
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn, final

import attrs

from llm_effects.values.validation import invalid

MASK: Final = "***"


@final
class Secret:
    """A key or token that never shows: not in ``repr``, ``str``, ``vars``, pickles or copies to a dict.

    >>> key = Secret("sk-real")
    >>> key, f"{key}", key.reveal()
    (Secret('***'), '***', 'sk-real')
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Give the text itself, for the one header that needs it."""
        return self.__text

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(_bytes(self.__text), _bytes(other.__text))

    def __hash__(self) -> int:
        return hash((Secret, self.__text))

    def __reduce__(self) -> NoReturn:
        msg = "a Secret is not pickled: load the configuration again on the other side"
        raise TypeError(msg)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self


def _bytes(text: str) -> bytes:
    # An environment variable may hold bytes that are no UTF-8; Python keeps them as lone surrogates.
    return text.encode("utf-8", "surrogatepass")


_KEYS: Final = re.compile(r"\b(?:sk|rk|pk|gsk|xai)[-_][\w*-]{6,}|\bAIza[\w-]{6,}|(?<=Bearer )\S+", re.IGNORECASE)


def scrub(text: str, *secrets: str) -> str:
    """Mask given secrets, and whatever looks like a key, in a text from outside.

    >>> scrub("Incorrect API key provided: sk-abc123456789")
    'Incorrect API key provided: ***'
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _KEYS.sub(MASK, text)


_KEY_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key"})
_SHORTEST: Final = 8  # letters: masking the 1 of another header would garble every text


def secret_values(headers: Iterable[tuple[str, str | Secret]]) -> tuple[str, ...]:
    """Give the secrets among headers for ``scrub``, as they may come back: whole, and without their scheme.

    >>> secret_values([("authorization", Secret("Bearer k1")), ("accept", "*/*"), ("x-version", Secret("2"))])
    ('Bearer k1', 'k1')
    """
    secrets = ((name, value.reveal()) for name, value in headers if isinstance(value, Secret))
    return tuple(
        form
        for name, text in secrets
        for form in dict.fromkeys((text, *text.split()[-1:]))
        if name.lower() in _KEY_HEADERS or len(form) >= _SHORTEST
    )


def to_secret(given: str | Secret | None) -> Secret | None:
    """Hide a key that comes as a text."""
    return Secret(given) if isinstance(given, str) else given


_TEMPLATE: Final = re.compile(r"<.*>|\$.*|\{.*|your.*key.*|.*\.\.\..*|change.?me|none|null|undefined", re.IGNORECASE)
_HEADER_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def valid_key(_: object, attribute: "attrs.Attribute[Any]", key: object) -> None:
    """Refuse a key that no server can take, without showing it."""
    if key is None:
        return
    if not isinstance(key, Secret):
        invalid(attribute.name, f"must be a text or a Secret, not {type(key).__name__}")
    shown = key.reveal()
    if not shown.strip():
        invalid(attribute.name, "must not be blank: leave it out for a server that needs none")
    if not shown.isascii() or any(letter.isspace() or not letter.isprintable() for letter in shown):
        invalid(attribute.name, "holds a space, a line break or a letter outside ASCII: copy the key again")
    if _TEMPLATE.fullmatch(shown):
        invalid(attribute.name, "is a placeholder: give the key itself, or leave it out for a server that needs none")


def valid_headers(_: object, attribute: "attrs.Attribute[Any]", headers: tuple[tuple[str, object], ...]) -> None:
    """Refuse headers that would break a request apart; all of them are named."""
    remedies = [remedy for name, value in headers if (remedy := _header_remedy(name, value))]
    if remedies:
        invalid(attribute.name, "; ".join(remedies))


def _header_remedy(name: str, value: object) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return f"{name!r} is no name of a header: use letters, digits and dashes"
    if not isinstance(value, Secret):
        return f"{name} must be a text or a Secret, not {type(value).__name__}"
    plain = value.reveal().isascii() and value.reveal().isprintable()
    return None if plain else f"{name} holds a line break or a letter outside ASCII: write it on one line"


_PASSWORD: Final = re.compile(r"(?<=://).*@|(?<=password=)[^&]*", re.IGNORECASE)


def hide_password(url: str | None) -> str:
    """Show a URL without the password that it may hold."""
    return repr(url and _PASSWORD.sub(lambda found: MASK + "@" * found[0].endswith("@"), url))
