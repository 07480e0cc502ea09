"""What happened lately, counted in cells of time: a rolling window that is exact to one cell and never too generous.

A window of ``count`` cells holds the cell of now and ``count`` full ones before it: whatever lies within any stretch of
``count`` cells is counted together.
"""

from math import floor, inf
from typing import Final, TypeAlias

Cells: TypeAlias = tuple[tuple[int, int], ...]
"""Amounts by the number of their cell, oldest first."""

SECONDS: Final = 60
"""Cells of one second in the window of a minute."""


def fresh(cells: Cells, oldest: int) -> Cells:
    """Drop what lies before a cell.

    >>> fresh(((1, 5), (7, 2)), 7)
    ((7, 2),)
    """
    if not cells or cells[0][0] >= oldest:
        return cells
    return tuple(each for each in cells if each[0] >= oldest)


def total(cells: Cells) -> int:
    """Add all amounts up."""
    return sum(amount for _, amount in cells)


def added(cells: Cells, cell: int, amount: int) -> Cells:
    """Count an amount, or take some back with a negative one; of a cell that is gone there is nothing to take.

    >>> added(((1, 5),), 7, 2), added(((1, 5),), 1, -3), added(((7, 2),), 1, -3)
    (((1, 5), (7, 2)), ((1, 2),), ((7, 2),))
    """
    if not cells or cells[-1][0] < cell:
        return (*cells, (cell, amount)) if amount > 0 else cells
    if cells[-1][0] == cell:  # nearly always: spares going through them all
        return (*cells[:-1], (cell, max(0, cells[-1][1] + amount)))
    return tuple((at, max(0, held + amount) if at == cell else held) for at, held in cells)


def until_it_fits(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Tell in how many seconds an amount fits into the minute, if nobody else comes; infinite where it never does.

    >>> until_it_fits(((0, 3), (10, 2)), limit=5, amount=1, now=20.5)
    40.5
    >>> until_it_fits((), limit=5, amount=6, now=0.0)
    inf
    """
    if amount > limit:
        return inf
    cells = fresh(cells, floor(now) - SECONDS)
    used, wait = total(cells), 0.0
    for cell, held in cells:
        if used + amount <= limit:
            break
        used -= held
        wait = cell + SECONDS + 1 - now
    return wait


def until_all_fit(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Tell the least time for more than a minute can take: what is too much for one comes a minute later, and so on.

    >>> until_all_fit((), limit=5, amount=11, now=0.0)
    120.0
    """
    minutes, rest = divmod(amount - 1, limit)
    return minutes * float(SECONDS) + until_it_fits(cells, limit, rest + 1, now)
