"""From a fault to the error it is: one small builder for each kind."""

import re
from collections.abc import Callable
from typing import TypeAlias, TypedDict

from llm_effects.errors import (
    AuthenticationFailed,
    Cause,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
)
from llm_effects.providers.error_bodies import Fault, filtered
from llm_effects.providers.masking import masked_name
from llm_effects.providers.reading import record, whole

Found: TypeAlias = "re.Match[str] | None"
"""Where a row's pattern struck, if it has one."""

Build: TypeAlias = Callable[[Fault, Found], LLMError]
"""Makes the error that a fault is."""


class _Common(TypedDict):
    model: str
    provider: str
    status: int
    code: str | None
    request_id: str | None
    retry_after: float | None
    should_retry: bool | None


def _common(fault: Fault) -> _Common:
    return _Common(
        model=fault.target.name,
        provider=fault.target.preset.name,
        status=fault.status,
        code=fault.code,
        request_id=fault.request_id,
        retry_after=fault.retry_after,
        should_retry=fault.should_retry,
    )


def overloaded(fault: Fault, _: Found = None) -> LLMError:
    """The server is there and cannot now."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="overloaded")


def loading(fault: Fault, _: Found = None) -> LLMError:
    """The model is being loaded."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="loading")


def unknown_model(fault: Fault, _: Found = None) -> LLMError:
    """The server has no such model, or not for this key."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="unknown_model")


def limited(fault: Fault, _: Found = None) -> LLMError:
    """Too many requests or tokens: slow down."""
    return RateLimitExceeded(**_common(fault), message=_text(fault))


def spent(fault: Fault, _: Found = None) -> LLMError:
    """The money or the plan is used up: waiting is no use."""
    return RateLimitExceeded(**_common(fault), message=_text(fault), quota=True)


def wrong_request(fault: Fault, _: Found = None) -> LLMError:
    """The request itself is wrong."""
    return InvalidRequest(**_common(fault), message=_text(fault))


def unauthorised(fault: Fault, _: Found = None) -> LLMError:
    """The key is refused."""
    return AuthenticationFailed(**_common(fault), message=_text(fault))


def refused(fault: Fault, _: Found = None) -> LLMError:
    """A content filter struck."""
    inner = record(fault.detail.get("innererror"))
    category = masked_name(fault.target, filtered(inner.get("content_filter_result")))
    return ContentRefused(**_common(fault), message=_text(fault), category=category or fault.code)


def late(fault: Fault, _: Found = None) -> LLMError:
    """The server or a gateway gave up waiting."""
    cause = Cause(f"HTTP {fault.status}", fault.text)
    return RequestTimeout(**_common(fault), phase="server", cause=cause)


def intermediary(fault: Fault, _: Found = None) -> LLMError:
    """Something between here and the provider answered in its place."""
    return NetworkError(**_common(fault), message=_text(fault), phase="intermediary")


def barred(fault: Fault, _: Found = None) -> LLMError:
    """A proxy wants to know who asks."""
    remedy = "a proxy on the way wants a name and a password: set it up, or go round it"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def wants_tls(fault: Fault, _: Found = None) -> LLMError:
    """The port is for TLS and was asked without."""
    remedy = "the server speaks TLS there: begin the endpoint with https://"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def no_model_server(fault: Fault, _: Found = None) -> LLMError:
    """Some other program has the port of a model server on this machine."""
    remedy = f"what answers at {fault.target.endpoint} is not a model server: check the endpoint"
    return NetworkError(**_common(fault), message=f"{remedy} ({_text(fault)})", phase="intermediary")


def unsupported(fault: Fault, _: Found = None) -> LLMError:
    """The server was started without what is asked of it; it says how to start it."""
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {_text(fault)}")


def wrong_endpoint(fault: Fault, _: Found = None) -> LLMError:
    """There is nothing of the kind at the endpoint."""
    remedy = "nothing answers there; check the endpoint, which usually ends in /v1"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def redirected(fault: Fault, _: Found = None) -> LLMError:
    """The endpoint points elsewhere; a prompt and a key do not go where nobody sent them."""
    remedy = "redirects are not followed; give the address it points to as the endpoint"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} (HTTP {fault.status})")


def unreadable(fault: Fault, _: Found = None) -> LLMError:
    """An answer that no provider should give."""
    return MalformedResponse(**_common(fault), message=_text(fault))


def too_long(fault: Fault, found: Found = None) -> LLMError:
    """The prompt outgrows the window: with both numbers, where fields or words tell them."""
    told = found.groupdict() if found else {}
    tokens, limit = (whole(fault.detail.get(key)) for key in ("n_prompt_tokens", "n_ctx"))
    return ContextTooLarge(
        **_common(fault),
        message=_text(fault),
        token_count=tokens if tokens is not None else _sum(told.get("count"), told.get("more")),
        limit=limit if limit is not None else _sum(told.get("limit")),
    )


def _sum(*numbers: str | None) -> int | None:
    given = [int(re.sub(r"\D", "", number)) for number in numbers if number]
    return sum(given) if given else None


def _text(fault: Fault) -> str:
    return fault.text or f"HTTP {fault.status} without a word"
