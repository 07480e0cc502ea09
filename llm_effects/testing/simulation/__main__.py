"""Simulate drawn configurations: ``python -m llm_effects.testing.simulation --seeds 2000``.

``--seed 4711 --callers 3,5 --faults 0`` runs one scenario again, and prints what was seen.
"""

import sys
from argparse import ArgumentParser, Namespace
from time import process_time
from typing import Final

from llm_effects.testing.simulation.callers import Seen
from llm_effects.testing.simulation.runs import Outcome, replay, simulate
from llm_effects.values.validation import InvalidValue

EXIT_BROKEN: Final = 1
"""The exit code if an invariant is broken."""

EXIT_WRONG: Final = 2
"""The exit code if an option is wrong."""


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(map(int, text.split(",")))


def _arguments(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m llm_effects.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run the scenario of this seed only")
    parser.add_argument("--callers", type=_numbers, help="with these callers only, such as 3,5")
    parser.add_argument("--faults", type=_numbers, help="with these faults only, such as 0,2 or none")
    parser.add_argument("--stop-after", type=int, default=1, help="how many broken seeds to find")
    return parser.parse_args(arguments)


def _line(seen: Seen) -> str:
    """Return what a caller saw, on one line."""
    caller, took = seen.caller, f"{seen.began:.3f} to {seen.ended:.3f} s"
    return f"caller {caller.number}, {caller.kind}, {took}: {seen.result} {seen.events}"


def _outcome(outcome: Outcome) -> str:
    """Return what a run showed: what each caller saw, and what was broken."""
    return "\n".join((*map(_line, outcome.seen), *map(str, outcome.violations), outcome.defect))


def main(arguments: list[str]) -> int:
    """Run the seeds, or one scenario, and return the exit code."""
    wanted = _arguments(arguments)
    began = process_time()
    if wanted.seed is not None:
        try:
            outcome = replay(seed=wanted.seed, callers=wanted.callers, faults=wanted.faults)
        except InvalidValue as problem:
            sys.stderr.write(f"{problem}\n")
            return EXIT_WRONG
        sys.stdout.write(_outcome(outcome) + "\n")
        return EXIT_BROKEN if outcome.violations else 0
    report = simulate(seeds=range(wanted.first, wanted.first + wanted.seeds), stop_after=wanted.stop_after)
    took = process_time() - began
    hours = report.simulated_s / 3600 / took
    pace = f"{report.seeds / took * 60:.0f} seeds a minute, {hours:.2f} simulated hours a second"
    sys.stdout.write(f"{report}\n{pace} of processor time\n")
    return EXIT_BROKEN if report.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
