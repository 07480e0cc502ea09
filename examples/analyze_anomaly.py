"""Analyse a time series: find its anomalies by robust statistics, then ask a model for a typed judgement of each."""

import csv
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Final, Literal, final

import anyio
from attrs import field, frozen
from attrs.validators import max_len
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    Effect,
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    TaskType,
    create_default_llm_manager,
    describe,
    effect,
    gather,
    generate_as,
    run,
)

SERIES: Final = Path(__file__).parent / "data" / "latency.csv"
HALF_WINDOW: Final = 36
"""Points on each side of the moving median: three hours."""

THRESHOLD: Final = 8.0
"""The threshold of an anomaly, in robust standard deviations."""

BARS: Final = "▁▂▃▄▅▆▇█"


@final
@frozen
class Judgement:
    """The model's answer; the facts are measured, not generated."""

    severity: Literal["low", "medium", "high"]
    likely_cause: Literal["deployment", "traffic", "dependency", "hardware", "monitoring"]
    summary: str = field(validator=max_len(60))


@final
@frozen
class Anomaly:
    """Neighbouring unusual points, from the first to the last, and their ratio to the usual value."""

    first: int
    last: int
    factor: float

    def __str__(self) -> str:
        minutes = 5 * (self.last - self.first + 1)
        return f"p99 latency was {self.factor:.1f} times the usual for {minutes} minutes"


def read_series(path: Path) -> tuple[float, ...]:
    """Read the latencies of a CSV file, in milliseconds."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(float(row["p99_ms"]) for row in csv.DictReader(file))


def usual(series: Sequence[float]) -> list[float]:
    """Return the median around each point."""
    return [median(series[max(0, at - HALF_WINDOW) : at + HALF_WINDOW + 1]) for at in range(len(series))]


def anomalies(series: Sequence[float]) -> Iterator[Anomaly]:
    """Find points far from the moving median, by the median absolute deviation, and join neighbours."""
    level = usual(series)
    deviations = [value - expected for value, expected in zip(series, level, strict=True)]
    spread = 1.4826 * median(map(abs, deviations))  # of normal noise, this is its standard deviation
    for unusual, points in groupby(range(len(series)), key=lambda at: abs(deviations[at]) > THRESHOLD * spread):
        if unusual:
            first, *rest = points
            last = rest[-1] if rest else first
            yield Anomaly(first, last, median(series[at] / level[at] for at in range(first, last + 1)))


def judge(anomaly: Anomaly) -> Effect[str]:
    """Ask for a judgement of one anomaly, and format it."""
    request = LLMRequest(
        system="You watch over web services. Judge the anomaly. Keep the summary to one short sentence.",
        prompt=f"Of the checkout service, {anomaly}.",
        task_type=TaskType.ANALYSIS,
        preferences=Preferences(max_tokens=400, temperature=0.0, seed=7),
    )
    return generate_as(request, Judgement).map(lambda answer: line(anomaly, answer.value))


def line(anomaly: Anomaly, judgement: Judgement) -> str:
    """Format the measured and the generated part."""
    judgement_text = f"{judgement.severity}, {judgement.likely_cause}: {judgement.summary.strip()}"
    return f"points {anomaly.first} to {anomaly.last}: {anomaly}\n  {judgement_text}"


def chart(series: Sequence[float], width: int = 96) -> str:
    """Draw the series as the highest point of each column."""
    step = max(1, len(series) // width)
    columns = [max(series[at : at + step]) for at in range(0, len(series), step)]
    return "".join(BARS[min(7, int(8 * value / max(series)))] for value in columns)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Find the anomalies, and ask for a judgement of each, two at a time."""
    series = read_series(SERIES)
    judgements = gather([judge(anomaly) for anomaly in anomalies(series)], limit=2)
    return await run(judgements.map(lambda lines: "\n".join((chart(series), *lines))), env)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    report = anyio.run(live)
    print(report.unwrap()) if is_successful(report) else sys.exit(describe(report.failure()))
