"""The plugin for pytest: environments without models, recordings, and an error for every call of a real model.

It is loaded in every project that has the package installed, so it imports nothing else before a test asks for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from llm_effects.clients.client import LiveClients
    from llm_effects.config import LLMConfig
    from llm_effects.effects.env import LLMEnv
    from llm_effects.testing import Mode, Recording, Scripted

MODES: Final = ("replay", "new", "refresh")
"""The modes of ``recorded`` that ``--llm-record`` chooses from."""

FOLDER: Final = "recordings"
"""The folder of recordings, beside the module of the test."""


class RealModelCall(RuntimeError):  # noqa: N818 - a mistake in a test
    """A test called a real model without permission."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of recordings and of calls to real models."""
    group = parser.getgroup("llm_effects", "models in tests")
    group.addoption(
        "--llm-record",
        choices=MODES,
        default="replay",
        help="replay recordings (the default), record what is missing in them (new), or record them again (refresh)",
    )
    parser.addini("llm_real", "permit every test to call real models", type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Guard the clients of real models, before a conftest loads them."""
    _guard_of(early_config)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and guard the clients of real models."""
    config.addinivalue_line(
        "markers", "llm_recording(name, gaps=False): the models of llm_env are recorded or replayed"
    )
    config.addinivalue_line("markers", "llm_real: the test may call real models")
    if config.getini("llm_real"):
        _guard_of(config).permit_all()
    _guard_of(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the guard."""
    guard = config.stash.get(_GUARD, None)
    if guard is not None:
        guard.remove()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Permit calls of real models by the marker of the test."""
    guard = item.config.stash[_GUARD]
    guard.enter(permitted=item.get_closest_marker("llm_real") is not None)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that passes only because it handles the error of the guard or of a recording."""
    item.stash[_FAILED] = True
    yield
    item.stash[_FAILED] = False
    recording = item.stash.get(_RECORDING, None)
    problems = [*item.config.stash[_GUARD].refused, *(() if recording is None else recording.misses)]
    if recording is None and any(each.name == "llm_recording" for each in item.own_markers):
        problems.append("the marker llm_recording does nothing without the fixture llm_env: add it to the test")
    _fail_for(problems)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Withdraw the permission of the test after its fixtures are gone, and fail for calls that they made without it."""
    guard = item.config.stash[_GUARD]
    known = len(guard.refused)
    try:
        result = yield
    finally:
        guard.leave()
    _fail_for(guard.refused[known:])
    return result


def _fail_for(problems: Sequence[str]) -> None:
    if problems:
        pytest.fail("\n".join(dict.fromkeys(problems)), pytrace=False)


# The guard.

CLIENT: Final = "llm_effects.clients.client"
"""The module of the clients that call real models."""

REMEDY: Final = (
    "give the test scripted models (the fixture llm_env), record them (@pytest.mark.llm_recording), "
    "or permit the call (@pytest.mark.llm_real, or llm_real = true in the configuration of pytest)"
)


@final
class Guard:
    """A guard of the clients of real models: without permission, a call raises ``RealModelCall``.

    It is installed as soon as their module is loaded, and loads nothing itself.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._always = self._permitted = False
        self._replaced: list[tuple[Any, str, Any]] = []
        self._finder = _Finder(self.wrap)

    def permit_all(self) -> None:
        """Permit every call."""
        self._always = self._permitted = True

    def enter(self, *, permitted: bool) -> None:
        """Begin a test."""
        self.refused.clear()
        self._permitted = self._always or permitted

    def permit(self) -> None:
        """Permit calls until the test ends."""
        self._permitted = True

    def leave(self) -> None:
        """End a test."""
        self._permitted = self._always

    def install(self) -> None:
        """Guard the clients now, or when they are loaded."""
        sys.meta_path.insert(0, self._finder)
        if CLIENT in sys.modules:
            self.wrap(sys.modules[CLIENT])

    def remove(self) -> None:
        """Restore the clients."""
        sys.meta_path.remove(self._finder)
        for clients, name, method in self._replaced:
            setattr(clients, name, method)

    def wrap(self, module: ModuleType) -> None:
        """Replace the methods that reach a model."""
        clients: Any = module.LiveClients
        for name in ("answer", "embed", "probe"):
            method = getattr(clients, name)
            self._replaced.append((clients, name, method))
            setattr(clients, name, self._guarded(method))

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(clients: LiveClients, asked: Any, *rest: Any) -> Any:  # noqa: ANN401 - a call, or a name
            name: str = getattr(asked, "model", asked)
            if not self._permitted and (name in clients.engines or clients.transport.reaches_network):
                self._refuse(name)
            return method(clients, asked, *rest)

        return guarded

    def _refuse(self, name: str) -> NoReturn:
        self.refused.append(f"a test called the real model {name!r}: {REMEDY}")
        raise RealModelCall(self.refused[-1])


@final
class _Finder(MetaPathFinder):
    """A finder for the modules of the package: it calls a function with that of the clients once it is loaded.

    pytest rewrites the assertions of every package with a plugin, which takes 0.6 seconds for this one, at least once.
    It has none, so its modules are loaded as they are.
    """

    def __init__(self, loaded: Callable[[ModuleType], None]) -> None:
        self._loaded = loaded

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module of the package where Python finds modules."""
        if not name.startswith("llm_effects."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if name == CLIENT and spec is not None and spec.loader is not None:
            spec.loader = _Announced(spec.loader, self._loaded)
        return spec


@final
class _Announced(Loader):
    """A loader that is there only while its module is loaded, and calls a function afterwards."""

    def __init__(self, loader: Loader, loaded: Callable[[ModuleType], None]) -> None:
        self._loader, self._loaded = loader, loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with its own loader in place."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._loaded(module)


_GUARD: Final = pytest.StashKey[Guard]()


def _guard_of(config: pytest.Config) -> Guard:
    guard = config.stash.get(_GUARD, None)
    if guard is None:
        guard = config.stash[_GUARD] = Guard()
        guard.install()
    return guard


# The fixtures.


@pytest.fixture
def llm_config() -> LLMConfig:
    """Return the configuration of ``llm_env``: one scripted model. Override this fixture for your own."""
    from llm_effects.testing.scripted import ONE_MODEL

    return ONE_MODEL


@pytest.fixture
def scripted_llm() -> Scripted:
    """Return the models of ``llm_env``: set their ``replies``, and look at their ``requests``."""
    from llm_effects.testing import scripted

    return scripted()


@pytest.fixture
def llm_env(request: pytest.FixtureRequest) -> LLMEnv:
    """Return an environment without real models: scripted, or recorded where the test is marked so."""
    if _marker_of(request) is not None:
        recorded_env: LLMEnv = request.getfixturevalue("llm_recording")
        return recorded_env
    from llm_effects.testing import scripted_env

    config, clients = (request.getfixturevalue(name) for name in ("llm_config", "scripted_llm"))
    return scripted_env(config=config, clients=clients)


@pytest.fixture
def llm_recording(request: pytest.FixtureRequest, llm_config: LLMConfig) -> Iterator[LLMEnv]:
    """Return an environment whose models are replayed from a recording beside the test, or recorded to it.

    ``--llm-record`` chooses: ``replay``, ``new`` or ``refresh``. The name is that of the marker ``llm_recording``, or
    of the test; with ``gaps`` the replay takes as long as the recording did. A test that fails does not replace what it
    did not ask again, nor does one drop what another test of the same run recorded. Everything but the models is as in
    ``scripted_env``.
    """
    import anyio
    from attrs import evolve

    from llm_effects import testing

    mode: Mode = request.config.getoption("--llm-record") or "replay"
    live = None if mode == "replay" else _live(request, llm_config)
    env = testing.scripted_env(config=llm_config, clients=live)
    name, gaps = _marked(request)
    recording = request.node.stash[_RECORDING] = testing.Recording.opened(env, _path_of(request, name), mode, gaps=gaps)
    yield evolve(env, clients=recording)
    first = _is_first(request.config, recording.path)
    recording.save(whole=first and not request.node.stash.get(_FAILED, False))
    if live is not None:
        anyio.run(live.aclose)


def _live(request: pytest.FixtureRequest, config: LLMConfig) -> LiveClients:
    from llm_effects.manager import live_clients, transport_of

    request.config.stash[_GUARD].permit()
    return live_clients(config, transport_of(config))


def _is_first(config: pytest.Config, path: Path) -> bool:
    """Return whether no other test of this run has recorded to the file; workers of xdist do not know of each other."""
    written = config.stash.setdefault(_WRITTEN, set[str]())
    first = f"{path}" not in written and not hasattr(config, "workerinput")
    written.add(f"{path}")
    return first


def _path_of(request: pytest.FixtureRequest, name: str) -> Path:
    """Return the path of a recording by its name, beside the module of the test."""
    file = re.sub(r"[^\w.-]+", "-", name).strip("-")
    return request.path.parent / FOLDER / f"{file}.jsonl"


def _marked(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Return the name of a recording, by the marker or else that of the test, and whether it replays its gaps."""

    def llm_recording(
        name: str = f"{request.path.stem}.{request.node.name}", *, gaps: bool = False
    ) -> tuple[str, bool]:
        return str(name), bool(gaps)

    marker = _marker_of(request)
    return llm_recording() if marker is None else llm_recording(*marker.args, **marker.kwargs)


def _marker_of(request: pytest.FixtureRequest) -> pytest.Mark | None:
    marker: pytest.Mark | None = request.node.get_closest_marker("llm_recording")
    return marker


_RECORDING: Final[pytest.StashKey[Recording]] = pytest.StashKey()
_FAILED: Final = pytest.StashKey[bool]()
_WRITTEN: Final = pytest.StashKey[set[str]]()
