"""The import time of the package against that of its dependencies: ``python -m tests.benchmarks.imports``."""

import statistics
import subprocess
import sys
import time


def seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def compare(rounds: int = 7) -> None:
    programs = {
        "nothing": "pass",
        "returns, attrs and anyio": "import returns.context, attrs, anyio",
        "llm_effects": "import llm_effects",
        "llm_effects, then generate": "from llm_effects import generate",
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            taken[name].append(seconds(program))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    base = medians["returns, attrs and anyio"]
    for name, median in medians.items():
        print(f"python -c 'import {name}': {median * 1000:.0f} ms, ratio {median / base:.2f}")


if __name__ == "__main__":
    compare()
