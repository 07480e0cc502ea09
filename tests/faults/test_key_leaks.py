"""Fault 170: a key that a server repeats, in any form and anywhere, is neither shown nor kept."""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import anyio
import pytest
from attrs import evolve
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llm_effects import LLMConfig, LLMRequest, converse, generate, generate_many, open_env, run, stream
from llm_effects.batches import file_journal
from llm_effects.config import CacheConfig, StorageConfig
from llm_effects.config.services import TelemetryConfig
from llm_effects.telemetry.otel import open_telemetry
from llm_effects.values import CachePolicy, Tool
from tests.fixtures.chaos import CANARY, DONE, STOP, WHOLE, Chaos, Step, data, event, says
from tests.fixtures.faults import MODES, config_of, model, run_case
from tests.fixtures.servers import chunked, reply, reply_json
from tests.fixtures.wires import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("carried")]


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


PIECE: Final = 8
"""The longest piece of a key that may be seen, in characters."""

AWKWARD: Final = 'canary 7f3e/9d+"never"&seen='


def pieces(key: str = CANARY) -> Iterator[str]:
    """Yield every piece of a key that is too long to be seen."""
    return (key[at : at + PIECE] for at in range(len(key) - PIECE + 1))


def assert_unseen(text: str, key: str = CANARY) -> None:
    assert [piece for piece in pieces(key) if piece in text] == []


# Cut, then masked: what is left of the key at the cut must not show.


@pytest.mark.parametrize("left", range(8, len(CANARY) + 1, 4))
@pytest.mark.parametrize("length", [500, 4096, 8000, 8192])
async def test_fault_170_a_page_that_is_cut_through_a_key_shows_none_of_it(
    chaos: Chaos, length: int, left: int
) -> None:
    start = "<html><p>"
    filler = "<br>" * ((length - left - len(start)) // 4)
    page = (start + filler).ljust(length - left, " ") + CANARY + " " * 9000
    answer = reply(page.encode(), "500 Wrong")
    outcome = await run_case(chaos, {"first": model(chaos, says(answer))}, max_retries=0)
    assert_unseen(repr(outcome.error))


@pytest.mark.parametrize("length", [500, 4096, 8000])
async def test_fault_170_a_message_that_is_cut_through_a_key_shows_none_of_it(chaos: Chaos, length: int) -> None:
    for left in range(8, len(CANARY), 5):
        before = f"{CANARY}, " * ((length - left) // (len(CANARY) + 2))
        message = before.ljust(length - left) + CANARY + " and more" * 1000
        answer = reply_json({"error": {"message": message}}, "500 Wrong")
        outcome = await run_case(chaos, {"first": model(chaos, says(answer))}, max_retries=0)
        assert_unseen(repr(outcome.error))


# Every form of a secret.


def encodings(secret: str) -> Iterator[str]:
    raw = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(secret)[1:-1]
    yield raw.hex()
    for before in (b"", b"u", b"u:"):
        yield b64encode(before + raw + b"!").decode()
        yield urlsafe_b64encode(before + raw).decode()


@pytest.mark.parametrize("form", list(encodings(AWKWARD)))
async def test_fault_170_a_secret_is_masked_in_every_form(chaos: Chaos, form: str) -> None:
    answer = reply_json({"error": {"message": f"refused: {form}", "code": form}}, "400 Wrong")
    headers = {"x-signature": AWKWARD}
    outcome = await run_case(chaos, {"first": model(chaos, says(answer), headers=headers)}, max_retries=0)
    assert_unseen(repr(outcome.error), form)


async def test_fault_170_cookies_and_basic_credentials_are_masked_by_themselves(chaos: Chaos) -> None:
    login = b64encode(f"admin:{CANARY}".encode()).decode()
    for headers in ({"cookie": f"theme=dark; sid={CANARY}"}, {"authorization": f"Basic {login}"}):
        answer = reply_json({"error": {"message": f"session {CANARY} ({login})"}}, "401 Wrong")
        settings: dict[str, Any] = {"headers": headers, "api_key": None}
        outcome = await run_case(chaos, {"first": model(chaos, says(answer), **settings)}, max_retries=0)
        assert_unseen(repr(outcome.error))
        if "authorization" in headers:
            assert_unseen(repr(outcome.error), login)


# A key in an answer: in its text, its reasoning, its tool calls, and the names of things.


CALL: Final = {
    "index": 0,
    "id": f"call-{CANARY}",
    "type": "function",
    "function": {"name": f"look-{CANARY}", "arguments": json.dumps({"at": CANARY})},
}
MESSAGE: Final = {"role": "assistant", "content": f"your key is {CANARY}", "reasoning_content": f"hm, {CANARY}"}


def whole(message: dict[str, object], finish: str) -> dict[str, object]:
    return {**WHOLE, "model": CANARY, "choices": [{"index": 0, "finish_reason": finish, "message": message}]}


def answers(*, calls: bool) -> Step:
    """Answer, whole or streamed, with the key wherever there is room for it."""
    message = {**MESSAGE, "tool_calls": [CALL]} if calls else MESSAGE
    finish = "tool_calls" if calls else "stop"
    name = f"x-request-id: {CANARY}"
    cut = [{"reasoning_content": f"hm, {CANARY}"}, {"content": f"your key is {CANARY[:9]}"}, {"content": CANARY[9:]}]
    events = [event(delta) for delta in cut] + ([event({"tool_calls": [CALL]})] if calls else [])
    end = event({}, finish) if calls else STOP
    streamed = b"".join([data({"model": CANARY, "choices": []}), *events, end, DONE])

    async def step(peer: Any, request: bytes) -> None:
        is_stream = b'"stream":true' in request
        await peer.send(chunked(streamed, headers=(name,)) if is_stream else reply_json(whole(message, finish)))

    return step


async def ignore(_: object) -> None: ...


def everything_in(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def keeping(chaos: Chaos, folder: Path, *, calls: bool) -> LLMConfig:
    """Configure a model that repeats its key, and stores in files for all that is kept."""
    return evolve(
        config_of({"first": model(chaos, answers(calls=calls))}),
        cache=CacheConfig(url=f"sqlite:///{folder}/cache.db", keep=("stop", "tool_calls")),
        storage=StorageConfig(url=f"sqlite:///{folder}/storage.db"),
        telemetry=TelemetryConfig(bodies=True),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls", [False, True])
async def test_fault_170_a_key_in_an_answer_is_kept_nowhere(
    chaos: Chaos, tmp_path: Path, mode: str, calls: bool
) -> None:
    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    request = LLMRequest(prompt="why?", tools=(Tool("look"),) if calls else ())
    refresh = evolve(request, cache=CachePolicy.BYPASS)
    async with open_env(keeping(chaos, tmp_path, calls=calls)) as live:
        env = evolve(live, telemetry=open_telemetry(tracers))
        asked = generate(request) if mode == "whole" else stream(request, ignore)
        first = (await run(asked, env)).unwrap()
        again = (await run(asked, env)).unwrap()
        assert again.cached
        assert again.content == first.content
        await run(converse("c", refresh), env)
        await run(generate_many([refresh], journal=file_journal(tmp_path / "run.jsonl")), env)
    assert "your key is ****" in first.content
    seen = f"{first!r} {first.parts!r} {again!r} {[span.to_json() for span in spans.get_finished_spans()]}"
    assert_unseen(seen + everything_in(tmp_path))


async def test_fault_170_a_broken_stream_keeps_no_key(chaos: Chaos, tmp_path: Path) -> None:
    start = event({"content": f"your key is {CANARY[:9]}"}) + event({"content": f"{CANARY[9:]}, "})
    broken = model(chaos, says(chunked(start)))
    config = evolve(
        config_of({"first": broken}, max_retries=0), storage=StorageConfig(url=f"sqlite:///{tmp_path}/s.db")
    )
    async with open_env(config) as env:
        error = (await run(stream(LLMRequest(prompt="why?"), ignore), env)).failure()
        await run(converse("c", "why?"), env)
    assert "your key is ***" in error.partial
    assert_unseen(repr(error) + error.partial + everything_in(tmp_path))


async def test_fault_170_an_answer_keeps_words_that_are_no_keys(chaos: Chaos) -> None:
    answer = reply_json(whole({"role": "assistant", "content": "in production, not-needed"}, "stop") | {"model": "m"})
    settings: dict[str, Any] = {"headers": {"x-tenant": "production"}, "api_key": "not-needed"}
    with anyio.fail_after(30):
        outcome = await run_case(chaos, {"first": model(chaos, says(answer), **settings)})
    assert outcome.response.content == "in production, not-needed"
