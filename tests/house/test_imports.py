"""What ``import llm_effects`` does: almost nothing. What it needs: only its core dependencies."""

from tests.fixtures.house import run_python

# Each costs as much as the whole package, or may not be installed: the first use loads it, never the import.
HEAVY = ("aiohttp", "httpx", "ssl", "msgspec", "cattrs", "sqlalchemy", "typer", "rich", "xllamacpp")

EXTRAS = (
    "aiohttp",
    "genai_prices",
    "httpx2",
    "mcp",
    "numpy",
    "opentelemetry",
    "psycopg",
    "pyarrow",
    "pydantic",
    "ray",
    "redis",
    "rich",
    "sqlalchemy",
    "starlette",
    "typer",
    "uvicorn",
    "xllamacpp",
)


def test_the_import_loads_nothing_heavy() -> None:
    loaded = run_python("import sys, llm_effects; print(*sys.modules)").split()
    assert set(HEAVY) & set(loaded) == set()


def test_a_call_works_without_the_extras() -> None:
    answered = run_python(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {EXTRAS}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import anyio\n"
        "from llm_effects import *\nfrom llm_effects.config import RoutingConfig\n"
        "from llm_effects.values.extras import install_command\n"
        "async def main():\n"
        "    install_command.cache_clear()\n"
        "    unreachable = ModelConfig(provider='lm-studio', endpoint='http://127.0.0.1:9/v1')\n"
        "    async with open_env(LLMConfig(models={'a': unreachable}, routing=RoutingConfig(max_retries=0))) as env:\n"
        "        print(install_command.cache_info().misses)\n"
        "        print((await run(generate(LLMRequest(prompt='?')), env)).failure().tag)\n"
        "anyio.run(main)"
    )
    assert answered.split() == ["0", "NetworkError"]  # to find how the library is installed takes 15 ms


def test_what_a_call_needs_loads_no_module_that_only_few_calls_need() -> None:
    loaded = run_python("import sys; from llm_effects import generate, load_config, open_env, run; print(*sys.modules)")
    assert {"difflib", "html", "importlib.metadata", "mimetypes"} & set(loaded.split()) == set()


def test_the_import_reads_only_code_and_opens_no_socket() -> None:
    watched = run_python(
        "import sys; sys.dont_write_bytecode = True; seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append((event, str(args[0]) if args else '')))\n"
        "import llm_effects\n"
        "watched = [(event, what) for event, what in seen if event.split('.')[0] in {'open', 'socket', 'subprocess'}]\n"
        "print([each for each in watched if not each[1].endswith(('.py', '.pyc', '.so'))])"
    )
    assert watched.strip() == "[]"
