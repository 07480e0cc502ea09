"""The batches of the live clients: uploads, polls and downloads over HTTP."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar, final

import anyio
from anyio.lowlevel import checkpoint
from attrs import evolve, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.client import LiveClients
from llm_effects.clients.credentials import UNAUTHORIZED, Header, check_stays, send_keyed
from llm_effects.clients.transport.connections import TransportFault
from llm_effects.clients.transport.transport import StreamedResponse, Transport
from llm_effects.config import LLMConfig
from llm_effects.effects.env import BatchJobs, Clients, Now, TakeResult
from llm_effects.providers.batch_files import (
    answer_of,
    anthropic_batch_request,
    batches_path,
    list_path,
    openai_batch_request,
    read_file_id,
    read_job,
    read_page,
    read_result,
    result_paths,
    upload_request,
)
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.target import Target, wire_request
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import ConfigurationError, LLMError, ModelUnavailable, RequestTimeout
from llm_effects.values.records import BatchJob, BatchLine
from llm_effects.values.requests import LLMRequest

_T = TypeVar("_T")

LOGGER: Final = logging.getLogger("llm_effects")

SENDING_S: Final = 900.0
"""How long submitting a batch may take, in seconds."""

ASKING_S: Final = 60.0
"""How long asking for the state of batches may take, in seconds."""

READING_S: Final = 3_600.0
"""How long downloading the results of a batch may take, in seconds."""

CLOCK_SKEW: Final = timedelta(days=1)
"""How far the clock of a provider may be behind ours: an older batch is not looked at."""

MOST_PAGES: Final = 100
"""How many pages of batches are looked through for a lost one."""


def batch_jobs_of(clients: Clients) -> BatchJobs | None:
    """Return the batches of some clients, or ``None`` if they have none."""
    if isinstance(clients, LiveClients):
        return LiveBatches(clients.config, clients.transport, clients.now)
    own: object = getattr(clients, "batches", None)
    return own if isinstance(own, BatchJobs) else None


@final
@frozen(eq=False, repr=False)
class LiveBatches:
    """The batches of every configured model."""

    config: LLMConfig
    transport: Transport
    now: Now

    def submit(self, model: str, lines: Sequence[BatchLine], submission: str) -> FutureResult[BatchJob, LLMError]:
        """Submit a batch: at OpenAI, after its file. Only the last request can cost anything."""
        return FutureResult(self._at(model, lambda target: self._submit(target, lines, submission)))

    def find(
        self, model: str, submission: str, requests: int, since: datetime
    ) -> FutureResult[BatchJob | None, LLMError]:
        """Look for a batch among all of an account.

        OpenAI shows the id of its submission. Anthropic shows it in the results only, so that a batch of that age and
        size which has not ended may be the one, and that is an error which passes.
        """
        return FutureResult(self._at(model, lambda target: self._find(target, submission, requests, since)))

    def status(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Ask for the state of a batch."""
        return FutureResult(self._at(model, lambda target: self._status(target, job_id)))

    def cancel(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Cancel a batch; one that has ended meanwhile is returned as it is."""
        return FutureResult(self._at(model, lambda target: self._cancel(target, job_id)))

    def results(
        self, job: BatchJob, requests: Mapping[str, LLMRequest], take: TakeResult
    ) -> FutureResult[None, LLMError]:
        """Download the results of a batch, line by line."""
        return FutureResult(self._at(job.model, lambda target: self._results(target, job, requests, take)))

    async def _at(self, model: str, work: Callable[[Target], Awaitable[Result[_T, LLMError]]]) -> Result[_T, LLMError]:
        config = self.config.models.get(model)
        if config is None:
            message = f"models.{model}: a batch was submitted to this model, which is not configured any more"
            return Failure(ConfigurationError(model=model, message=message))
        target = target_of(model, config)
        return await work(target.unwrap()) if is_successful(target) else Failure(target.failure())

    async def _submit(self, target: Target, lines: Sequence[BatchLine], submission: str) -> Result[BatchJob, LLMError]:
        if any(line.request.stays is not None for line in lines):
            problem = await check_stays(self.transport, target)
            if problem is not None:
                return Failure(problem)
        if target.preset.batches == "anthropic":
            return await self._post(target, anthropic_batch_request(target, lines), SENDING_S, read_job)
        uploaded = await self._post(target, upload_request(target, lines, submission), SENDING_S, read_file_id)
        if not is_successful(uploaded):
            return Failure(evolve(uploaded.failure(), code=UPLOAD))
        wire = openai_batch_request(target, uploaded.unwrap(), lines[0].path, submission)
        return await self._post(target, wire, ASKING_S, read_job)

    async def _status(self, target: Target, job_id: str) -> Result[BatchJob, LLMError]:
        return await self._get(target, f"{batches_path(target)}/{job_id}", read_job)

    async def _cancel(self, target: Target, job_id: str) -> Result[BatchJob, LLMError]:
        wire = wire_request(target, f"{batches_path(target)}/{job_id}/cancel", {})
        cancelled = await self._post(target, wire, ASKING_S, read_job)
        if is_successful(cancelled) or not 400 <= (cancelled.failure().status or 0) < 500:
            return cancelled
        now = await self._status(target, job_id)
        return now if is_successful(now) and now.unwrap().ended else cancelled

    # A batch whose submission was cut off.

    async def _find(
        self, target: Target, submission: str, requests: int, since: datetime
    ) -> Result[BatchJob | None, LLMError]:
        after, unsure = "", False
        for _ in range(MOST_PAGES):
            page = await self._get(target, list_path(target, after), read_page)
            if not is_successful(page):
                return Failure(page.failure())
            jobs, more = page.unwrap()
            for job in jobs:
                owned = await self._is_of(target, job, submission, requests, since)
                if not is_successful(owned):
                    return Failure(owned.failure())
                if owned.unwrap():
                    return Success(job)
                unsure = unsure or owned.unwrap() is None
            if not more or (jobs and _is_old(target, jobs[-1], since)):
                return Failure(_unsure(target, _MAYBE)) if unsure else Success(None)
            if not jobs:
                return Failure(_unsure(target, "the list of batches is unreadable"))
            after = jobs[-1].id
        return Failure(_unsure(target, f"it is not among the newest batches, on {MOST_PAGES} pages"))

    async def _is_of(
        self, target: Target, job: BatchJob, submission: str, requests: int, since: datetime
    ) -> Result[bool | None, LLMError]:
        """Return whether a batch is that of a submission, or ``None`` if that is not known yet."""
        if target.preset.batches == "openai":
            return Success(job.submission == submission)
        if job.requests != requests or _is_old(target, job, since):
            return Success(False)
        if not job.ended:
            return Success(None)
        found: list[bool] = []

        async def look(lines: AsyncIterator[bytes]) -> None:
            async for line in lines:
                result = read_result(target, line)
                if result is not None:
                    found.append(result.custom_id.startswith(f"{submission}-"))
                    return

        read = await self._read(target, result_paths(target, job)[0], look)
        return read.map(lambda _: found[0] if found else None)

    # Results.

    async def _results(
        self, target: Target, job: BatchJob, requests: Mapping[str, LLMRequest], take: TakeResult
    ) -> Result[None, LLMError]:
        skipped = 0

        async def read_lines(lines: AsyncIterator[bytes]) -> None:
            nonlocal skipped
            async for line in lines:
                result = read_result(target, line)
                request = None if result is None else requests.get(result.custom_id)
                if result is None or request is None:
                    skipped += 1
                    continue
                await take(result.custom_id, answer_of(target, request, result))
                await checkpoint()

        for path in result_paths(target, job):
            read = await self._read(target, path, read_lines)
            if not is_successful(read):
                return read
        if skipped:
            LOGGER.warning("batch %s: %d lines of its results are unreadable or of no request here", job.id, skipped)
        return Success(None)

    async def _read(
        self, target: Target, path: str, read: Callable[[AsyncIterator[bytes]], Awaitable[None]]
    ) -> Result[None, LLMError]:
        """Stream the lines of a file."""
        read_file = partial(self._read_keyed, target, path, read)
        found = await send_keyed(target, self.now, read_file, _is_unread)
        return found.unwrap() if is_successful(found) else Failure(found.failure())

    async def _read_keyed(
        self, target: Target, path: str, read: Callable[[AsyncIterator[bytes]], Awaitable[None]], key: Header | None
    ) -> Result[None, LLMError]:
        wire = evolve(wire_request(target, path, {}), body=b"", key=key)
        with anyio.move_on_after(READING_S):
            try:
                async with self.transport.stream(
                    wire, _limits(target, ASKING_S), method="GET", max_bytes=caps.BATCH_BYTES
                ) as response:
                    return await _read_stream(target, response, read)
            except TransportFault as fault:
                return Failure(_named(target, fault.error))
        return Failure(_too_late(target, READING_S))

    # Requests and their keys.

    async def _post(self, target: Target, wire: WireRequest, limit_s: float, read: "_Read[_T]") -> Result[_T, LLMError]:
        send = partial(self.transport.exchange, limits=_limits(target, limit_s))
        return await self._ask(target, limit_s, lambda key: send(evolve(wire, key=key)), read)

    async def _get(self, target: Target, path: str, read: "_Read[_T]") -> Result[_T, LLMError]:
        headers = wire_request(target, path, {}).headers
        fetch = partial(self.transport.fetch, target.endpoint + path, headers, _limits(target, ASKING_S))
        return await self._ask(target, ASKING_S, fetch, read)

    async def _ask(
        self,
        target: Target,
        limit_s: float,
        send: Callable[[Header | None], Awaitable[WireResponse]],
        read: "_Read[_T]",
    ) -> Result[_T, LLMError]:
        with anyio.move_on_after(limit_s):
            try:
                response = await send_keyed(target, self.now, send, _is_rejected)
            except TransportFault as fault:
                return Failure(_named(target, fault.error))
            if not is_successful(response):
                return Failure(response.failure())
            whole = response.unwrap()
            if 200 <= whole.status < 300:
                return read(target, whole)
            return Failure(provider_of(target).classify(target, whole))
        return Failure(_too_late(target, limit_s))


def _is_rejected(response: WireResponse) -> bool:
    return response.status == UNAUTHORIZED


def _is_unread(found: Result[None, LLMError]) -> bool:
    return not is_successful(found) and found.failure().status == UNAUTHORIZED


_Read = Callable[[Target, WireResponse], Result[_T, LLMError]]

UPLOAD: Final = "batch_upload"
"""The code of an error before anything was submitted."""


async def _read_stream(
    target: Target, response: StreamedResponse, read: Callable[[AsyncIterator[bytes]], Awaitable[None]]
) -> Result[None, LLMError]:
    if 200 <= response.status < 300:
        async with aclosing(_lines(response.chunks())) as lines:
            await read(lines)
        return Success(None)
    whole = WireResponse(status=response.status, headers=response.headers, body=await response.read())
    return Failure(provider_of(target).classify(target, whole))


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Return each line that is not blank; what is longer than an answer may be is dropped."""
    rest, overlong = bytearray(), False
    async for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        for line in lines:
            if not overlong and (whole := bytes(rest) + line).strip():
                yield whole
            rest, overlong = bytearray(), False
        overlong = overlong or len(rest) + len(last) > caps.ANSWER_BYTES
        rest += b"" if overlong else last
    if rest.strip():
        yield bytes(rest)


def _limits(target: Target, read_s: float) -> Timeouts:
    return Timeouts(connect_s=target.config.connect_ms / 1000, read_s=read_s)


def _named(target: Target, error: LLMError) -> LLMError:
    return evolve(error, model=target.name, provider=target.preset.name)


def _too_late(target: Target, limit_s: float) -> LLMError:
    return _named(target, RequestTimeout(timeout_ms=limit_s * 1000, phase="attempt"))


def _is_old(target: Target, job: BatchJob, since: datetime) -> bool:
    """Return whether a batch, and each behind it in the list, is older than a time; OpenAI promises no order."""
    ordered = target.preset.batches == "anthropic"
    return ordered and job.created_at is not None and job.created_at < since - CLOCK_SKEW


def _unsure(target: Target, reason: str) -> LLMError:
    message = f"it is not known yet whether a submission that was cut off has arrived: {reason}"
    return _named(target, ModelUnavailable(message=message, code="batch_unsure", retry_after=60.0))


_MAYBE: Final = "a batch that may be the one has not ended"
