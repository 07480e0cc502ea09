"""The fault matrix as one command: ``python -m tests.faults``.

It runs the tests of every row and prints each row by number: what goes wrong (from row 139 on: what this library did
before), what is right, its tests, and how each ended; then the count. ``python -m tests.faults 139 145`` runs these
rows only, ``--junit FILE`` reads the outcomes of an earlier run (``pytest --junit-xml=FILE``), and ``--list`` runs
nothing. The exit code is 1 if a row has no test, or a test failed.
"""

import argparse
import sys
from pathlib import Path

from tests.faults.matrix import Outcomes, counted, known_tests, lines_of, read_junit, run_tests, verdict
from tests.faults.rows import ROWS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Run and print the fault matrix.")
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="only these rows")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="read the outcomes of an earlier run")
    parser.add_argument("--list", action="store_true", help="run nothing")
    chosen = parser.parse_args(arguments)
    numbers = set(chosen.numbers or ROWS) & set(ROWS)
    tests = [test for test in known_tests() if test.numbers & numbers]
    if chosen.list:
        outcomes = Outcomes()
    else:
        files = sorted({test.file for test in tests})
        outcomes = read_junit(chosen.junit) if chosen.junit else run_tests(files, numbers)
    ended = {test: outcome for test, outcome in outcomes.by_test.items() if test.numbers & numbers}
    for number in sorted(numbers):
        print(*lines_of(number, tests, ended), sep="\n")
    verdicts = {number: verdict(number, tests, ended) for number in sorted(numbers)}
    print(f"{len(numbers)} {'row' if len(numbers) == 1 else 'rows'}: {counted(verdicts.values())}")
    wrong = {each for each in verdicts.values() if each in ("failed", "without a test")}
    for each in sorted(wrong):
        print(f"{each}: {', '.join(str(number) for number, found in verdicts.items() if found == each)}")
    print(f"{len(ended)} tests: {counted(ended.values())}" if ended else f"{len(tests)} tests, not run")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
