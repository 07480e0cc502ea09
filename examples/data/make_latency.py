"""Generate latency.csv: two days of a service's p99 latency (milliseconds, every 5 minutes), with four anomalies.

Run it to write the file again: the same seed gives the same bytes.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

SEED = 20_260_101
POINTS = 576
ANOMALIES = {"spike": (100, 104), "shift": (230, 250), "drop": (380, 384), "outage": (500, 510)}
"""The first and the last point of each anomaly."""

FACTORS = {"spike": 4.0, "shift": 1.9, "drop": 0.2, "outage": 8.0}


def latencies() -> Iterator[float]:
    """Return the points: a daily wave, some noise, and the anomalies."""
    noise = random.Random(SEED)  # noqa: S311 - not a secret
    for point in range(POINTS):
        usual = 120 + 30 * math.sin(2 * math.pi * point / 288) + noise.gauss(0, 4)
        kinds = (kind for kind, (first, last) in ANOMALIES.items() if first <= point <= last)
        yield round(usual * FACTORS.get(next(kinds, ""), 1.0), 1)


def table() -> str:
    """Return the contents of the file."""
    return "minute,p99_ms\n" + "".join(f"{5 * point},{value}\n" for point, value in enumerate(latencies()))


if __name__ == "__main__":
    Path(__file__).with_name("latency.csv").write_text(table(), encoding="utf-8")
