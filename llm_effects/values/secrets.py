"""Keys and tokens: a type that never shows them, their validation, and their removal from texts."""

import hmac
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn, final

import attrs

from llm_effects.values.validation import invalid

MASK: Final = "***"


@final
class Secret:
    """A key or token that stays hidden in ``repr``, ``str``, ``vars``, pickles and conversions to a dict.

    >>> key = Secret("sk-real")
    >>> key, f"{key}", key.reveal()
    (Secret('***'), '***', 'sk-real')
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text itself, for the header that needs it."""
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
        msg = "a Secret cannot be pickled: load the configuration again in the other process"
        raise TypeError(msg)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self


def _bytes(text: str) -> bytes:
    # Environment variables may contain bytes that are not UTF-8; Python represents them as single surrogates.
    return text.encode("utf-8", "surrogatepass")


_KEYS: Final = re.compile(r"\b(?:sk|rk|pk|gsk|xai)[-_][\w*-]{6,}|\bAIza[\w-]{6,}|(?<=Bearer )\S+", re.IGNORECASE)


def scrub(text: str, *secrets: str) -> str:
    """Mask the given secrets, and anything that looks like a key, in a text from outside.

    >>> scrub("Incorrect API key provided: sk-abc123456789")
    'Incorrect API key provided: ***'
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _KEYS.sub(MASK, text)


_KEY_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key"})
_MIN_LENGTH: Final = 8  # characters: masking a header value such as 1 would garble every text


def secret_values(headers: Iterable[tuple[str, str | Secret]]) -> tuple[str, ...]:
    """Return the secrets among headers for ``scrub``: as they are, and without their scheme.

    >>> secret_values([("authorization", Secret("Bearer k1")), ("accept", "*/*"), ("x-version", Secret("2"))])
    ('Bearer k1', 'k1')
    """
    secrets = ((name, value.reveal()) for name, value in headers if isinstance(value, Secret))
    return tuple(
        form
        for name, text in secrets
        for form in dict.fromkeys((text, *text.split()[-1:]))
        if name.lower() in _KEY_HEADERS or len(form) >= _MIN_LENGTH
    )


_SECRET_NAME: Final = re.compile(r"auth|key|token|secret|passw|cookie|credential|signature", re.IGNORECASE)


def public_headers(headers: Iterable[tuple[str, Secret]]) -> tuple[tuple[str, str], ...]:
    """Return the headers whose names do not suggest a secret, sorted, for a digest.

    >>> public_headers([("X-Tenant", Secret("a")), ("x-api-key", Secret("k1")), ("Cookie", Secret("c"))])
    (('x-tenant', 'a'),)
    """
    return tuple(sorted((name.lower(), value.reveal()) for name, value in headers if not _SECRET_NAME.search(name)))


def to_secret(value: str | Secret | None) -> Secret | None:
    """Return a key as a ``Secret``."""
    return Secret(value) if isinstance(value, str) else value


_PLACEHOLDER: Final = re.compile(r"<.*>|\$.*|\{.*|your.*key.*|.*\.\.\..*|change.?me|none|null|undefined", re.IGNORECASE)
_HEADER_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def valid_key(_: object, attribute: "attrs.Attribute[Any]", key: object) -> None:
    """Reject a key that no server accepts, without showing it."""
    if key is None:
        return
    if not isinstance(key, Secret):
        invalid(attribute.name, f"must be a text or a Secret, not {type(key).__name__}")
    text = key.reveal()
    if not text.strip():
        invalid(attribute.name, "must not be blank: leave it out for a server that needs none")
    if not text.isascii() or any(character.isspace() or not character.isprintable() for character in text):
        invalid(attribute.name, "contains a space, a line break or a character outside ASCII: copy the key again")
    if _PLACEHOLDER.fullmatch(text):
        invalid(attribute.name, "is a placeholder: give the key itself, or leave it out for a server that needs none")


def valid_headers(_: object, attribute: "attrs.Attribute[Any]", headers: tuple[tuple[str, object], ...]) -> None:
    """Reject headers that would corrupt a request, and name all of them."""
    remedies = [remedy for name, value in headers if (remedy := _header_remedy(name, value))]
    if remedies:
        invalid(attribute.name, "; ".join(remedies))


def _header_remedy(name: str, value: object) -> str | None:
    if not _HEADER_NAME.fullmatch(name):
        return f"{name!r} is not a valid header name: use letters, digits and dashes"
    if not isinstance(value, Secret):
        return f"{name} must be a text or a Secret, not {type(value).__name__}"
    valid = value.reveal().isascii() and value.reveal().isprintable()
    return None if valid else f"{name} contains a line break or a character outside ASCII: write it on one line"


_PASSWORD: Final = re.compile(r"(?<=://).*@|(?<=password=)[^&]*", re.IGNORECASE)


def hide_password(url: str | None) -> str:
    """Return the ``repr`` of a URL without its password."""
    return repr(url and _PASSWORD.sub(lambda match: MASK + "@" * match[0].endswith("@"), url))
