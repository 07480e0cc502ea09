"""The edge to OpenTelemetry: ``pip install "llm-effects[otel]"``.

Unless the application sets up a provider, the API package uses its own, which record nothing: then nothing is collected
here either. The API and its SDK promise not to raise at run time, and the SDK logs exporters that fail. Other code (a
span processor, say) may raise all the same, and callers of this module catch that.
"""

from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import Final, final

from attrs import field, frozen

from llm_effects.effects.env import Span
from llm_effects.telemetry import conventions as names
from llm_effects.values.extras import install_command
from llm_effects.values.records import Attributes, Measure

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import (
        Histogram,
        Meter,
        MeterProvider,
        _internal,  # pyright: ignore[reportPrivateImportUsage]
    )
    from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider
except ModuleNotFoundError as _problem:
    _remedy = f"OpenTelemetry is not installed: {install_command('otel')}"
    raise ModuleNotFoundError(_remedy, name=_problem.name) from None

SCOPE: Final = "llm_effects"
"""The instrumentation scope: the library's name."""

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bucket bounds of the durations, as the conventions require."""

TOKENS: Final = tuple(4**power for power in range(14))
"""Bucket bounds of the token counts, as the conventions require: 1, 4, 16 and so on."""

_HISTOGRAMS: Final = (
    (names.DURATION, "s", "GenAI operation duration.", SECONDS),
    (names.FIRST_CHUNK, "s", "Time to receive the first chunk.", SECONDS),
    (names.TOKEN_USAGE, "{token}", "Number of input and output tokens used.", TOKENS),
)

_OWN_PROVIDERS: Final = ("opentelemetry.trace", "opentelemetry.metrics")


@final
@frozen(eq=False)
class OpenTelemetry:
    """Telemetry by OpenTelemetry's tracer and histograms."""

    tracer: Tracer
    histograms: Mapping[str, Histogram]
    tracers: TracerProvider | None = None
    meters: MeterProvider | None = None

    @property
    def active(self) -> bool:
        """Whether anything is recorded; the application may set up its providers later."""
        if self.tracers is None and self.meters is None and _none_is_set():
            return False
        return _records(self.tracers or trace.get_tracer_provider()) or _records(
            self.meters or metrics.get_meter_provider()
        )

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        """Start a span and make it the current one."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        span = self.tracer.start_span(name, kind=kind, attributes=attributes)
        return CurrentSpan(span, context.attach(trace.set_span_in_context(span)))

    def record(self, measures: Sequence[Measure]) -> None:
        """Record measures, each in its histogram."""
        for measure in measures:
            self.histograms[measure.metric].record(measure.value, measure.attributes)


@final
@frozen(eq=False)
class CurrentSpan:
    """A span, and the context before it."""

    span: trace.Span
    _before: Token[Context] = field(repr=False)

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """End the span. No exception is recorded: its text may contain a prompt or a key."""
        context.detach(self._before)
        self.span.set_attributes(attributes)
        if error is not None:
            self.span.set_attribute(names.ERROR_TYPE, error)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


def open_telemetry(tracers: TracerProvider | None = None, meters: MeterProvider | None = None) -> OpenTelemetry:
    """Return telemetry with the given providers, or with those that the application sets up, now or later.

    >>> open_telemetry().active
    False
    """
    tracer = trace.get_tracer(SCOPE, tracer_provider=tracers)
    return OpenTelemetry(tracer, _histograms(metrics.get_meter(SCOPE, meter_provider=meters)), tracers, meters)


def _histograms(meter: Meter) -> Mapping[str, Histogram]:
    return {
        name: meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
        for name, unit, description, bounds in _HISTOGRAMS
    }


def _none_is_set() -> bool:
    """Return whether the application has set no provider, as far as the API package's own variables show.

    Every call asks. The functions of the package look into the environment each time: 2.7 microseconds against 0.2.
    """
    variables = vars(trace).get("_TRACER_PROVIDER", _UNKNOWN), vars(_internal).get("_METER_PROVIDER", _UNKNOWN)
    return variables == (None, None)


_UNKNOWN: Final = object()  # another version of the package: then its functions are asked


def _records(provider: object) -> bool:
    """Return whether a provider is not just the no-op of the API package."""
    return not type(provider).__module__.startswith(_OWN_PROVIDERS)
