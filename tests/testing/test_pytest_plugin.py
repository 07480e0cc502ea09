"""The plugin for pytest, as the tests of users have it: fixtures, recordings, and the guard of real models."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from attrs import define

from llm_effects.testing import pytest_plugin
from tests.fixtures.house import ROOT

# Loaded by its module, whether the package is installed with its entry point or not.
PLUGIN = ("-p", "no:llm_effects", "-p", pytest_plugin.__name__, "-p", "no:cacheprovider")

CONFTEST = """
import pytest

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""


@pytest.fixture
def tests(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error")
    pytester.makeconftest(CONFTEST)
    return pytester


def run_tests(tests: pytest.Pytester, *options: str) -> pytest.RunResult:
    return tests.runpytest_inprocess(*PLUGIN, *options, plugins=[Libraries(tests.path)])


@define
class Libraries:
    """What the tests load: pytest inside pytest forgets it, and a second copy of a library would have other classes."""

    tests: Path

    def pytest_unconfigure(self) -> None:
        for name, module in sys.modules.items():
            if str(self.tests) not in str(getattr(module, "__file__", "")):
                LOADED.setdefault(name, module)


LOADED: dict[str, ModuleType] = {}


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    """Keep the libraries: this fixture ends after that of pytest inside pytest."""
    yield
    for name, module in LOADED.items():
        sys.modules.setdefault(name, module)


SCRIPTED = """
import pytest
from llm_effects import ModelConfig, LLMConfig, generate, run

@pytest.mark.anyio
async def test_scripted(llm_env, scripted_llm):
    scripted_llm.replies = ("All is well.",)
    assert (await run(generate("Status?"), llm_env)).unwrap().content == "All is well."
    assert [request.prompt for request in scripted_llm.requests] == ["Status?"]

@pytest.mark.anyio
async def test_each_test_has_its_own(llm_env, scripted_llm):
    assert scripted_llm.requests == ()
    assert (await run(generate("Status?"), llm_env)).unwrap().content == "ok"

class TestOwnConfig:
    @pytest.fixture
    def llm_config(self):
        return LLMConfig(models={"local": ModelConfig(provider="lm-studio", model="m")})

    @pytest.mark.anyio
    async def test_config(self, llm_env):
        assert (await run(generate("Status?"), llm_env)).unwrap().model == "local"
"""


LOADED_AS_IT_IS = """
def test_no_module_of_the_package_is_rewritten_by_pytest():
    import sys
    import llm_effects.manager
    loaders = {type(module.__loader__).__name__ for name, module in sys.modules.items() if "llm_effects." in name}
    assert loaders - {"AssertionRewritingHook"} == {"SourceFileLoader"}
    assert type(llm_effects.manager.__loader__).__name__ == "SourceFileLoader"
"""


def test_the_fixtures_are_there_without_a_conftest(tests: pytest.Pytester) -> None:
    tests.makepyfile(SCRIPTED)
    run_tests(tests).assert_outcomes(passed=6)


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"llm_effects": pytest_plugin.__name__}


def test_an_installed_package_brings_the_plugin(tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds the entry point in the metadata of a package, as pip writes them."""
    metadata = tests.mkdir("site") / "llm_effects_as_installed-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: llm_effects_as_installed\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[pytest11]\nllm_effects = {pytest_plugin.__name__}\n")
    (metadata / "RECORD").write_text("llm_effects/__init__.py,,\n")
    monkeypatch.setenv("PYTHONPATH", f"{metadata.parent}:{ROOT}")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    tests.makepyfile(SCRIPTED + LOADED_AS_IT_IS)
    done = tests.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", timeout=120)
    done.assert_outcomes(passed=7)


def test_the_options_and_markers_are_shown(tests: pytest.Pytester) -> None:
    run_tests(tests, "--markers").stdout.fnmatch_lines(["@pytest.mark.llm_recording(name*", "@pytest.mark.llm_real: *"])
    run_tests(tests, "--help").stdout.fnmatch_lines(["*--llm-record={replay,new,refresh}*"])


# The guard.

SERVED = """
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from attrs import evolve
from llm_effects.config import Capabilities
from llm_effects import LLM, LLMConfig, ModelConfig, check_health, embed, generate, open_env, run

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Logs."}, "finish_reason": "stop"}]}

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

@pytest.fixture
def llm_config():
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield LLMConfig(models={"real": ModelConfig(
        provider="openai-compatible", model="m", endpoint=f"http://127.0.0.1:{server.server_port}/v1"
    )})
    server.shutdown()
    thread.join()
    server.server_close()
"""

GUARDED = """
@pytest.mark.anyio
async def test_effect(llm_config):
    async with open_env(llm_config) as env:
        await run(generate("Why?"), env)

def test_plain(llm_config):
    with LLM(llm_config) as llm:
        llm.generate("Why?")

@pytest.mark.anyio
async def test_health(llm_config):
    async with open_env(llm_config) as env:
        await run(check_health(), env)

@pytest.mark.anyio
async def test_embedding(llm_config):
    able = Capabilities(embeddings=True)
    models = {name: evolve(each, capabilities=able) for name, each in llm_config.models.items()}
    async with open_env(evolve(llm_config, models=models)) as env:
        await run(embed(("Why?",)), env)

def test_handled(llm_config):
    try:
        with LLM(llm_config) as llm:
            llm.generate("Why?")
    except Exception:
        pass
"""


def test_a_call_of_a_real_model_is_an_error_with_the_remedy(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + GUARDED)
    done = run_tests(tests)
    done.assert_outcomes(failed=8)
    done.stdout.fnmatch_lines(["*RealModelCall: a test called the real model 'real': give the test scripted models*"])
    done.stdout.fnmatch_lines(["*a test called the real model 'real'*@pytest.mark.llm_real*"])


IN_TEARDOWN = """
@pytest.fixture
def careless(llm_config):
    yield
    try:
        with LLM(llm_config) as llm:
            llm.generate("Why?")
    except Exception:
        pass

def test_a_call_in_the_teardown(careless):
    pass
"""


def test_a_call_that_a_teardown_hides_is_an_error(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + IN_TEARDOWN)
    done = run_tests(tests)
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*a test called the real model 'real'*"])


def test_a_marker_without_the_environment_is_a_mistake(tests: pytest.Pytester) -> None:
    tests.makepyfile("import pytest\n\n@pytest.mark.llm_recording('a')\ndef test_nothing():\n    pass\n")
    done = run_tests(tests)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*does nothing without the fixture llm_env: add it to the test*"])


PERMITTED = """
@pytest.mark.llm_real
@pytest.mark.anyio
async def test_permitted(llm_config):
    async with open_env(llm_config) as env:
        assert (await run(generate("Why?"), env)).unwrap().content == "Logs."

@pytest.mark.anyio
async def test_the_next_one_is_guarded(llm_config):
    with pytest.raises(Exception, match="real model"):
        async with open_env(llm_config) as env:
            await run(generate("Why?"), env)
"""


def test_a_marker_permits_the_calls_of_one_test(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + PERMITTED)
    run_tests(tests).assert_outcomes(passed=2, failed=2)


def test_a_setting_permits_all_calls(tests: pytest.Pytester) -> None:
    tests.makeini("[pytest]\nllm_real = true")
    tests.makepyfile(SERVED + PERMITTED)
    run_tests(tests).assert_outcomes(passed=2, failed=2)  # the second pair expects to be refused


def test_the_model_in_this_process_is_a_real_one(tests: pytest.Pytester) -> None:
    tests.makepyfile("""
import pytest
from llm_effects import LLMConfig, ModelConfig, generate, open_env, run

@pytest.mark.anyio
async def test_it(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    async with open_env(LLMConfig(models={"here": ModelConfig(provider="llama", model_path=str(path))})) as env:
        await run(generate("Why?"), env)
""")
    done = run_tests(tests)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["*a test called the real model 'here'*"])


MOCKED = """
import httpx
import pytest
from llm_effects import LLMConfig, ModelConfig, generate, open_env, run
from llm_effects.clients.transport.transport import Transport

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Logs."}, "finish_reason": "stop"}]}
CONFIG = LLMConfig(models={"m": ModelConfig(provider="openai-compatible", model="m", endpoint="http://models.test/v1")})

@pytest.mark.anyio
async def test_pytest_httpx(httpx_mock):
    httpx_mock.add_response(json=ANSWER)
    async with open_env(CONFIG) as env:
        assert (await run(generate("Why?"), env)).unwrap().content == "Logs."

@pytest.mark.anyio
async def test_own_pool():
    pool = httpx.MockTransport(lambda request: httpx.Response(200, json=ANSWER))
    async with open_env(CONFIG, transport=lambda: Transport(make_pool=lambda size: pool)) as env:
        assert (await run(generate("Why?"), env)).unwrap().content == "Logs."
"""


def test_a_mock_of_httpx_is_no_real_model(tests: pytest.Pytester) -> None:
    tests.makepyfile(MOCKED)
    run_tests(tests).assert_outcomes(passed=4)


def test_the_guard_waits_for_the_clients_to_be_loaded(tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, where a test is the first to load them."""
    tests.makepyfile("""
import sys
import pytest

def test_it():
    assert "llm_effects.clients.client" not in sys.modules
    assert "httpx" not in sys.modules
    from llm_effects import LLM, LLMConfig, ModelConfig
    config = LLMConfig(models={"real": ModelConfig(provider="lm-studio", endpoint="http://127.0.0.1:9/v1")})
    with pytest.raises(RuntimeError, match="real model 'real'"), LLM(config) as llm:
        llm.generate("Why?")
    client = sys.modules["llm_effects.clients.client"]
    assert client.__spec__.loader is client.__loader__
    assert type(client.__loader__).__module__ != "llm_effects.testing.pytest_plugin"
""")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = tests.runpytest_subprocess(*PLUGIN, timeout=120)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*a test called the real model 'real'*"])
    assert "AssertionError" not in done.stdout.str()


# Recordings.

RECORDED = """
@pytest.mark.anyio
@pytest.mark.llm_recording("incident")
async def test_recorded(llm_env):
    assert (await run(generate("Why?"), llm_env)).unwrap().content == "Logs."
"""


def test_a_recording_is_made_once_and_replayed_ever_after(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + RECORDED)
    path = tests.path / "recordings" / "incident.jsonl"
    missing = run_tests(tests)
    missing.assert_outcomes(errors=2)
    missing.stdout.fnmatch_lines(["*there is no such recording: record it with*pytest --llm-record=new*"])
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=2)
    written = path.read_text()
    assert len(written.splitlines()) == 2
    tests.makepyfile(SERVED.replace('"Logs."', '"Something else."') + RECORDED)
    run_tests(tests).assert_outcomes(passed=2)
    assert path.read_text() == written
    run_tests(tests, "--llm-record=refresh").assert_outcomes(failed=2)
    assert "Something else." in path.read_text()


SHARED = """
@pytest.mark.anyio
@pytest.mark.llm_recording("incident")
@pytest.mark.parametrize("prompt", ["Why?", "How?", "Who?"])
async def test_recorded(llm_env, prompt):
    assert (await run(generate(prompt), llm_env)).unwrap().content == "Logs."
"""


def test_tests_that_share_a_recording_refresh_it_together(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + SHARED)
    path = tests.path / "recordings" / "incident.jsonl"
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=6)
    path.write_text(path.read_text().replace('"Why?"', '"Where?"'))
    run_tests(tests, "--llm-record=refresh").assert_outcomes(passed=6)
    assert "Where?" not in path.read_text()
    run_tests(tests).assert_outcomes(passed=6)


def test_a_miss_fails_the_test_though_it_is_handled(tests: pytest.Pytester) -> None:
    tests.makepyfile(SERVED + RECORDED)
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=2)
    handled = RECORDED.replace("Why?", "How?").replace('unwrap().content == "Logs."', "failure()")
    tests.makepyfile(SERVED + handled)
    done = run_tests(tests)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["incident.jsonl, line 2: messages*0*.text: recorded 'Why?', asked 'How?'*"])


def test_a_recording_without_a_name_has_that_of_its_test(tests: pytest.Pytester) -> None:
    tests.makepyfile(test_disks=SERVED + RECORDED.replace('("incident")', ""))
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=2)
    names = {path.name for path in Path(tests.path, "recordings").iterdir()}
    assert names == {"test_disks.test_recorded-asyncio.jsonl", "test_disks.test_recorded-trio.jsonl"}


def test_the_arguments_of_the_marker_are_read_by_name_and_checked(tests: pytest.Pytester) -> None:
    named = RECORDED.replace('("incident")', '(name="incident")')
    tests.makepyfile(SERVED + named)
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=2)
    assert [each.name for each in (tests.path / "recordings").iterdir()] == ["incident.jsonl"]
    tests.makepyfile(SERVED + named.replace('"incident")', '"incident", gap=True)'))
    wrong = run_tests(tests)
    wrong.assert_outcomes(errors=2)
    wrong.stdout.fnmatch_lines(["*llm_recording() got an unexpected keyword argument 'gap'*"])


def test_plain_python_is_recorded_too(tests: pytest.Pytester) -> None:
    tests.makepyfile(
        SERVED
        + """
@pytest.mark.llm_recording("plain")
def test_plain(llm_env):
    with LLM(llm_env) as llm:
        assert llm.generate("Why?").content == "Logs."
"""
    )
    run_tests(tests, "--llm-record=new").assert_outcomes(passed=1)
    run_tests(tests).assert_outcomes(passed=1)


def test_gaps_are_replayed_in_virtual_time(tests: pytest.Pytester) -> None:
    folder = tests.mkdir("recordings")
    (folder / "slow.jsonl").write_text(
        '{"llm_effects_recording": 1}\n'
        '{"model": "scripted", "request": {"messages": [{"role": "user", "text": "Why?"}]}, '
        '"answer": {"content": "Logs.", "provider": "p"}, "timing": {"after_ms": 3600000.0}}\n'
    )
    tests.makepyfile("""
import pytest
from llm_effects import LLMRequest, Preferences, generate, run
from llm_effects.testing import run_in_virtual_time

@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.llm_recording("slow", gaps=True)
def test_slow(llm_env, backend):
    request = LLMRequest(prompt="Why?", preferences=Preferences(timeout_ms=7_200_000))
    answer = run_in_virtual_time(run, generate(request), llm_env, backend=backend).unwrap()
    assert answer.attempts[0].latency_ms == 3_600_000
""")
    done = run_tests(tests)
    done.assert_outcomes(passed=2)
