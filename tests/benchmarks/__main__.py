"""A short run of the benchmarks: ``python -m tests.benchmarks``. Ratios only; the machine is whatever it is."""

import anyio

from tests.benchmarks import imports, layers, transport

imports.compare(rounds=3)
anyio.run(layers.one_call, 300)
anyio.run(transport.many_calls, 300)
