"""Keys and tokens: types that never show them, their validation, and their removal from texts."""

import hmac
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, Final, NoReturn, TypeAlias, final
from urllib.parse import quote, quote_plus

import attrs

from llm_effects.values.validation import invalid, is_a

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

    def __getstate__(self) -> NoReturn:
        self.__reduce__()

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self


def _bytes(text: str) -> bytes:
    # Environment variables may contain bytes that are not UTF-8; Python represents them as single surrogates.
    return text.encode("utf-8", "surrogatepass")


_KEYS: Final = re.compile(r"\b(?:sk|rk|pk|gsk|xai)[-_][\w*-]{6,}|\bAIza[\w-]{6,}", re.IGNORECASE)
_BEARERS: Final = re.compile(r"(?<=Bearer )\S+", re.IGNORECASE)


def scrub(text: str, *secrets: str | Secret) -> str:
    """Mask the given secrets, and anything that looks like a key, in a text from outside.

    >>> scrub("Incorrect API key provided: sk-abc123456789")
    'Incorrect API key provided: ***'
    """
    texts = (reveal(secret) for secret in secrets)
    return mask_all(text, sorted(filter(None, texts), key=len, reverse=True))


def mask_all(text: str, secrets: Iterable[str]) -> str:
    """Mask secrets, of which the longest comes first, and anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _KEYS.sub(MASK, text)
    return _BEARERS.sub(MASK, text) if " " in text else text  # a name or an id has no space


_KEY_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
_KEY_NAME: Final = re.compile(r"key|token|secret|auth|cookie|passw|session|signature|credential", re.IGNORECASE)
_MIN_LENGTH: Final = 8  # characters: masking a header value such as 1 would garble every text
_MIN_WORDS: Final = 12  # characters of a key without digits: servers that need none get keys such as not-needed


def secrets_of_environment(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of the variables whose names say that they are secrets, and their encodings.

    >>> secrets_of_environment({"MY_API_KEY": "k-12345678", "LANG": "C.UTF-8"})  # doctest: +ELLIPSIS
    ('k-12345678', '6b2d3132333435363738', ...
    """
    return tuple(
        form
        for name, text in environ.items()
        if _KEY_NAME.search(name) and len(text) >= _MIN_LENGTH
        for form in (text, *_encodings(text))
    )


_Headers: TypeAlias = Iterable[tuple[str, str | Secret]]


def secret_values(headers: _Headers) -> tuple[str, ...]:
    """Return the secrets among headers for ``scrub``: as they are, without their scheme, and encoded.

    The value of a cookie and the password of ``Basic`` are secrets by themselves.

    >>> secret_values([("authorization", Secret("Bearer k1")), ("accept", "*/*"), ("x-version", Secret("2"))])
    ('Bearer k1', 'k1')
    >>> {"theme", "a/b", "12%2F3"} & set(secret_values([("cookie", Secret("theme=a/b; sid=12/3"))]))
    {'a/b'}
    """
    secrets = ((name.lower(), value.reveal()) for name, value in headers if isinstance(value, Secret))
    return tuple(
        dict.fromkeys(
            form
            for name, text in secrets
            for piece in _pieces(name, text)
            for form in (piece, *_encodings(piece))
            if name in _KEY_HEADERS or len(form) >= _MIN_LENGTH
        )
    )


def key_forms(headers: _Headers) -> tuple[str, ...]:
    """Return the forms of those secrets that are keys beyond doubt, the longest first: for texts that mean something.

    A header such as ``x-tenant`` is a secret too, but its value may be a word that an answer needs.

    >>> key_forms([("x-tenant", Secret("production")), ("x-api-key", Secret("k-12345678"))])[-1]
    'k-12345678'
    """
    keys = [(name, value) for name, value in headers if name.lower() in _KEY_HEADERS or _KEY_NAME.search(name)]
    return tuple(sorted(filter(_is_key, secret_values(keys)), key=len, reverse=True))


def _is_key(text: str) -> bool:
    least = _MIN_LENGTH if any(map(str.isdigit, text)) else _MIN_WORDS
    return len(text) >= least


def _pieces(name: str, text: str) -> Iterator[str]:
    scheme, _, rest = text.strip().partition(" ")
    yield text
    yield from text.split()[-1:]
    if scheme.lower() == "basic":
        yield from _login(rest.strip())
    if name == "cookie":
        yield from (value for pair in text.split(";") if (value := pair.partition("=")[2].strip()))


def _login(encoded: str) -> Iterator[str]:
    """Yield the user name with the password, and the password, of ``Basic`` credentials."""
    with suppress(ValueError):
        login = b64decode(encoded, validate=True).decode()
        yield login
        yield from filter(None, (login.partition(":")[2],))


_SCHEMES: Final = ("bearer ", "basic ")
_HTML: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})
"""What ``html.escape`` does, whose module loads 2,000 other entities."""


def _encodings(text: str) -> Iterator[str]:
    """Yield the usual encodings of a text, as servers and proxies repeat it: long enough not to match by accident."""
    if text.lower().startswith(_SCHEMES):
        return  # only what follows is secret
    data = _bytes(text)
    encoded = (
        quote(data, safe=""),
        quote_plus(data),
        json.dumps(text)[1:-1],
        text.translate(_HTML),
        data.hex(),
        data.hex().upper(),
        *(form for offset in range(3) for form in _base64_forms(data, offset)),
    )
    yield from (form for form in encoded if len(form) >= _MIN_LENGTH and form != text)


def _base64_forms(data: bytes, offset: int) -> tuple[str, str]:
    """Return what base64 makes of some bytes after ``offset`` others, whatever stands before and after them."""
    whole = b64encode(bytes(offset) + data).decode()
    rest = (offset + len(data)) % 3
    inner = whole[(0, 2, 3)[offset] : len(whole) - (0, 3, 2)[rest]]
    return inner, inner.translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")


_SECRET_NAME: Final = re.compile(r"auth|key|token|secret|passw|cookie|credential|signature", re.IGNORECASE)


def public_headers(headers: Iterable[tuple[str, Secret]]) -> tuple[tuple[str, str], ...]:
    """Return the headers whose names do not suggest a secret, sorted, for a digest.

    >>> public_headers([("X-Tenant", Secret("a")), ("x-api-key", Secret("k1")), ("Cookie", Secret("c"))])
    (('x-tenant', 'a'),)
    """
    return tuple(sorted((name.lower(), value.reveal()) for name, value in headers if not _SECRET_NAME.search(name)))


FreshKey: TypeAlias = str | Secret | tuple[str | Secret, float]
"""A key, or a pair of a key and its lifetime in seconds."""

KeySource: TypeAlias = Callable[[], FreshKey | Awaitable[FreshKey]]
"""A function, sync or async, that returns a key for the next calls."""


@final
class RotatingKey:
    """A key that ``source`` returns when one is needed: at first, at the end of its lifetime, after a rejection.

    ``source`` takes no argument, may be async, and returns the key or ``(key, seconds)``. Without a lifetime a key is
    used until a server rejects it. Each object keeps one key, for all event loops and threads; give the same object to
    several models that share a key. It stays hidden as a ``Secret`` does. ``masks`` are the forms of the current and
    the previous key for ``scrub``, and ``sure_masks`` those for texts that mean something, as in ``key_forms``.

    >>> key = RotatingKey(lambda: ("token-1", 3600))
    >>> key, f"{key}"
    (RotatingKey('***'), '***')
    """

    __slots__ = ("_ends", "_kept", "_previous", "flight", "lock", "masks", "source", "sure_masks")

    def __init__(self, source: KeySource) -> None:
        self.source: KeySource = source
        self.lock: Lock = Lock()
        self.flight: object | None = None
        self.masks: tuple[str, ...] = ()
        self.sure_masks: tuple[str, ...] = ()
        self._kept: Secret | None = None
        self._previous: Secret | None = None
        self._ends: datetime | None = None

    def usable(self, now: datetime) -> Secret | None:
        """Return the kept key, unless there is none, its lifetime has ended, or a server rejected it."""
        return self._kept if self._ends is None or now < self._ends else None

    def keep(self, key: Secret, asked: datetime, seconds: float | None) -> None:
        """Keep a key for some ``seconds`` after it was ``asked`` for; the previous one stays masked in texts."""
        if key != self._kept:
            self._previous = self._kept
        self._kept = key
        self._ends = None if seconds is None else asked + timedelta(seconds=min(seconds, _LONGEST_S))
        self.masks = _masks_of(filter(None, (self._kept, self._previous)))
        self.sure_masks = tuple(filter(_is_key, self.masks))

    def reject(self, key: Secret, now: datetime) -> None:
        """Use a key that a server rejected no longer, unless another one is kept already."""
        with self.lock:
            if key == self._kept:
                self._ends = now

    def __repr__(self) -> str:
        return f"RotatingKey({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __reduce__(self) -> NoReturn:
        msg = "a RotatingKey cannot be pickled: load the configuration again in the other process"
        raise TypeError(msg)

    def __getstate__(self) -> NoReturn:
        self.__reduce__()

    def __copy__(self) -> "RotatingKey":
        return self

    def __deepcopy__(self, memo: object) -> "RotatingKey":
        return self


_LONGEST_S: Final = 10 * 365 * 86_400  # seconds: more may pass the last date that Python knows


def _masks_of(keys: Iterable[Secret]) -> tuple[str, ...]:
    forms = {form for key in keys for form in secret_values((("x-api-key", key),))}
    return tuple(sorted(forms, key=len, reverse=True))


def to_key(value: "str | Secret | RotatingKey | KeySource | None") -> "Secret | RotatingKey | None":
    """Return a key as a ``Secret``, and a function that returns one as a ``RotatingKey``."""
    if isinstance(value, str):
        return to_secret("api_key", value)
    return RotatingKey(value) if callable(value) else value


def to_secret(name: str, key: str) -> Secret:
    """Return a key as a ``Secret``; the name of a variable is rejected, since only a configuration's text has those.

    >>> to_secret("api_key", "env:THE_KEY")
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: api_key: only load_config reads env:...: write os.environ["THE_KEY"]
    """
    if key.startswith("env:"):
        variable = key.removeprefix("env:").strip()
        shown = variable if variable.isidentifier() else "NAME"  # it may be a key by mistake
        invalid(name, f'only load_config reads env:...: write os.environ["{shown}"]')
    return Secret(key)


_PLACEHOLDER: Final = r"<.*>|\$.*|\{.*|your.*key.*|.*\.\.\..*|change.?me|none|null|undefined"
_HEADER_NAME: Final = r"[\w!#$%&'*+.^`|~-]+"


def valid_key(_: object, attribute: "attrs.Attribute[Any]", key: object) -> None:
    """Reject a key that no server accepts, without showing it."""
    if key is None or (isinstance(key, RotatingKey) and attribute.name == "api_key"):
        return
    if not isinstance(key, Secret):
        invalid(attribute.name, f"must be a text or a Secret, not {type(key).__name__}")
    if problem := key_problem(key.reveal()):
        invalid(attribute.name, problem)


def key_problem(text: str) -> str | None:
    """Return the problem of a key that no server accepts, without showing it.

    >>> key_problem("sk-1 "), key_problem("sk-1")
    ('contains a space, a line break or a character outside ASCII: copy the key again', None)
    """
    if not text.strip():
        return "must not be blank: leave it out for a server that needs none"
    if not text.isascii() or any(character.isspace() or not character.isprintable() for character in text):
        return "contains a space, a line break or a character outside ASCII: copy the key again"
    if re.fullmatch(_PLACEHOLDER, text, re.IGNORECASE):
        return "is a placeholder: give the key itself, or leave it out for a server that needs none"
    return None


def valid_headers(_: object, attribute: "attrs.Attribute[Any]", headers: tuple[tuple[str, object], ...]) -> None:
    """Reject headers that would corrupt a request, and name all of them."""
    remedies = [remedy for name, value in headers if (remedy := _header_remedy(name, value))]
    if remedies:
        invalid(attribute.name, "; ".join(remedies))


_FRAMING: Final = frozenset(
    ("connection", "content-encoding", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade")
)
"""Headers that describe the message on the wire: a wrong one breaks the connection."""


def _header_remedy(name: str, value: object) -> str | None:
    if not re.fullmatch(_HEADER_NAME, name, re.ASCII):
        return f"{name!r} is not a valid header name: use letters, digits and dashes"
    if name.lower() in _FRAMING:
        return f"{name} is set by the library itself: leave it out"
    if not isinstance(value, Secret):
        return f"{name} must be a text or a Secret, not {type(value).__name__}"
    valid = value.reveal().isascii() and value.reveal().isprintable()
    return None if valid else f"{name} contains a line break or a character outside ASCII: write it on one line"


_PASSWORD: Final = re.compile(r"(?<=://).*@|(?<=password=)[^&]*", re.IGNORECASE)


def hide_password(url: str | Secret | None) -> str:
    """Return the ``repr`` of a URL without its password."""
    return repr(url and shown_url(url))


def shown_url(url: str | Secret) -> str:
    """Return a URL without its password.

    >>> shown_url(Secret("postgresql://app:hunter2@host/talks"))
    'postgresql://***@host/talks'
    """
    return _PASSWORD.sub(lambda match: MASK + "@" * match[0].endswith("@"), reveal(url))


_LOGIN: Final = r"(?<=://)[^/?#]+@"


def without_login(url: str | None) -> str | None:
    """Return a URL that must not hold a user name and a password, with a mask in their place.

    >>> without_login("https://me:hunter2@host/v1")
    'https://***@host/v1'
    """
    return re.sub(_LOGIN, f"{MASK}@", url) if is_a(url, str) and url else url


def to_url(url: str | Secret) -> str | Secret:
    """Return a URL as a ``Secret`` if it holds a password, else as a text.

    >>> to_url("redis://:hunter2@host"), to_url("memory://")
    (Secret('***'), 'memory://')
    """
    text = url.reveal() if isinstance(url, Secret) else url
    return Secret(text) if is_a(text, str) and _PASSWORD.search(text) else text


def reveal(value: str | Secret) -> str:
    """Return the text of a value that may be secret."""
    return value.reveal() if isinstance(value, Secret) else value


def valid_url(_: object, attribute: "attrs.Attribute[Any]", url: object) -> None:
    """Reject a URL that is no text or is blank, without showing it."""
    text = url.reveal() if isinstance(url, Secret) else url
    if not isinstance(text, str):
        invalid(attribute.name, f"must be a text, not {type(url).__name__}")
    if not text.strip():
        invalid(attribute.name, "must not be blank: give some text, or leave it out")
