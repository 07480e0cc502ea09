"""Requests and responses on the wire, as plain values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, final

from attrs import field, frozen

from llm_effects.values.secrets import Secret, secret_values
from llm_effects.values.validation import number
from llm_effects.values.value import Value

CLOSING_S: Final = 0.1
"""Seconds that closing a connection may take. Cancellation does not cut it short, so a call may end this much late."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class WireRequest(Value):
    """An HTTP request; ``warnings`` list what was dropped or changed to encode it.

    ``key`` is the header with a key that rotates: headers are prepared once for all requests, this one for each.
    """

    url: str
    headers: tuple[tuple[str, str | Secret], ...]
    body: bytes = field(repr=False)
    warnings: tuple[str, ...] = ()
    key: tuple[str, Secret] | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that the request carries, in every form, for ``scrub``."""
        return secret_values(self.headers if self.key is None else (*self.headers, self.key))


@final
@frozen(kw_only=True, eq=False, repr=False)
class WireResponse(Value):
    """An HTTP response: header names in lower case, the body without its transfer encoding.

    ``received`` is the time of arrival by the wall clock, with its time zone: dates in headers count from it.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict[str, str])
    body: bytes = field(default=b"", repr=False)
    received: datetime | None = None


@final
@frozen(kw_only=True, eq=False, repr=False)
class Timeouts(Value):
    """Time limits for the steps of one exchange, in seconds.

    ``connect_s`` covers the connection and its TLS handshake, ``send_s`` each piece sent, ``read_s`` each silence of
    the server, unless it is ``None`` because the caller does. They do not bound the whole call: the caller does, with a
    cancel scope.

    >>> Timeouts(connect_s=2).read_s
    60.0
    """

    connect_s: float = field(default=5.0, validator=number(above=0))
    read_s: float | None = field(default=60.0, validator=number(above=0))
    send_s: float = field(default=30.0, validator=number(above=0))
