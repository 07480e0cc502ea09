"""The program as a whole: help, exit codes, Ctrl-C, closed pipes, terminals, and a missing extra."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from llm_effects import ToolCall
from llm_effects.cli import COMMANDS as MODULES
from llm_effects.cli import ExitCode, load_program
from llm_effects.cli.display import shown
from llm_effects.cli.program import ORDER, open_session
from llm_effects.values.extras import install_command
from tests.fixtures.approvals import wait
from tests.fixtures.chaos import DONE, HEAD, STOP, STREAM, WHOLE, Chaos, chunk, holds, piece, says
from tests.fixtures.cli import CONFIG, Cli, clean_environ, process, terminal
from tests.fixtures.house import ROOT, run_python
from tests.fixtures.servers import chunked, reply_json

GUIDE = (ROOT / "docs/guides/command-line.md").read_text(encoding="utf-8")

COMMANDS = (
    "approvals approve",
    "approvals list",
    "approvals refuse",
    "approvals show",
    "ask",
    "batch",
    "cache clear",
    "cache stats",
    "chat",
    "config",
    "config check",
    "conversations delete",
    "conversations export",
    "conversations list",
    "conversations search",
    "conversations show",
    "explain",
    "models",
    "serve",
    "storage erase-owner",
    "storage grants",
    "storage migrate",
    "storage prune",
    "storage status",
    "usage",
)


def configure(cli: Cli, chaos: Chaos, *steps: object) -> str:
    name = chaos.plan(*steps)  # type: ignore[arg-type]
    cli.config.write_text(
        f'[models.house]\nprovider = "openai-compatible"\nmodel = "m"\nendpoint = "{chaos.endpoint(name)}"\n'
    )
    return name


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_guide_has_the_help_of_each_command(cli: Cli, command: str) -> None:
    done = cli.run(*command.split(), "--help", config=False, COLUMNS="80")
    assert done.exit_code == 0
    assert f"```text\n{done.stdout.rstrip()}\n```" in GUIDE


def examples_of_the_guide() -> list[str]:
    """Return every line of the guide's shell blocks that runs the program to an end."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    return [
        line
        for block in blocks
        for line in block.splitlines()
        if "llm-effects " in line and "effects serve" not in line
    ]


def test_the_examples_of_the_guide_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.folder)
    (cli.folder / "questions.jsonl").write_text('"why?"\n')
    storage = {"LLM_CONFIG": str(cli.config)}
    cli.config.write_text(CONFIG + '[storage]\nurl = "sqlite:///llm.db"\n')
    (cli.folder / "new.toml").write_text(cli.config.read_text())
    lines, replies = examples_of_the_guide(), cli.clients
    calls = [ToolCall(name, "erase", '{"path": "/tmp"}') for name in ("a", "b")]
    waiting = dict(zip(("3f2a91c07b5e", "90be4d27a1c8"), wait(cli, *calls), strict=True))
    cli.clients = replies
    assert len(lines) > 12
    for line in lines:
        command = line.rpartition("| ")[2].partition(" > ")[0]
        for short, approval in waiting.items():
            command = command.replace(short, approval.id)
        done = cli.run(*shlex.split(command)[1:], input="a line\n", config=False, **storage)
        assert (line, done.exit_code) == (line, 0), done.output


def test_the_guide_and_the_help_list_the_exit_codes(cli: Cli) -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", GUIDE, re.MULTILINE)}
    helped = {int(code) for code in re.findall(r"^    (\d+) ", cli.run("--help", config=False).stdout, re.MULTILINE)}
    assert listed == helped == {int(code) for code in ExitCode}


def test_no_command_shows_the_help(cli: Cli) -> None:
    assert "Usage: llm-effects" in cli.run(config=False).output


def test_the_version_is_shown(cli: Cli) -> None:
    assert re.fullmatch(r"llm-effects \d+\.\d+\.\d+\n", cli.run("--version", config=False).stdout)


@pytest.mark.parametrize("arguments", [("ask", "--nope"), ("nope",), ("ask", "why?", "--temperature", "9"), ("batch",)])
def test_wrong_arguments_are_wrong_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli.run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_a_file_that_is_not_there_is_a_wrong_configuration(cli: Cli) -> None:
    done = cli.run("ask", "why?", "--config", "nope.toml")
    assert done.exit_code == 3
    assert "nope.toml: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_blank_storage_is_wrong_usage(cli: Cli) -> None:
    assert cli.run("usage", "--storage", " ").exit_code == 2


def test_the_script_and_the_module_are_one_program() -> None:
    assert process("--help").stdout.startswith("Usage: llm-effects [OPTIONS] COMMAND [ARGS]...")


def test_a_process_asks_a_server(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, says(chunked(STREAM)))
    done = process("ask", "why?", "--config", str(cli.config))
    assert (done.returncode, done.stdout, done.stderr) == (0, "because\n", "")


def test_ctrl_c_ends_with_130_and_without_a_traceback(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, holds(HEAD + chunk(piece("be"))))
    command = [sys.executable, "-m", "llm_effects", "ask", "why?", "--config", str(cli.config)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environ()
    ) as running:
        assert running.stdout is not None
        assert running.stdout.read(2) == "be"
        running.send_signal(signal.SIGINT)
        rest, said = running.communicate(timeout=30)
    assert (running.returncode, rest, said) == (130, "\n", "")


@pytest.mark.parametrize("command", ["ask why?", "config --all", "config --json", "--help"])
def test_a_reader_that_leaves_ends_the_program_quietly(cli: Cli, chaos: Chaos, command: str) -> None:
    configure(cli, chaos, holds(HEAD + chunk(piece("word " * 50_000))))
    arguments = [sys.executable, "-m", "llm_effects", *command.split()]
    environ = clean_environ(LLM_CONFIG=str(cli.config))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
        running.wait(30)
    assert said == b""
    assert running.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["config --all", "--help", "batch -"])
def test_a_full_disk_is_one_line(cli: Cli, chaos: Chaos, command: str) -> None:
    configure(cli, chaos, says(reply_json(WHOLE)))
    arguments = [sys.executable, "-m", "llm_effects", *command.split()]
    environ = clean_environ(LLM_CONFIG=str(cli.config))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            arguments, input='"why?"', stdout=full, stderr=subprocess.PIPE, text=True, env=environ, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "The output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


def test_closed_standard_streams_are_no_defect() -> None:
    for closed in (">&-", "<&-", "2>&-"):
        command = f"{sys.executable} -m llm_effects --version {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=clean_environ(), check=False)
        assert (done.returncode, done.stderr) == (0, "")
    command = f"{sys.executable} -m llm_effects ask <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=clean_environ(), check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_terminal_shows_colours_unless_they_are_unwanted(cli: Cli) -> None:
    with terminal("config", "--config", str(cli.config)) as coloured:
        assert coloured.end() == 0
    with terminal("config", "--config", str(cli.config), NO_COLOR="1") as plain:
        assert plain.end() == 0
    assert "\x1b[2m" in coloured.text
    assert not re.search("\x1b\\[3\\dm", plain.text)


def test_a_pipe_gets_no_colours_and_whole_lines(cli: Cli) -> None:
    cli.config.write_text(cli.config.read_text() + f'[models.{"m" * 60}]\nprovider = "ollama"\nmodel = "{"x" * 90}"\n')
    done = process("config", "--config", str(cli.config), NO_COLOR="", COLUMNS="80")
    assert "\x1b" not in done.stdout + done.stderr
    assert f"models.{'m' * 60}.model     {'x' * 90}" in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []


def test_an_answer_cannot_steer_a_terminal_but_a_pipe_gets_it_as_it_is(cli: Cli, chaos: Chaos) -> None:
    text = "a\x1b[2Jb\n\tc"
    configure(cli, chaos, says(chunked(piece(text) + STOP + DONE)))
    assert process("ask", "why?", "--config", str(cli.config)).stdout == f"{text}\n"
    with terminal("ask", "why?", "--config", str(cli.config)) as seen:
        assert seen.end() == 0
    assert "\x1b[2J" not in seen.text
    assert "a [2Jb" in seen.text


def test_unusual_encodings_of_the_output_are_no_defect(cli: Cli, chaos: Chaos) -> None:
    configure(cli, chaos, says(chunked(piece("wärum… ") + STOP + DONE)))
    done = process("ask", "why?", "--config", str(cli.config), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "w?rum? \n")


def test_without_the_extra_it_says_how_to_get_it() -> None:
    blocked = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('typer', 'rich'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import runpy; runpy.run_module('llm_effects', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False, env=clean_environ()
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"The command line needs typer and rich: {install_command('cli')}\n"


def test_a_shell_can_complete_commands() -> None:
    environ = {"_LLM_EFFECTS_COMPLETE": "complete_bash", "COMP_WORDS": "llm-effects co", "COMP_CWORD": "1"}
    program = "from llm_effects.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=clean_environ(**environ)
    )
    assert set(done.stdout.split()) == {"config", "conversations"}


def test_a_text_keeps_its_lines_but_nothing_else_that_steers() -> None:
    assert shown("a\r\nb\x07\u202e").plain == "a \nb "


def test_loading_the_program_twice_is_the_same_program() -> None:
    assert load_program() is load_program()


def test_a_command_imports_only_its_own_module_and_leaves_garbage_collection_on() -> None:
    shown = run_python(
        "import gc, sys\n"
        "from llm_effects import cli\n"
        "sys.argv = ['llm-effects', 'ask', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "modules = (name for name in cli.COMMANDS if f'llm_effects.cli.{name}' in sys.modules)\n"
        "print(*modules, gc.isenabled(), 'aiohttp' in sys.modules)"
    )
    assert shown.splitlines()[-1] == "ask True False"


def test_every_command_is_known_by_its_module() -> None:
    assert {each for commands in MODULES.values() for each in commands} == set(ORDER)


def test_a_single_question_goes_over_httpx_unless_another_transport_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = typer.Context(typer.main.get_command(load_program()))
    file = tmp_path / "llm.toml"
    file.write_text('[models.house]\nprovider = "lm-studio"\n')
    assert open_session(context, file).manager.env.config.transport == "httpx"
    assert open_session(context, file, many_calls=True).manager.env.config.transport == "auto"
    file.write_text('transport = "fast"\n[models.house]\nprovider = "lm-studio"\n')
    assert open_session(context, file).manager.env.config.transport == "fast"
