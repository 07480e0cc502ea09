"""A short run of the benchmarks: ``python -m tests.benchmarks``. Only ratios count; absolute times vary by machine."""

import anyio

from tests.benchmarks import imports, layers, ledger, telemetry, transport

imports.compare(rounds=3)
anyio.run(layers.one_call, 300)
anyio.run(transport.many_calls, 300)
anyio.run(telemetry.compare, 300)
anyio.run(ledger.main, 10_000, 2)
