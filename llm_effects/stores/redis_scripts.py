"""Lua scripts on a Redis server, each of which does its work all at once."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias, cast, final

import anyio
from redis import Redis
from returns.result import Failure, Result

from llm_effects.errors import LLMError, StorageFailed
from llm_effects.stores.redis_servers import tried
from llm_effects.stores.tallies import Tally
from llm_effects.stores.workers import Worker

THREADS: Final = 8
"""How many scripts are under way at once."""

Reply: TypeAlias = Sequence[bytes | int]
"""What our scripts give: always a list."""

Argument: TypeAlias = str | int | float


class _Script(Protocol):
    def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Reply: ...


@final
class RedisScripts:
    """Runs scripts in threads. A server that fails too often in a row is left alone for a moment.

    ``secrets`` are masked in whatever the server says.
    """

    def __init__(
        self, client: Redis, scripts: Mapping[str, str], *, patience_seconds: float, secrets: tuple[str, ...] = ()
    ) -> None:
        self._client = client
        self._scripts = {name: cast("_Script", client.register_script(text)) for name, text in scripts.items()}
        self._patience = patience_seconds
        self._secrets = secrets
        self._tally = Tally()
        self._worker = Worker("llm-effects-limits", THREADS)

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Result[Reply, LLMError]:
        """Run a script to its end, through any cancellation: for as long as the server may answer nothing."""
        done = partial(tried, name, partial(self._scripts[name], keys, arguments), self._secrets)
        told: Result[Reply, LLMError] = Failure(StorageFailed(operation=name))
        with anyio.CancelScope(shield=True):
            told = await self._tally.watched(name, partial(self._worker.run, name, done, self._patience))
        return told  # noqa: RET504 - type checkers take the scope for one that swallows cancellation

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._worker.aclose(self._client.close)
