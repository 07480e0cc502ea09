"""Faults 20 to 56: every status that a server may return, and its handling.

Each row goes through the whole library, whole and streamed: alone, with another model behind it, and passing after one
time. Where DESIGN.md and the matrix of faults differ, the rows follow DESIGN.md.
"""

from typing import Final

import pytest
from attrs import evolve

from llm_effects import Allow, Preferences, RequestFailed
from llm_effects.config.models import Capabilities
from tests.fixtures.chaos import CANARY, REQUEST_ID, WHOLE, Chaos, good, problem, says
from tests.fixtures.faults import ASK, MODES, Case, assert_case, model, rows_alternating, run_case
from tests.fixtures.servers import reply, reply_json

pytestmark = pytest.mark.anyio

PAGE: Final = "<html><head><style>p{}</style></head><body><h1>Bad gateway</h1><p>cloudflare</p></body></html>"
QUOTA: Final = {"type": "insufficient_quota", "code": "insufficient_quota"}


def page(status: int) -> bytes:
    return reply(PAGE.encode() * 30, f"{status} Wrong").replace(b"application/json", b"text/html")


def bare(status: int, body: bytes) -> bytes:
    return reply(body, f"{status} Wrong", f"x-request-id: {REQUEST_ID}")


def expect(tag: str, tries: int, answer: bytes, *, falls_back: bool = True, **fields: object) -> Case:
    return Case(step=says(answer), tag=tag, tries=tries, falls_back=falls_back, fields=fields)


def local(case: Case, provider: str) -> Case:
    return evolve(case, model={"provider": provider})


OVERLOADED: Final = {"reason": "overloaded"}
NO: Final = {"falls_back": False}

STATUSES: dict[str, Case] = {
    "014_plain_http_where_tls_is_spoken": expect(
        "ConfigurationError", 1, reply(b"<p>The plain HTTP request was sent to HTTPS port</p>", "400 Bad Request"), **NO
    ),
    "015_407": expect("ConfigurationError", 1, problem(407, "who are you?"), **NO, status=407),
    "020_400": expect("InvalidRequest", 1, problem(400, "messages: required"), **NO, status=400, request_id=REQUEST_ID),
    "021_400_context_overflow": expect(
        "ContextTooLarge",
        1,
        problem(400, "This model's maximum context length is 8192 tokens, however you requested 9000 tokens."),
        token_count=9000,
        limit=8192,
    ),
    "022_400_content_filter": expect("ContentRefused", 1, problem(400, "filtered", code="content_filter"), **NO),
    "023_401": expect("AuthenticationFailed", 1, problem(401, "Incorrect API key", code="invalid_api_key"), status=401),
    "024_402": expect("RateLimitExceeded", 1, problem(402, "pay"), quota=True, retry_after=None),
    "025_403": expect("AuthenticationFailed", 1, problem(403, "country not supported"), status=403),
    "026_403_page": expect("NetworkError", 1, page(403), phase="intermediary"),
    "027_404_model": expect(
        "ModelUnavailable", 1, problem(404, "The model m does not exist"), reason="unknown_model", status=404
    ),
    "028_404_path": expect("ConfigurationError", 1, bare(404, b'{"detail":"Not Found"}'), **NO, status=404),
    "028_405": expect("ConfigurationError", 1, bare(405, b'{"detail":"Method Not Allowed"}'), **NO),
    "029_408": expect("TimeoutError", 2, problem(408), phase="server"),
    "030_409": expect("ModelUnavailable", 3, problem(409, "locked"), **OVERLOADED),
    "031_413": expect("InvalidRequest", 1, problem(413, "too many bytes"), **NO, status=413),
    "032_415": expect("InvalidRequest", 1, problem(415), **NO),
    "032_422": expect(
        "InvalidRequest", 1, bare(422, b'{"detail":[{"loc":["body"],"msg":"no"}]}'), **NO, message="body: no"
    ),
    "033_425": expect("ModelUnavailable", 3, problem(425), **OVERLOADED),
    "034_429": expect("RateLimitExceeded", 3, problem(429, "slow down"), quota=False, retry_after=None),
    "038_429_huge_hint": expect(
        "RateLimitExceeded", 1, problem(429, "", "retry-after: 99999999"), retry_after=86_400.0
    ),
    "039_429_infinite_hint": expect("RateLimitExceeded", 3, problem(429, "", "retry-after: inf"), retry_after=None),
    "040_429_hint_that_is_no_number": expect("RateLimitExceeded", 3, problem(429, "", "retry-after: nan")),
    "040_429_negative_hint": expect("RateLimitExceeded", 3, problem(429, "", "retry-after: -5"), retry_after=None),
    "040_429_hint_in_words": expect("RateLimitExceeded", 3, problem(429, "", "retry-after: soon"), retry_after=None),
    "040_429_past_date": expect(
        "RateLimitExceeded", 3, problem(429, "", "retry-after: Fri, 31 Dec 1999 23:59:59 GMT"), retry_after=None
    ),
    "042_429_quota": expect(
        "RateLimitExceeded", 1, problem(429, "You exceeded your current quota", **QUOTA), quota=True
    ),
    "042_429_spend_limit_of_claude": Case(
        step=says(
            reply_json(
                {
                    "type": "error",
                    "error": {
                        "type": "rate_limit_error",
                        "message": f"no {CANARY}",
                        "details": {"error_code": "enforced_spend_limit_reached"},
                    },
                },
                "429 No",
            )
        ),
        tag="RateLimitExceeded",
        tries=1,
        falls_back=True,
        fields={"quota": True},
        model={"provider": "anthropic"},
    ),
    "043_429_larger_than_the_window": expect(
        "ContextTooLarge",
        1,
        problem(429, "Request too large for m on tokens per min (TPM): Limit 30000, Requested 45000.", type="tokens"),
        token_count=45000,
        limit=30000,
    ),
    "044_500": expect("ModelUnavailable", 3, problem(500, "oops"), **OVERLOADED, status=500, request_id=REQUEST_ID),
    "045_501": expect("ModelUnavailable", 1, problem(501, "not here"), reason="unknown_model"),
    "046_502": expect("ModelUnavailable", 3, problem(502), **OVERLOADED),
    "046_503": expect("ModelUnavailable", 3, problem(503), **OVERLOADED),
    "047_504": expect("TimeoutError", 2, problem(504), phase="server"),
    "047_524": expect("TimeoutError", 2, page(524), phase="server"),
    "048_529": expect("ModelUnavailable", 3, problem(529, "Overloaded", type="overloaded_error"), **OVERLOADED),
    **{
        f"049_{status}": expect("ModelUnavailable", 3, page(status), **OVERLOADED)
        for status in (520, 521, 522, 523, 527)
    },
    **{
        f"050_{status}": expect("InvalidRequest", 1, problem(status), **NO, status=status) for status in (418, 451, 499)
    },
    "051_300_without_location": expect("MalformedResponse", 2, bare(300, b"")),
    "051_204": expect("MalformedResponse", 2, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "053_502_page": expect("ModelUnavailable", 3, page(502), message=("Bad gateway cloudflare " * 30)[:500]),
    **{
        f"054_500_{name}": expect("ModelUnavailable", 3, bare(500, body), **OVERLOADED)
        for name, body in {
            "empty": b"",
            "text": b"oops",
            "list": b"[1]",
            "null": b"null",
            "string": b'"oops"',
            "error_string": b'{"error":"oops"}',
            "error_list": b'{"error":["oops"]}',
            "detail": b'{"detail":"oops"}',
            "flat": b'{"object":"error","message":"oops","code":500}',
            "binary": bytes(range(256)),
        }.items()
    },
    "054_400_flat": expect(
        "InvalidRequest", 1, bare(400, b'{"object":"error","message":"no","code":400}'), **NO, message="no"
    ),
    "055_500_that_is_the_callers_fault": local(
        expect("InvalidRequest", 1, problem(500, "Failed to parse tools", type="server_error"), **NO), "llama-cpp"
    ),
    "056_200_with_an_error": expect(
        "RateLimitExceeded", 3, problem(200, "slow", code="rate_limit_exceeded"), quota=False
    ),
    "056_200_with_an_error_string": expect("ModelUnavailable", 3, bare(200, b'{"error":"oops"}'), **OVERLOADED),
    "056_200_with_a_spent_quota": expect("RateLimitExceeded", 1, problem(200, "spent", **QUOTA), quota=True),
}


@pytest.mark.parametrize(("case", "mode", "anyio_backend"), rows_alternating(STATUSES))
async def test_a_status_is_reported_retried_and_falls_back_by_its_meaning(chaos: Chaos, case: Case, mode: str) -> None:
    await assert_case(chaos, case, mode)


# --- Single cases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "asked"), [(4_000, 0), (200_000, 1), (None, 1)])
async def test_021_a_prompt_too_large_falls_back_only_to_a_larger_window(
    chaos: Chaos, window: int | None, asked: int
) -> None:
    refusal = says(problem(400, "too long", code="context_length_exceeded"))
    models = {
        "first": model(chaos, refusal, context_length=8_000),
        "second": model(chaos, good, capabilities=Capabilities(context_length=window)),
    }
    assert (await run_case(chaos, models)).asked == {"first": 1, "second": asked}


@pytest.mark.parametrize("mode", MODES)
async def test_022_079_a_refusal_falls_back_only_if_allowed(chaos: Chaos, mode: str) -> None:
    refusal = says(problem(400, "filtered", code="content_filter"))
    for allow, asked in ((frozenset[Allow](), 0), (frozenset({Allow.FALLBACK_ON_REFUSAL}), 1)):
        models = {"first": model(chaos, refusal), "second": model(chaos, good)}
        outcome = await run_case(chaos, models, mode=mode, request=evolve(ASK, allow=allow))
        assert outcome.asked == {"first": 1, "second": asked}


async def test_046_a_call_waits_for_a_loading_model(chaos: Chaos) -> None:
    loading = says(reply_json({"error": {"message": "Loading model", "type": "unavailable_error"}}, "503 Busy"))
    alone = await run_case(chaos, {"first": model(chaos, loading, good, provider="llama-cpp")}, max_retries=0)
    assert (alone.asked, alone.response.content) == ({"first": 2}, "because")
    short = evolve(ASK, preferences=Preferences(timeout_ms=200))
    hopeless = await run_case(chaos, {"first": model(chaos, loading, provider="llama-cpp")}, request=short)
    assert getattr(hopeless.error, "reason", "") == "loading"
    assert hopeless.took < 0.45


async def test_051_informational_responses_are_skipped(chaos: Chaos) -> None:
    noise = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    outcome = await run_case(chaos, {"first": model(chaos, says(noise + reply_json(WHOLE)))})
    assert (outcome.response.content, outcome.asked) == ("because", {"first": 1})


async def test_wire_10_retries_never_multiply(chaos: Chaos) -> None:
    broken = [model(chaos, says(problem(500))) for _ in range(5)]
    models = {f"m{number}": each for number, each in enumerate(broken)}
    outcome = await run_case(chaos, models, max_retries=1, max_attempts=7)
    assert outcome.asked == {"m0": 2, "m1": 2, "m2": 1, "m3": 1, "m4": 1}  # each gets its turn
    assert isinstance(outcome.error, RequestFailed)
    assert [each.tag for each in outcome.error.errors] == ["ModelUnavailable"] * 7


@pytest.mark.parametrize("mode", MODES)
async def test_fault_181_a_model_without_a_feature_is_skipped(chaos: Chaos, mode: str) -> None:
    lacking = says(problem(404, "No endpoints found that support tool use."))
    models = {"first": model(chaos, lacking, good), "second": model(chaos, good)}
    outcome = await run_case(chaos, models, mode=mode)
    assert (outcome.response.content, outcome.asked) == ("because", {"first": 1, "second": 1})
