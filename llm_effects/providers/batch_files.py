"""The batch protocols of OpenAI and Anthropic as plain functions: what is submitted, and what comes back."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, final

from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.providers.error_mapping import classify_error_object
from llm_effects.providers.registry import provider_of
from llm_effects.providers.target import Target, redact, redact_name, wire_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.errors import LLMError, MalformedResponse, ModelUnavailable, RequestTimeout
from llm_effects.values.json import Unreadable, as_count, as_list, as_object, as_string, dump, parse
from llm_effects.values.records import BatchJob, BatchLine, BatchState
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse

# === What is submitted


@final
@frozen
class BatchLimits:
    """The most requests and the most bytes of one batch."""

    __repr__ = shown

    requests: int
    bytes: int


# The providers write MB and do not say which: these are the smaller ones.
_LIMITS: Final = {"openai": BatchLimits(50_000, 200 * 10**6), "anthropic": BatchLimits(100_000, 256 * 10**6)}
_OVERHEAD_BYTES: Final = 1024
"""What stands around the lines of a batch, at most."""


def batch_limits(target: Target) -> BatchLimits | None:
    """Return the limits of a batch at a server, or ``None`` if it takes none.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> batch_limits(target_of("claude", ModelConfig(provider="anthropic", model="m", api_key="k")).unwrap())
    BatchLimits(requests=100000, bytes=256000000)
    """
    return None if target.preset.batches is None else _LIMITS[target.preset.batches]


def line_of(target: Target, custom_id: str, request: LLMRequest) -> Result[BatchLine, LLMError]:
    """Encode a request for a batch, as it would be encoded for a call."""
    encoded = provider_of(target, request).encode(target, request, False)
    return encoded.map(lambda wire: BatchLine(custom_id, request, wire.url.removeprefix(target.endpoint), wire.body))


def split_lines(lines: Sequence[BatchLine], limits: BatchLimits) -> Iterator[tuple[BatchLine, ...]]:
    """Divide the lines of a model into batches within its limits; all lines of one have the same path.

    >>> request = LLMRequest(prompt="why?")
    >>> lines = [BatchLine(f"{number}", request, "/x", b"{}") for number in range(3)]
    >>> [len(part) for part in split_lines(lines, BatchLimits(2, 10_000))]
    [2, 1]
    """
    for path in dict.fromkeys(line.path for line in lines):
        part, size = list[BatchLine](), _OVERHEAD_BYTES
        for line in lines:
            if line.path != path:
                continue
            length = len(line.body) + len(line.custom_id) + len(path) + _AROUND_LINE
            if part and (len(part) == limits.requests or size + length > limits.bytes):
                yield tuple(part)
                part, size = [], _OVERHEAD_BYTES
            part.append(line)
            size += length
        yield tuple(part)


_AROUND_LINE: Final = 96
"""Most bytes around the ids, the path and the body of a line."""


def _openai_lines(lines: Sequence[BatchLine]) -> bytes:
    # A raw part of an earlier answer may hold line breaks; JSON has none within its texts.
    return b"".join(
        b'{"custom_id":"%b","method":"POST","url":"/v1%b","body":%b}\n'
        % (line.custom_id.encode(), line.path.encode(), line.body.replace(b"\n", b" "))
        for line in lines
    )


def upload_request(target: Target, lines: Sequence[BatchLine], submission: str) -> WireRequest:
    """Build the upload of OpenAI's input file, named for the submission."""
    boundary = f"llm-effects-{submission}"
    purpose = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    named = f'Content-Disposition: form-data; name="file"; filename="{submission}.jsonl"\r\n'
    head = f"{purpose}--{boundary}\r\n{named}Content-Type: application/jsonl\r\n\r\n"
    wire = wire_request(target, "/files", {})
    others = tuple(header for header in wire.headers if header[0] != "content-type")
    headers = (("content-type", f"multipart/form-data; boundary={boundary}"), *others)
    body = b"".join((head.encode(), _openai_lines(lines), f"\r\n--{boundary}--\r\n".encode()))
    return evolve(wire, headers=headers, body=body)


_SUBMISSION: Final = "llm_effects_submission"
"""The name of the metadata that finds a batch again."""


def openai_batch_request(target: Target, file_id: str, path: str, submission: str) -> WireRequest:
    """Build the request that starts a batch over an uploaded file."""
    body = {
        "input_file_id": file_id,
        "endpoint": f"/v1{path}",
        "completion_window": "24h",
        "metadata": {_SUBMISSION: submission},
    }
    return wire_request(target, batches_path(target), body)


def anthropic_batch_request(target: Target, lines: Sequence[BatchLine]) -> WireRequest:
    """Build the request that starts a batch at Anthropic, which takes the lines themselves."""
    items = b",".join(b'{"custom_id":"%b","params":%b}' % (line.custom_id.encode(), line.body) for line in lines)
    return evolve(wire_request(target, batches_path(target), {}), body=b'{"requests":[%b]}' % items)


def batches_path(target: Target) -> str:
    """Return the path of the batches of a server."""
    return "/v1/messages/batches" if target.preset.batches == "anthropic" else "/batches"


def list_path(target: Target, after: str) -> str:
    """Return the path of a page of the batches, from ``after`` an id on."""
    cursor = "after_id" if target.preset.batches == "anthropic" else "after"
    return f"{batches_path(target)}?limit=100" + (f"&{cursor}={after}" if after else "")


def result_paths(target: Target, job: BatchJob) -> tuple[str, ...]:
    """Return the paths of the results of a batch, answers before errors."""
    if target.preset.batches == "anthropic":
        return (f"{batches_path(target)}/{job.id}/results",)
    return tuple(f"/files/{file}/content" for file in job.files)


# === What comes back


def read_file_id(target: Target, response: WireResponse) -> Result[str, LLMError]:
    """Return the id of a file that was uploaded."""
    file_id = _id(as_object(parse(response.body)))
    return Success(file_id) if file_id else Failure(_unreadable(target, "the answer to an upload has no id"))


def read_job(target: Target, response: WireResponse) -> Result[BatchJob, LLMError]:
    """Return the batch that an answer describes."""
    job = _job(target, as_object(parse(response.body)))
    return Failure(_unreadable(target, "the answer is no batch")) if job is None else Success(job)


def read_page(target: Target, response: WireResponse) -> Result[tuple[tuple[BatchJob, ...], bool], LLMError]:
    """Return the batches of a page, and whether more follow."""
    page = as_object(parse(response.body))
    if not isinstance(page.get("data"), list):
        return Failure(_unreadable(target, "the answer is no list of batches"))
    jobs = (_job(target, as_object(each)) for each in as_list(page["data"]))
    return Success((tuple(job for job in jobs if job is not None), page.get("has_more") is True))


def _unreadable(target: Target, message: str) -> LLMError:
    return MalformedResponse(model=target.name, provider=target.preset.name, message=message)


_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")


def _id(body: Mapping[str, object]) -> str:
    """Return an id that may stand in a path, or an empty text."""
    given = as_string(body.get("id"))
    return given if _ID.fullmatch(given) else ""


def _job(target: Target, body: Mapping[str, object]) -> BatchJob | None:
    job_id = _id(body)
    if not job_id:
        return None
    return (_anthropic_job if target.preset.batches == "anthropic" else _openai_job)(target, job_id, body)


_OPENAI_STATES: Final[Mapping[str, BatchState]] = {
    "validating": "validating",
    "finalizing": "finalizing",
    "cancelling": "cancelling",
    "completed": "completed",
    "expired": "expired",
    "cancelled": "cancelled",
    "failed": "failed",
}


def _openai_job(target: Target, job_id: str, body: Mapping[str, object]) -> BatchJob:
    counts = as_object(body.get("request_counts"))
    problem = next(iter(as_list(as_object(body.get("errors")).get("data"))), None)
    files = (_id({"id": body.get(name)}) for name in ("output_file_id", "error_file_id"))
    return BatchJob(
        id=job_id,
        model=target.name,
        state=_OPENAI_STATES.get(as_string(body.get("status")), "in_progress"),
        requests=as_count(counts.get("total")) or 0,
        succeeded=as_count(counts.get("completed")) or 0,
        failed=as_count(counts.get("failed")) or 0,
        created_at=_seconds(body.get("created_at")),
        expires_at=_seconds(body.get("expires_at")),
        files=tuple(filter(None, files)),
        code=redact_name(target, as_string(as_object(problem).get("code"))) or "",
        message=redact(target, as_string(as_object(problem).get("message"))),
        submission=as_string(as_object(body.get("metadata")).get(_SUBMISSION)),
    )


def _anthropic_job(target: Target, job_id: str, body: Mapping[str, object]) -> BatchJob:
    given = as_object(body.get("request_counts"))
    counts = {name: as_count(given.get(name)) or 0 for name in _ANTHROPIC_COUNTS}
    return BatchJob(
        id=job_id,
        model=target.name,
        state=_anthropic_state(as_string(body.get("processing_status")), counts),
        requests=sum(counts.values()),
        succeeded=counts["succeeded"],
        failed=counts["errored"] + counts["canceled"] + counts["expired"],
        created_at=_iso(body.get("created_at")),
        expires_at=_iso(body.get("expires_at")),
    )


_ANTHROPIC_COUNTS: Final = ("processing", "succeeded", "errored", "canceled", "expired")


def _anthropic_state(status: str, counts: Mapping[str, int]) -> BatchState:
    if status != "ended":
        return "cancelling" if status == "canceling" else "in_progress"
    if counts["canceled"]:
        return "cancelled"
    return "expired" if counts["expired"] else "completed"


def _seconds(value: object) -> datetime | None:
    seconds = as_count(value)
    return None if seconds is None or seconds > _LATEST_S else datetime.fromtimestamp(seconds, UTC)


_LATEST_S: Final = 2**35


def _iso(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(as_string(value))
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


# === Results: one line of JSON each


@final
@frozen
class BatchResult:
    """A line of results: an answer of the server as it would come over HTTP, or an error."""

    custom_id: str
    outcome: Result[WireResponse, LLMError]


def read_result(target: Target, line: bytes) -> BatchResult | None:
    """Return the result in a line, or ``None`` if it holds none."""
    body = parse(line)
    if isinstance(body, Unreadable):
        return None
    table = as_object(body)
    custom_id = as_string(table.get("custom_id"))
    if not custom_id:
        return None
    read = _anthropic_outcome if target.preset.batches == "anthropic" else _openai_outcome
    return BatchResult(custom_id, read(target, table))


def answer_of(target: Target, request: LLMRequest, result: BatchResult) -> Result[LLMResponse, LLMError]:
    """Decode the answer to a request, or return its error."""
    if not is_successful(result.outcome):
        return Failure(result.outcome.failure())
    provider, response = provider_of(target, request), result.outcome.unwrap()
    if not 200 <= response.status < 300:
        return Failure(provider.classify(target, response))
    dropped = provider.encode(target, request, False).map(lambda wire: wire.warnings).value_or(())
    answer = provider.decode(target, response)
    return answer.map(lambda whole: evolve(whole, warnings=(*dropped, *whole.warnings)))


def not_run(target: Target, state: str) -> LLMError:
    """Return the error of a request that was never sent to the model, because its batch ``expired`` or not."""
    if state == "expired":
        message = "the batch expired before this request was sent"
        return RequestTimeout(
            model=target.name, provider=target.preset.name, message=message, phase="queue", code="batch_expired"
        )
    message = "the batch was cancelled before this request was sent"
    return ModelUnavailable(
        model=target.name, provider=target.preset.name, message=message, code="batch_cancelled", should_retry=False
    )


NOT_RUN: Final = frozenset({"batch_expired", "batch_cancelled"})
"""The codes of requests that were never sent to a model."""


def _openai_outcome(target: Target, line: Mapping[str, object]) -> Result[WireResponse, LLMError]:
    response = as_object(line.get("response"))
    if response:
        headers = {"x-request-id": as_string(response.get("request_id"))[: caps.NAME_CHARACTERS]}
        status = as_count(response.get("status_code")) or 200
        return Success(WireResponse(status=status, headers=headers, body=dump(response.get("body"))))
    error = as_object(line.get("error"))
    code = as_string(error.get("code"))
    if code in NOT_RUN:
        return Failure(not_run(target, code.removeprefix("batch_")))
    if code == "request_timeout":
        late = RequestTimeout(message=redact(target, as_string(error.get("message"))), phase="server", code=code)
        return Failure(evolve(late, model=target.name, provider=target.preset.name))
    return Failure(classify_error_object(target, {"error": error}))


def _anthropic_outcome(target: Target, line: Mapping[str, object]) -> Result[WireResponse, LLMError]:
    result = as_object(line.get("result"))
    match as_string(result.get("type")):
        case "succeeded":
            return Success(WireResponse(status=200, body=dump(result.get("message"))))
        case "canceled" | "expired" as kind:
            return Failure(not_run(target, kind))
        case _:
            return Failure(classify_error_object(target, result.get("error")))
