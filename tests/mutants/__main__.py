"""The mutants as one command: ``python -m tests.mutants``.

It breaks a copy of the package in one small way at a time, runs the tests of that room, and prints the first test that
fails. ``--only NAME`` runs mutants whose names contain a text, ``--room ROOM`` those of a folder of tests such as
``policies`` or ``stores/cache``, ``--list`` runs nothing. The exit code is 1 if a mutant is not caught.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from tests.mutants.mutant import Mutant
from tests.mutants.mutants import MUTANTS
from tests.mutants.running import Ending, copied, run


def chosen(only: str | None, room: str | None) -> Sequence[Mutant]:
    return [each for each in MUTANTS if (only or "") in each.name and room in (None, each.room)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Break the package, run its tests.")
    parser.add_argument("--only", metavar="NAME", help="only mutants whose names contain this text")
    parser.add_argument("--room", metavar="ROOM", help="only those of one folder of tests")
    parser.add_argument("--list", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    mutants = chosen(options.only, options.room)
    if options.list:
        print(*(f"{each.room:22} {each.name}" for each in mutants), sep="\n")
        return 0
    endings = list[Ending]()
    with copied() as folder:
        for mutant in mutants:
            endings.append(run(mutant, folder))
            print(endings[-1].line, flush=True)
    survivors = [each.mutant.name for each in endings if not each.caught]
    rooms = Counter(each.room for each in mutants)
    print(*(f"{room}: {count}" for room, count in sorted(rooms.items())), sep="\n")
    seconds = sum(each.seconds for each in endings)
    print(f"{len(endings)} mutants, {len(endings) - len(survivors)} caught, {seconds:.0f} s")
    print(*(f"not caught: {name}" for name in survivors), sep="\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
