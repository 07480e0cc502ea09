"""Whether telemetry is active: asked by every call, so it must cost little."""

import subprocess
import sys


def test_the_short_way_to_see_that_no_provider_is_set_agrees_with_the_package() -> None:
    program = (
        "from opentelemetry import trace, metrics\n"
        "from llm_effects.telemetry import otel\n"
        "known = otel._UNKNOWN not in (vars(trace).get('_TRACER_PROVIDER', otel._UNKNOWN),"
        " vars(metrics._internal).get('_METER_PROVIDER', otel._UNKNOWN))\n"
        "before = otel._none_is_set(), otel.open_telemetry().active\n"
        "metrics.set_meter_provider(type('Mine', (metrics.NoOpMeterProvider,), {'__module__': 'mine'})())\n"
        "print(known, before, otel._none_is_set(), otel.open_telemetry().active)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "True (True, False) False True\n"
