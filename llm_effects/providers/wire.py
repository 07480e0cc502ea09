"""What goes over the wire and what comes back, as plain values."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, final

from attrs import field, frozen

from llm_effects.values.secrets import Secret
from llm_effects.values.validation import number

CLOSING_S: Final = 0.1
"""How long closing a connection may take, in seconds; no cancellation cuts it short, so a call may end so late."""


@final
@frozen(kw_only=True)
class WireRequest:
    """What goes out: ``warnings`` tells what of the request was dropped on the way."""

    url: str
    headers: tuple[tuple[str, str | Secret], ...]
    body: bytes = field(repr=False)
    warnings: tuple[str, ...] = ()


@final
@frozen(kw_only=True)
class WireResponse:
    """What came in: header names in lower case, the body decoded from its transfer.

    ``received`` is when, by the wall clock and with its zone: dates in headers count from it.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict[str, str])
    body: bytes = field(default=b"", repr=False)
    received: datetime | None = None


@final
@frozen(kw_only=True)
class Timeouts:
    """How long one step on the wire may take, in seconds.

    ``connect_s`` is for the connection with its TLS, ``send_s`` for each piece sent, ``read_s`` for each silence
    of the server. They do not bound a call: whoever makes it does, with a cancel scope.

    >>> Timeouts(connect_s=2).read_s
    60.0
    """

    connect_s: float = field(default=5.0, validator=number(above=0))
    read_s: float = field(default=60.0, validator=number(above=0))
    send_s: float = field(default=30.0, validator=number(above=0))
