"""``serve``: the endpoint as a process, its options, and how it stops."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import httpx
import pytest
from attrs import define

from tests.fixtures.chaos import CANARY, HEAD, Chaos, Step, chunk, drips, good, piece, says
from tests.fixtures.cli import Cli, clean_environ, process
from tests.fixtures.endpoint import QUESTION
from tests.fixtures.servers import reply_json

LISTED = says(reply_json({"data": [{"id": "m"}]}))
KEY = "key-of-ada-1234567890"


def configure(cli: Cli, chaos: Chaos, *steps: Step, more: str = "") -> None:
    """Configure one model that answers the check, and then takes some steps."""
    endpoint = chaos.endpoint(chaos.plan(LISTED, *steps))
    model = f'provider = "openai-chat"\nmodel = "m"\nendpoint = "{endpoint}"\napi_key = "{CANARY}"'
    cli.config.write_text(f'[models.house]\n{model}\n[storage]\nurl = "sqlite:///{cli.folder}/llm.db"\n{more}')


@final
@define
class Running:
    """The program as a process that serves, and where."""

    process: "subprocess.Popen[str]"
    url: str
    heading: str

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what was written to standard error since the heading."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def serving(cli: Cli, *options: str, **variables: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "llm_effects", "serve", "--config", str(cli.config), "--port", "0", *options]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environ(**variables)
    )
    try:
        assert running.stderr is not None
        heading = running.stderr.readline()
        found = re.search(r"at (http://\S+);", heading)
        assert found, heading + running.communicate(timeout=30)[1]
        yield Running(running, found[1], heading)
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_until_it_is_stopped(cli: Cli, chaos: Chaos, number: int) -> None:
    configure(cli, chaos, good)
    with serving(cli) as running:
        assert running.heading.startswith("Serving auto, house at http://127.0.0.1:")
        answer = httpx.post(f"{running.url}/chat/completions", json=QUESTION, timeout=30).json()
        assert answer["choices"][0]["message"]["content"] == "because"
        assert running.stop(number) == (0, "")
    assert "house" in process("usage", "--config", str(cli.config), "--since", "all").stdout


def test_a_stream_under_way_ends_before_serve_does(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, drips(HEAD, chunk(piece("x "))))
    with serving(cli) as running:
        body = {**QUESTION, "stream": True, "llm_effects": {"timeout_ms": 1_500}}
        with httpx.stream("POST", f"{running.url}/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            assert "TimeoutError" in [line for line in lines if line][-1]
        code, errors = running.stop()
    assert code == 0
    assert "Traceback" not in errors


def test_keys_of_the_configuration_or_a_variable_are_asked_for(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, good, more=f'[serve.keys]\nada = "{KEY}"\n')
    with serving(cli, "--host", "0.0.0.0") as running:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(f"{url}/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert KEY not in running.stop()[1]


def test_serve_without_keys_listens_on_this_machine_only_unless_asked(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, good)
    done = process("serve", "--config", str(cli.config), "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        "ConfigurationError: serve.keys: no key is configured, and other machines reach 0.0.0.0"
    )
    with serving(cli, "--host", "0.0.0.0", "--allow-anyone") as running:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models", headers={"host": "service"}).status_code == 200


def test_a_port_in_use_is_said_at_once(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = process("serve", "--config", str(cli.config), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert re.fullmatch(r"Cannot listen on 127\.0\.0\.1, port \d+: Address already in use\n", done.stderr)


def test_a_wrong_configuration_is_said_before_anything_is_served(cli: Cli) -> None:
    cli.config.write_text('[models.gpt]\nprovider = "openai"\nmodel = "m"\n')
    done = process("serve", "--config", str(cli.config), "--port", "0")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("ConfigurationError: models.gpt.api_key: is missing")


def test_without_its_extra_serve_names_the_command_that_installs_it(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, good)
    (cli.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'uvicorn': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    path = os.pathsep.join((str(cli.folder), clean_environ()["PYTHONPATH"]))
    done = process("serve", "--config", str(cli.config), "--port", "0", PYTHONPATH=path)
    assert done.returncode == 4
    assert done.stderr.startswith("serve needs Starlette and uvicorn: pip install ")
    assert "[asgi]" in done.stderr
