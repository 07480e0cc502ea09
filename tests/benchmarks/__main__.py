"""The benchmark suite: ``python -m tests.benchmarks --help``.

It starts its own server, and measures this library over httpx and over aiohttp, bare httpx, and with ``--peers`` other
libraries, in turn. ``--quick`` is what CI runs: it fails if a figure is above 1.5 times its bar.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tests.benchmarks import plots, report
from tests.benchmarks.bars import CASES, OVER, Case, Figures, too_slow
from tests.benchmarks.workers import OURS, PEERS, ROOT, Client, Worker, install, measure, samples_of, servers, started

CANCELS = 20_000
EVERYWHERE = {case.key: case for case in CASES if case.key in {"call", "stream", "100"}}
"""The cases that are measured under each interpreter."""


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    keys = [case.key for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(keys)}, cancels; all by default")
    parser.add_argument("--quick", action="store_true", help="only short cases; fail above 1.5 times a bar")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="measure other libraries too: all, or those named")
    parser.add_argument("--write", action="store_true", help="write tables and plots to docs/")
    parser.add_argument("--scale", type=float, default=1.0, help="a factor for the number of rounds")
    parser.add_argument("--pythons", nargs="+", default=[], metavar="PYTHON", help="compare interpreters instead")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.cases) - {*keys, "cancels"}
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    return chosen


def main(chosen: argparse.Namespace) -> int:
    """Measure what is chosen, print it, and return how many cases are too slow; 0 unless with ``--quick``."""
    with servers() as urls:
        if chosen.pythons:
            figures, failing, sections = compare_interpreters(chosen, urls)
        else:
            figures, failing, sections = compare_clients(chosen, urls)
    for content in filter(None, sections.values()):
        print(f"{content}\n")
    if chosen.write:
        report.write(sections)
        plots.write(figures)
    for message in failing.values():
        print(f"too slow: {message}", file=sys.stderr)
    return len(failing)


Outcome: TypeAlias = tuple[Figures, Mapping[str, str], Mapping[str, str]]
"""Figures to plot, what is too slow, and the sections of the page."""


def compare_clients(chosen: argparse.Namespace, urls: Mapping[str, str]) -> Outcome:
    """Measure the cases by this library, by bare httpx, and by the peers that are chosen."""
    peers = [] if chosen.peers is None else [install(name) for name in chosen.peers or PEERS]
    clean = install(OURS).python if peers else None  # the tools of developers import more, such as trio
    with started([*(Client(name, clean=clean) for name in ("bare", *OVER)), *peers], urls) as workers:
        cases = cases_of(chosen)
        figures = measure(cases, workers, urls, chosen.scale)
        failing = confirmed(figures, workers, urls) if chosen.quick else {}
        versions = {name: number for each in workers for name, number in each.versions.items()}
    rows = [] if chosen.quick or (chosen.cases and "cancels" not in chosen.cases) else [cancels()]
    sections = {
        "table": report.table(figures, rows, "processor" if chosen.quick else "elapsed"),
        "peers": report.peer_table(figures),
        "conditions": report.conditions(versions, command_of()),
    }
    return figures, failing, sections


def cases_of(chosen: argparse.Namespace) -> list[Case]:
    """Return the cases that are named, or all; with ``--quick`` only those that are short."""
    named = (case for case in CASES if not chosen.cases or case.key in chosen.cases)
    return [case for case in named if not (chosen.quick and case.long)]


def confirmed(figures: Figures, workers: Sequence[Worker], urls: Mapping[str, str]) -> Mapping[str, str]:
    """Measure once more what is too slow, and return what is so again."""
    failing = too_slow(figures)
    if not failing:
        return failing
    again = [case for case in CASES if case.key in failing or case.key == "call"]
    figures.update(measure(again, workers, urls))
    return too_slow(figures)


def compare_interpreters(chosen: argparse.Namespace, urls: Mapping[str, str]) -> Outcome:
    """Measure a few cases under each interpreter and event loop that are chosen."""
    kinds = [(python, loop) for python in chosen.pythons for loop in ("asyncio", "uvloop")]
    with started([Client(name, *kind) for kind in kinds for name in ("bare", *OVER)], urls) as workers:
        taken = {key: samples_of(case, workers, urls, chosen.scale) for key, case in EVERYWHERE.items()}
        names = {each.client: f"CPython {each.versions['python']}, {each.client.loop}" for each in workers}
        versions = {name: each.versions[name] for each in workers for name in each.versions if name != "python"}
    measured: dict[str, Figures] = {name: {key: {} for key in EVERYWHERE} for name in names.values()}
    for key, samples in taken.items():
        for client, each in samples.items():
            measured[names[client]][key] = {**measured[names[client]][key], client.name: each}
    shown = f"{report.interpreter_table(measured)}\n\n{report.conditions(versions, command_of())}"
    return {}, {}, {"interpreters": shown}


def cancels() -> list[str]:
    """Cancel calls over each transport at once, and return the row of what they leave."""
    command = [sys.executable, "-m", "tests.benchmarks.cancels", str(CANCELS)]
    running = [subprocess.Popen([*command, f"asyncio-{kind}"], cwd=ROOT) for kind in ("httpx", "fast")]
    left = ["0" if process.wait() == 0 else "**some**" for process in running]
    return [
        f"left of {CANCELS:,} cancelled calls: slots, tasks, descriptors, connections",
        "",
        left[0],
        "0",
        left[1],
        "0",
    ]


def command_of() -> str:
    """Return the command as it was given, with interpreters by their names."""
    return " ".join(["python -m tests.benchmarks", *(word.rpartition("/")[2] for word in sys.argv[1:])])


if __name__ == "__main__":
    sys.exit(main(options()) > 0)
