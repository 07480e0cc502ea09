"""``LLM`` and ``AsyncLLM``: answers or exceptions, in threads, running loops and forked processes, closed or not."""

import asyncio
import concurrent.futures
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from attrs import evolve

from llm_effects import (
    LLM,
    AsyncLLM,
    AuthenticationFailed,
    Completed,
    ConfigurationError,
    ContentRefused,
    Effect,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMFailure,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    NetworkError,
    Preferences,
    Started,
    StreamEvent,
    TextDelta,
    ToolCall,
    describe,
    effect,
    generate,
    make_llm_manager,
    open_env,
    scripted_env,
    succeed,
    tool,
    toolkit,
)
from llm_effects.batches import store_journal
from llm_effects.config import RoutingConfig, StorageConfig
from llm_effects.effects import tasks
from llm_effects.effects.tasks import LoopStopped, LoopThread
from llm_effects.testing import Chunks, Scripted, calling
from llm_effects.tools import Approved, ToolEnd, ask_later
from llm_effects.values import TurnState
from tests.fixtures.house import ROOT
from tests.fixtures.servers import Server, answering, chunked, reply_json, sending, serving

QUESTION = "Why do disks fill up?"

CHAT = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Logs."}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


def chunk(text: str) -> bytes:
    return b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % text.encode()


HALF_A_STREAM = sending(chunked(chunk("Lo"), chunk("gs"), end=False), hold=True)
"""Two events, and then a connection that stays open until the client leaves."""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answering(reply_json(CHAT))) as running:
        yield running


@pytest.fixture
def endless() -> Iterator[Server]:
    with serving(HALF_A_STREAM) as running:
        yield running


@pytest.fixture
def silent() -> Iterator[Server]:
    with serving(sending(b"", hold=True)) as running:
        yield running


def config_of(server: Server, **fields: object) -> LLMConfig:
    model = ModelConfig(provider="lm-studio", model="m", endpoint=server.url, first_content_ms=60_000)
    return LLMConfig(models={"m": model}, routing=RoutingConfig(max_retries=0), **fields)  # type: ignore[arg-type]


def scripted_of(env: LLMEnv) -> Scripted:
    assert isinstance(env.clients, Scripted)
    return env.clients


def toml_of(server: Server, folder: Path) -> Path:
    path = folder / "llm.toml"
    path.write_text(f'[models.m]\nprovider = "lm-studio"\nmodel = "m"\nendpoint = "{server.url}"\n', encoding="utf-8")
    return path


def shows(event: StreamEvent) -> str:
    return event.text if isinstance(event, TextDelta) else type(event).__name__


def free_space(path: str) -> str:
    """Return how much of a disk is free."""
    return f"3 % of {path}"


class BoomError(Exception):
    """A defect."""


def broken() -> Effect[int]:
    async def raise_it(_: LLMEnv) -> object:
        raise BoomError

    return effect(raise_it)  # type: ignore[arg-type]


# Where the models come from.


def test_one_line_answers() -> None:
    assert LLM(scripted_env("Logs.")).generate(QUESTION).content == "Logs."


def test_a_configuration_a_path_a_mapping_and_an_environment_are_sources(server: Server, tmp_path: Path) -> None:
    path = toml_of(server, tmp_path)
    mapping = {"models": {"m": {"provider": "lm-studio", "model": "m", "endpoint": server.url}}}
    for source in (config_of(server), path, str(path), mapping, scripted_env("Logs.")):
        with LLM(source) as llm:
            assert llm.generate(QUESTION).content == "Logs."


def test_without_a_source_the_environment_variables_count(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_STUDIO_ENDPOINT", server.url)
    monkeypatch.setenv("LM_STUDIO_MODEL", "m")
    for name in ("OPENAI_API_KEY", "CLAUDE_API_KEY", "ANTHROPIC_API_KEY", "LLAMA_MODEL_PATH"):
        monkeypatch.delenv(name, raising=False)
    with LLM() as llm:
        assert llm.generate(QUESTION).model == "lm-studio"


@pytest.mark.parametrize("kind", [LLM, AsyncLLM])
def test_a_configuration_that_cannot_be_read_fails_at_once(kind: Callable[[object], object], tmp_path: Path) -> None:
    with pytest.raises(LLMFailure, match="give the path of a TOML file") as raised:
        kind(tmp_path / "none.toml")
    assert isinstance(raised.value.error, ConfigurationError)


@pytest.mark.parametrize("kind", [LLM, AsyncLLM])
def test_another_source_is_a_type_error_with_the_remedy(kind: Callable[[object], object]) -> None:
    with pytest.raises(
        TypeError, match="an LLM needs an LLMConfig, the path of a TOML file or an LLMEnv, not LLMManager"
    ):
        kind(make_llm_manager(LLMConfig(models={})))


NOWHERE = LLMConfig(
    models={"gpt": ModelConfig(provider="openai-chat", model="m")},
    storage=StorageConfig(url="sqlite:////nowhere/at/all.db"),
)


def test_check_fails_at_once_with_every_problem() -> None:
    with pytest.raises(LLMFailure) as raised:
        LLM(NOWHERE, check=True)
    assert "models.gpt.api_key: is missing" in str(raised.value)
    assert "storage.url" in str(raised.value)


def test_without_check_the_first_call_fails() -> None:
    with LLM(NOWHERE) as llm, pytest.raises(LLMFailure, match=r"models\.gpt\.api_key"):
        llm.generate(QUESTION)


@pytest.mark.anyio
async def test_check_fails_at_the_first_use_of_an_async_one() -> None:
    llm = AsyncLLM(NOWHERE, check=True)
    with pytest.raises(LLMFailure, match=r"storage\.url"):
        await llm.generate(QUESTION)
    with pytest.raises(LLMFailure, match=r"storage\.url"):
        await anext(llm.stream(QUESTION))
    with pytest.raises(LLMFailure, match=r"storage\.url"):
        async with llm:
            pass
    await llm.aclose()


def test_check_passes_where_a_server_runs(server: Server) -> None:
    with LLM(config_of(server), check=True) as llm:
        assert llm.generate(QUESTION).content == "Logs."
    with LLM(scripted_env("Logs."), check=True) as llm:
        assert llm.generate(QUESTION).content == "Logs."


@pytest.mark.anyio
async def test_a_manager_checks_too(server: Server) -> None:
    async with make_llm_manager(config_of(server)) as manager:
        assert (await manager.check()).value_or("failed") is None
    error = (await make_llm_manager(NOWHERE).check()).failure()
    assert isinstance(error, ConfigurationError)
    assert len(error.message.splitlines()) == 2


# Answers and failures.


def test_a_failure_holds_its_error_and_reads_as_its_sentence() -> None:
    with LLM(scripted_env(AuthenticationFailed(message="no such key"))) as llm, pytest.raises(LLMFailure) as raised:
        llm.generate(QUESTION)
    failure = raised.value
    assert failure.error.tag == "AuthenticationFailed"
    assert str(failure) == describe(failure.error) == "AuthenticationFailed (scripted): no such key"
    assert failure.__cause__ is None
    shown = "".join(traceback.format_exception(failure))
    assert shown.count("Traceback") == 1
    assert "concurrent/futures" not in shown
    assert shown.splitlines()[-1] == f"llm_effects.plain.fields.LLMFailure: {failure}"


def test_a_failure_can_be_pickled() -> None:
    failure = LLMFailure(InvalidRequest(message="prompt: blank", request=LLMRequest(prompt="?", metadata={"a": "b"})))
    copy = pickle.loads(pickle.dumps(failure))
    assert (str(copy), copy.error) == (str(failure), failure.error)


def test_a_defect_is_raised_as_itself() -> None:
    with LLM(scripted_env()) as llm, pytest.raises(BoomError):
        llm.run(broken())


def test_fields_of_the_request_are_keywords() -> None:
    env = scripted_env("Logs.")
    with LLM(env) as llm:
        llm.generate(
            QUESTION, model="scripted", system="Be brief.", task_type="analysis", max_tokens=7, timeout_ms=9000
        )
    whole = LLMRequest(prompt=QUESTION, model="scripted", system="Be brief.", task_type="analysis")
    preferences = Preferences(max_tokens=7, timeout_ms=9000)
    assert scripted_of(env).requests == (evolve(whole, preferences=preferences),)


def test_keywords_replace_fields_of_a_whole_request() -> None:
    env = scripted_env("Logs.")
    request = LLMRequest(prompt=QUESTION, tags=("a",), preferences=Preferences(max_tokens=7, seed=1))
    with LLM(env) as llm:
        llm.generate(request, max_tokens=8)
    assert scripted_of(env).requests == (evolve(request, preferences=Preferences(max_tokens=8, seed=1)),)


def test_preferences_without_a_keyword_of_their_own_are_passed_as_the_error_says() -> None:
    env = scripted_env("Logs.")
    with LLM(env) as llm:
        with pytest.raises(TypeError, match=r"'top_p': write preferences=Preferences\(top_p=...\)$"):
            llm.generate(QUESTION, top_p=0.5)  # type: ignore[call-arg]
        llm.generate(QUESTION, preferences=Preferences(top_p=0.5), max_tokens=7)
        with pytest.raises(LLMFailure, match=r"^InvalidRequest: preferences: must be Preferences, not dict"):
            llm.generate(QUESTION, preferences={"top_p": 0.5}, max_tokens=7)  # type: ignore[arg-type]
    assert scripted_of(env).requests[0].preferences == Preferences(top_p=0.5, max_tokens=7)


def test_an_unknown_keyword_is_a_type_error_and_a_wrong_value_a_failure() -> None:
    with LLM(scripted_env()) as llm:
        with pytest.raises(TypeError, match="max_token"):
            llm.generate(QUESTION, max_token=7)  # type: ignore[call-arg]
        with pytest.raises(LLMFailure, match="temperature: must be at most 2"):
            llm.generate(QUESTION, temperature=3)
        with pytest.raises(TypeError, match="a request is a str or an LLMRequest, not dict: write LLMRequest"):
            llm.generate({"prompt": QUESTION})  # type: ignore[arg-type]


def test_they_show_their_models_and_no_key() -> None:
    config = LLMConfig(models={"gpt": ModelConfig(provider="openai", api_key="sk-secret")})  # type: ignore[arg-type]
    assert (repr(LLM(config)), repr(AsyncLLM(config))) == ("LLM(gpt)", "AsyncLLM(gpt)")
    assert repr(LLM(scripted_env())) == "LLM(scripted)"


def test_every_operation_returns_its_value() -> None:
    with LLM(scripted_env("[2, 3]")) as llm:
        assert llm.generate_as("Two primes?", list[int]).value == [2, 3]
        assert llm.explain(QUESTION).candidates[0].model == "scripted"
        assert llm.check_health()[0].ready
        assert llm.usage_report(by="model").total.requests > 0
        assert llm.run(succeed(1)) == 1
    with LLM(scripted_env(calling(ToolCall("c", "free_space", '{"path": "/"}')), "Nearly full.")) as llm:
        assert llm.run_tools("How is the disk?", toolkit(free_space)).response.content == "Nearly full."
    kit = toolkit(tool(free_space, dangerous=True))
    with LLM(scripted_env(calling(ToolCall("c", "free_space", '{"path": "/"}')), "Nearly full.")) as llm:
        assert llm.run_tools("?", kit, approve=ask_later, run_id="r").end is ToolEnd.WAITING
        [approval] = llm.list_approvals()
        decided = llm.decide_approval(approval.id, Approved())
        assert llm.resume_tools("r", kit).response.content == "Nearly full."
        assert llm.list_approvals(decided=True) == (decided,)
    with LLM(scripted_env("No tools.")) as llm:
        llm.start_conversation("c", owner="ada")
        llm.run_tools("How is the disk?", toolkit(free_space), conversation_id="c", owner="ada")
        assert len(llm.load_conversation("c", owner="ada").turns) == 1


@pytest.mark.anyio
async def test_every_operation_of_an_async_one_returns_its_value() -> None:
    async with AsyncLLM(scripted_env("[2, 3]")) as llm:
        assert (await llm.generate("Two primes?")).content == "[2, 3]"
        assert (await llm.generate_as("Two primes?", list[int])).value == [2, 3]
        assert (await llm.explain(QUESTION)).candidates[0].model == "scripted"
        assert (await llm.check_health())[0].ready
        assert (await llm.usage_report(by="model")).total.requests > 0
        assert await llm.run(succeed(1)) == 1
    async with AsyncLLM(scripted_env(calling(ToolCall("c", "free_space", '{"path": "/"}')), "Nearly full.")) as llm:
        assert (await llm.run_tools("How is the disk?", toolkit(free_space))).response.content == "Nearly full."
    kit = toolkit(tool(free_space, dangerous=True))
    async with AsyncLLM(scripted_env(calling(ToolCall("c", "free_space", '{"path": "/"}')), "Nearly full.")) as llm:
        assert (await llm.run_tools("?", kit, approve=ask_later, run_id="r")).end is ToolEnd.WAITING
        [approval] = await llm.list_approvals()
        decided = await llm.decide_approval(approval.id, Approved())
        assert (await llm.resume_tools("r", kit)).response.content == "Nearly full."
        assert await llm.list_approvals(decided=True) == (decided,)
    async with AsyncLLM(scripted_env("No tools.")) as llm:
        await llm.start_conversation("c")
        await llm.run_tools("How is the disk?", toolkit(free_space), conversation_id="c")
        assert len((await llm.load_conversation("c")).turns) == 1


@pytest.mark.anyio
async def test_texts_are_embedded() -> None:
    config = LLMConfig(models={"small": ModelConfig(provider="ollama", model="nomic-embed-text")})
    with LLM(scripted_env(config=config)) as llm:
        [vector] = llm.embed(["cat"], model="small").vectors
    async with AsyncLLM(scripted_env(config=config)) as async_llm:
        assert (await async_llm.embed(["cat"])).vectors == (vector,)


def test_many_requests_give_answers_and_errors_in_order() -> None:
    with LLM(scripted_env("one", ContentRefused(), "three")) as llm:
        answers = llm.generate_many(["1?", LLMRequest(prompt="2?"), "3?", " "], concurrency=1)
    shown = [each.content if isinstance(each, LLMResponse) else each.tag for each in answers]
    assert shown == ["one", "ContentRefused", "three", "InvalidRequest"]


BATCHES = LLMConfig(models={"gpt": ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")})


def test_batches_of_a_provider() -> None:
    journal = store_journal("nightly")
    with LLM(scripted_env("one", ContentRefused(), config=BATCHES)) as llm:
        assert llm.submit_batch(["1?", "2?"], journal).jobs[0].requests == 2
        assert llm.batch_status(journal).ended
        assert llm.cancel_batch(journal).ended
        one, two = llm.collect_batch(["1?", "2?"], journal)
        assert isinstance(one, LLMResponse)
        assert isinstance(two, ContentRefused)
        assert llm.generate_many(["1?"], journal=journal, via="provider") == (one,)


@pytest.mark.anyio
async def test_batches_of_a_provider_with_await() -> None:
    journal = store_journal("nightly")
    async with AsyncLLM(scripted_env("one", config=BATCHES)) as llm:
        assert (await llm.submit_batch(["1?"], journal)).jobs[0].requests == 1
        assert (await llm.batch_status(journal)).ended
        assert (await llm.cancel_batch(journal)).ended
        answers = await llm.collect_batch(["1?"], journal)
        assert await llm.generate_many(["1?"], journal=journal, via="provider") == answers


def test_conversations() -> None:
    env = scripted_env(lambda request: f"{len(request.messages)} messages")
    with LLM(env) as llm:
        llm.start_conversation("c", owner="ada")
        assert llm.converse("c", "I am Ada.", owner="ada", max_tokens=5).content == "1 messages"
        assert llm.converse("c", Message("user", "Who am I?"), owner="ada", turn_id="t").content == "3 messages"
        assert [each.id for each in llm.list_conversations(owner="ada")] == ["c"]
        assert [each.id for each in llm.load_conversation("c", owner="ada").turns][-1] == "t"
        assert scripted_of(env).requests[0].preferences.max_tokens == 5
        with pytest.raises(LLMFailure, match="create it with start_conversation"):
            llm.converse("none", "Who am I?")


# Streams.


def test_a_stream_ends_with_the_answer() -> None:
    with LLM(scripted_env(Chunks(("Lo", "gs.")))) as llm:
        *events, last = llm.stream(QUESTION)
        assert isinstance(last, Completed)
        assert last.response.content == "Logs."
        assert [shows(event) for event in events] == ["Started", "Lo", "gs."]


def test_a_stream_that_fails_raises() -> None:
    seen = []
    with (
        LLM(scripted_env(Chunks(("Lo",), then=NetworkError(message="reset")))) as llm,
        pytest.raises(LLMFailure) as raised,
    ):
        seen.extend(map(shows, llm.stream(QUESTION)))
    assert raised.value.error.partial == "Lo"


def test_a_stream_asks_nothing_before_its_first_event() -> None:
    env = scripted_env("Logs.")
    with LLM(env) as llm:
        stream = llm.stream(QUESTION)
        stream.close()
        assert list(stream) == []
    assert scripted_of(env).calls == []


def test_a_stream_outlives_the_name_of_its_llm() -> None:
    stream = LLM(scripted_env(Chunks(("Lo", "gs.")))).stream(QUESTION)
    gc.collect()
    assert [shows(event) for event in stream] == ["Started", "Lo", "gs.", "Completed"]
    assert list(stream) == []


def test_a_stream_that_was_open_ends_with_its_llm(endless: Server) -> None:
    with LLM(config_of(endless)) as llm:
        stream = llm.stream(QUESTION)
        assert shows(next(stream)) == "Started"
    stream.close()
    with pytest.raises(LLMFailure, match="closed"):
        next(stream)
    assert endless.settled() == 0


def leave_by_break(llm: LLM) -> None:
    for event in llm.stream(QUESTION):
        if isinstance(event, TextDelta):
            break


def leave_by_exception(llm: LLM) -> None:
    def read() -> None:
        for event in llm.stream(QUESTION):
            if isinstance(event, TextDelta):
                raise BoomError

    with pytest.raises(BoomError):
        read()


def leave_by_close(llm: LLM) -> None:
    stream = llm.stream(QUESTION)
    assert isinstance(next(stream), Started)
    stream.close()


def leave_by_with(llm: LLM) -> None:
    with llm.stream(QUESTION) as stream:
        next(stream)


def leave_by_collection(llm: LLM) -> None:
    stream = llm.stream(QUESTION)
    next(stream)
    ring = [stream]
    ring.append(ring)  # type: ignore[arg-type]
    del stream, ring
    gc.collect()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_by_close, leave_by_with, leave_by_collection]
)
def test_leaving_a_stream_early_closes_its_connection(leave: Callable[[LLM], None], endless: Server) -> None:
    with LLM(config_of(endless)) as llm:
        leave(llm)
        assert endless.settled() == 0
        assert endless.accepted == 1


@pytest.mark.anyio
async def test_async_streams_end_with_the_answer() -> None:
    async with AsyncLLM(scripted_env(Chunks(("Lo", "gs.")))) as llm:
        events = [event async for event in llm.stream(QUESTION)]
        assert [shows(event) for event in events] == ["Started", "Lo", "gs.", "Completed"]


@pytest.mark.anyio
async def test_an_async_stream_that_fails_raises() -> None:
    llm = AsyncLLM(scripted_env(AuthenticationFailed(message="no such key")))
    with pytest.raises(LLMFailure, match="no such key"):
        _ = [event async for event in llm.stream(QUESTION)]


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["break", "exception", "aclose", "with", "collection", "cancel"])
async def test_leaving_an_async_stream_early_closes_its_connection(way: str, endless: Server) -> None:
    async def read() -> None:
        stream = llm.stream(QUESTION)
        async for event in stream:
            if way == "cancel" or not isinstance(event, TextDelta):
                continue
            if way == "exception":
                raise BoomError
            break
        if way == "aclose":
            await stream.aclose()

    async with AsyncLLM(config_of(endless)) as llm:
        if way == "exception":
            with pytest.raises(BoomError):
                await read()
        elif way == "with":
            async with llm.stream(QUESTION) as stream:
                await anext(stream)
        elif way == "collection":
            ring: list[object] = [llm.stream(QUESTION)]
            await anext(ring[0])  # type: ignore[call-overload]
            ring.append(ring)
            del ring
            gc.collect()
        else:
            with anyio.move_on_after(0.2 if way == "cancel" else 5):
                await read()
        assert await anyio.to_thread.run_sync(endless.settled) == 0


@pytest.mark.anyio
async def test_a_defect_behind_a_stream_is_raised_as_itself() -> None:
    def raise_it(_: LLMRequest) -> str:
        raise BoomError

    async with AsyncLLM(scripted_env(raise_it)) as llm:
        with pytest.raises(BoomError):
            await anext(llm.stream(QUESTION))


@pytest.mark.anyio
async def test_the_turn_of_a_stream_that_is_left_is_interrupted() -> None:
    async with AsyncLLM(scripted_env(Chunks(("Lo", "gs.")))) as llm:
        await llm.start_conversation("c")
        async with llm.converse_stream("c", QUESTION, turn_id="t") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        [turn] = (await llm.load_conversation("c")).turns
        assert (turn.state, turn.messages[-1].message.text) == (TurnState.INTERRUPTED, "Lo")


def test_a_turn_can_be_streamed() -> None:
    with LLM(scripted_env(Chunks(("Lo", "gs.")))) as llm:
        llm.start_conversation("c")
        assert [shows(event) for event in llm.converse_stream("c", QUESTION)] == ["Started", "Lo", "gs.", "Completed"]
        assert llm.load_conversation("c").turns[0].state is TurnState.FINISHED


# Threads, loops and processes.


def test_it_works_inside_a_running_event_loop() -> None:
    async def cell() -> str:
        return LLM(scripted_env("Logs.")).generate(QUESTION).content

    assert asyncio.run(cell()) == "Logs."
    assert anyio.run(cell, backend="trio") == "Logs."


def test_threads_share_one(server: Server) -> None:
    with LLM(config_of(server)) as llm, concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(llm.generate, f"{number}?") for number in range(32)]
        assert {future.result().content for future in futures} == {"Logs."}


def test_connections_are_reused(server: Server) -> None:
    with LLM(config_of(server)) as llm:
        for number in range(3):
            llm.generate(f"{number}?")
    assert server.accepted == 1
    assert server.settled() == 0


def test_the_callers_context_is_that_of_the_call() -> None:
    from contextvars import ContextVar

    who = ContextVar("who", default="nobody")
    who.set("ada")
    with LLM(scripted_env(lambda _: who.get())) as llm:
        assert llm.generate(QUESTION).content == "ada"


def test_it_refuses_to_wait_for_itself() -> None:
    def ask_again(_: LLMRequest) -> str:
        return llm.generate("And again?").content

    with LLM(scripted_env(ask_again)) as llm, pytest.raises(RuntimeError, match="inside an event loop use AsyncLLM"):
        llm.generate(QUESTION)


def test_ctrl_c_cancels_the_call(silent: Server) -> None:
    def interrupt() -> None:
        silent.asked()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with LLM(config_of(silent)) as llm:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(QUESTION)
        assert silent.settled() == 0


def test_ctrl_c_ends_a_stream(endless: Server) -> None:
    def interrupt() -> None:
        time.sleep(0.3)  # the events that the server sends have been read
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with LLM(config_of(endless)) as llm:
        stream = llm.stream(QUESTION)
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        assert list(stream) == []
        assert endless.settled() == 0


def test_closing_cancels_calls_in_other_threads(silent: Server) -> None:
    llm = LLM(config_of(silent))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(llm.generate, QUESTION)
        silent.asked()
        llm.close()
        with pytest.raises(LLMFailure, match="this LLM is closed"):
            future.result(5)
    assert silent.settled() == 0


def test_closing_twice_is_fine_and_later_use_fails() -> None:
    llm = LLM(scripted_env("Logs."))
    assert llm.generate(QUESTION).content == "Logs."
    llm.close()
    llm.close()
    with pytest.raises(LLMFailure, match="this LLM is closed: make another one"):
        llm.generate(QUESTION)
    with pytest.raises(LLMFailure, match="closed"), llm:
        pass
    LLM(scripted_env()).close()


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llm-effects"]


def test_a_dropped_one_ends_its_thread(server: Server) -> None:
    LLM(config_of(server)).generate(QUESTION)
    gc.collect()
    until = time.monotonic() + 5
    while own_threads() and time.monotonic() < until:
        time.sleep(0.005)
    assert own_threads() == []
    assert server.settled() == 0


@pytest.mark.anyio
async def test_an_async_one_works_without_with_and_after_closing_it_does_not(server: Server) -> None:
    llm = AsyncLLM(config_of(server))
    assert (await llm.generate(QUESTION)).content == "Logs."
    await llm.aclose()
    await llm.aclose()
    with pytest.raises(LLMFailure, match="closed"):
        await llm.generate("Another?", cache="bypass")
    assert await anyio.to_thread.run_sync(server.settled) == 0


def test_an_async_one_works_in_several_event_loops(server: Server) -> None:
    llm = AsyncLLM(config_of(server))

    async def ask(number: int) -> str:
        return (await llm.generate(f"{number}?")).content

    backends = ("asyncio", "trio", "asyncio")
    assert [anyio.run(ask, each, backend=backend) for each, backend in enumerate(backends)] == ["Logs."] * 3
    anyio.run(llm.aclose)


def test_the_environment_stays_open(server: Server) -> None:
    async def main() -> str:
        async with open_env(config_of(server)) as env:
            async with AsyncLLM(env) as llm:
                await llm.generate("1?")
            return (await AsyncLLM(env).run(generate("2?"))).content

    assert anyio.run(main) == "Logs."


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_begins_anew(server: Server) -> None:
    with LLM(config_of(server)) as llm:
        assert llm.generate("parent?").content == "Logs."
        child = os.fork()
        if child == 0:
            answered = False
            try:
                answered = llm.generate("child?").content == "Logs."
                llm.close()
            finally:
                os._exit(0 if answered else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert llm.generate("parent again?").content == "Logs."


def test_one_that_is_stopped_while_it_opens_ends() -> None:
    opening, go_on, before = threading.Event(), threading.Event(), tasks._RUNNING.copy()

    @asynccontextmanager
    async def scope() -> AsyncGenerator[None]:
        opening.set()
        await anyio.to_thread.run_sync(go_on.wait)
        yield

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(LoopThread, scope())
        opening.wait(5)
        [running] = tasks._RUNNING - before
        try:
            running.stop()
        finally:
            go_on.set()
        loop_thread = made.result(5)
    loop_thread.join(5)
    assert not loop_thread.alive
    with pytest.raises(LoopStopped):
        loop_thread.wait(lambda: anyio.lowlevel.checkpoint())


# The end of the interpreter.


def run_strictly(program: str, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program in development mode, where a warning is an error."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", program, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)
    slow = [line for line in done.stderr.splitlines() if "seconds" not in line]  # asyncio on a slow machine
    assert slow == [], done.stderr
    return done


START = f"""
import sys
from llm_effects import LLM, AsyncLLM, LLMConfig, LLMFailure, ModelConfig
from llm_effects.config import StorageConfig
url, folder = sys.argv[1:]
model = ModelConfig(provider="lm-studio", model="m", endpoint=url)
config = LLMConfig(models={{"m": model}}, storage=StorageConfig(url=f"sqlite:///{{folder}}/kept.db"))
question = {QUESTION!r}
"""

ENDINGS = {
    "never closed": "llm = LLM(config); print(llm.generate(question).content)",
    "one line": "print(LLM(config).generate(question).content)",
    "in a thread": """
import threading
def work():
    global llm
    llm = LLM(config)
    print(llm.generate(question).content)
thread = threading.Thread(target=work); thread.start(); thread.join()""",
    "a conversation": """
llm = LLM(config)
llm.start_conversation("c")
print(llm.converse("c", question).content)""",
    "an async one": """
import anyio
async def main():
    print((await AsyncLLM(config).generate(question)).content)
anyio.run(main)""",
    "a child process": """
import os
llm = LLM(config); answer = llm.generate(question).content
child = os.fork()
if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(llm.generate("child?").content)""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_silently(ending: str, server: Server, tmp_path: Path) -> None:
    done = run_strictly(START + ENDINGS[ending], server.url, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "Logs.\n")


LEFT_OPEN = {
    "a stream": "llm = LLM(config); stream = llm.stream(question); print(type(next(stream)).__name__)",
    "a stream that was left": """
llm = LLM(config)
for event in llm.stream(question):
    print(type(event).__name__)
    break""",
    "an async stream": """
import anyio
async def main():
    async for event in AsyncLLM(config).stream(question):
        print(type(event).__name__)
        break
anyio.run(main)""",
    "an async stream on trio": """
import anyio
async def main():
    global stream
    stream = AsyncLLM(config).stream(question)
    print(type(await anext(stream)).__name__)
anyio.run(main, backend="trio")""",
    "a call in another thread": """
import threading
llm = LLM(config)
def work():
    try:
        llm.generate(question)
    except LLMFailure as failure:
        assert "closed" in str(failure), failure
threading.Thread(target=work, daemon=True).start()
import time
time.sleep(0.3)
print("Started")""",
}


@pytest.mark.parametrize("left", LEFT_OPEN)
def test_a_process_ends_silently_with_something_open(left: str, endless: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    done = run_strictly(START + LEFT_OPEN[left], endless.url, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "Started\n")
    assert time.monotonic() - began < 30
    assert endless.settled() == 0


def test_ctrl_c_ends_a_script(silent: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", START + "LLM(config).generate(question)", silent.url, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as script:
        silent.asked(within=20)
        script.send_signal(signal.SIGINT)
        _, shown = script.communicate(timeout=20)
    assert shown.splitlines()[-1] == "KeyboardInterrupt"
    assert silent.settled() == 0
