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
"""Points to each side that tell what is usual: three hours."""

UNUSUAL: Final = 8.0
"""Robust standard deviations from the usual."""

BARS: Final = "▁▂▃▄▅▆▇█"


@final
@frozen
class Judgement:
    """What the model is asked for; the facts are measured, not asked."""

    severity: Literal["low", "medium", "high"]
    likely_cause: Literal["deployment", "traffic", "dependency", "hardware", "monitoring"]
    summary: str = field(validator=max_len(60))


@final
@frozen
class Anomaly:
    """Some neighbouring points that are not as usual: from the first to the last, and how much they differ."""

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
    """Give the median around each point."""
    return [median(series[max(0, at - HALF_WINDOW) : at + HALF_WINDOW + 1]) for at in range(len(series))]


def anomalies(series: Sequence[float]) -> Iterator[Anomaly]:
    """Find the points that are far from the usual, by the median absolute deviation, and join neighbours."""
    level = usual(series)
    off = [value - expected for value, expected in zip(series, level, strict=True)]
    spread = 1.4826 * median(map(abs, off))  # of normal noise, this is its standard deviation
    for unusual, points in groupby(range(len(series)), key=lambda at: abs(off[at]) > UNUSUAL * spread):
        if unusual:
            first, *rest = points
            last = rest[-1] if rest else first
            yield Anomaly(first, last, median(series[at] / level[at] for at in range(first, last + 1)))


def judge(anomaly: Anomaly) -> Effect[str]:
    """Ask for a judgement of one anomaly and tell it in a line."""
    request = LLMRequest(
        system="You watch over web services. Judge the anomaly. Keep the summary to one short sentence.",
        prompt=f"Of the checkout service, {anomaly}.",
        task_type=TaskType.ANALYSIS,
        preferences=Preferences(max_tokens=400, temperature=0.0, seed=7),
    )
    return generate_as(request, Judgement).map(lambda answer: line(anomaly, answer.value))


def line(anomaly: Anomaly, judgement: Judgement) -> str:
    """Put what was measured and what was judged together."""
    judged = f"{judgement.severity}, {judgement.likely_cause}: {judgement.summary.strip()}"
    return f"points {anomaly.first} to {anomaly.last}: {anomaly}\n  {judged}"


def chart(series: Sequence[float], width: int = 96) -> str:
    """Draw the series: the highest point of each column."""
    step = max(1, len(series) // width)
    columns = [max(series[at : at + step]) for at in range(0, len(series), step)]
    return "".join(BARS[min(7, int(8 * value / max(series)))] for value in columns)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Find the anomalies and have each judged, two at a time."""
    series = read_series(SERIES)
    judged = gather([judge(anomaly) for anomaly in anomalies(series)], limit=2)
    return await run(judged.map(lambda lines: "\n".join((chart(series), *lines))), env)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    report = anyio.run(live)
    print(report.unwrap()) if is_successful(report) else sys.exit(describe(report.failure()))
