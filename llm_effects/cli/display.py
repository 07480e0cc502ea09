"""Texts, numbers, tables and bars as people read them in a terminal, or as programs read them in a pipe."""

from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_effects.values.responses import Cost
from llm_effects.values.validation import printable

PIPE_WIDTH: Final = 10_000
"""Columns of output that no terminal shows: nothing is cut or wrapped there."""


def new_console(*, stderr: bool = False) -> Console:
    """Return a console for standard output or standard error, with colours only in a terminal."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def shown(text: str) -> Text:
    r"""Return a text from a model, a server or a user without what steers a terminal; line breaks stay.

    >>> shown("ok\n\x1b[31mred").plain
    'ok\n [31mred'
    """
    return Text("\n".join(map(printable, text.split("\n"))))


def new_table(*columns: str, right: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """Return a table without lines: columns in ``right`` are aligned to the right, only others but ``whole`` may wrap.

    >>> from rich.console import Console
    >>> table = new_table("model", "cost", right=["cost"])
    >>> table.add_row("gpt", "$1")
    >>> Console(width=20).print(table)
    model  cost
    gpt      $1
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        justify: Literal["right", "left"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in right or name in whole)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of texts, none of which can steer the terminal."""
    table.add_row(*map(shown, cells), style=style)


def pretty_json(document: str, *, indent: bool) -> str:
    r"""Return JSON on one line or indented, with a line break at its end.

    >>> pretty_json('{"a":1}', indent=False), pretty_json('{"a":1}', indent=True)
    ('{"a":1}\n', '{\n  "a": 1\n}\n')
    """
    return (msgspec.json.format(document, indent=2) if indent else document) + "\n"


# Numbers.


def money(cost: Cost | Decimal | None) -> str:
    """Return US dollars, with as many digits as say something.

    >>> money(Decimal("12.346")), money(Decimal("0.0001234")), money(Decimal(0)), money(Cost.UNKNOWN)
    ('$12.35', '$0.00012', '$0', '?')
    """
    usd = cost.usd if isinstance(cost, Cost) else cost
    if usd is None:
        return "?"
    if usd == 0:
        return "$0"
    digits = 2 if usd >= 1 else max(2, 1 - usd.adjusted())
    return f"${usd:,.{digits}f}"


def count(number: int | None) -> str:
    """Return a number of tokens or calls in at most six characters.

    >>> [count(each) for each in (None, 999, 12_345, 4_560_000)]
    ['?', '999', '12.3k', '4.6M']
    """
    if number is None:
        return "?"
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.1f}k" if number < 999_950 else f"{number / 1e6:,.1f}M"


def duration(ms: float | None) -> str:
    """Return milliseconds as people say them.

    >>> [duration(each) for each in (None, 0.31, 850, 12_345, 185_000)]
    ['?', '<1 ms', '850 ms', '12.3 s', '3 min']
    """
    if ms is None:
        return "?"
    if ms < 1:
        return "<1 ms"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    return f"{ms / 1_000:.1f} s" if ms < 120_000 else f"{ms / 60_000:.0f} min"


def moment(at: datetime) -> str:
    """Return a time in the zone of this machine, to the minute."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def bar(share: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar of a share from 0 to 1, to an eighth of a character; any share above 0 is visible.

    >>> bar(0.5, 4), bar(0.001, 4), bar(0, 4), bar(0.5, 4, ascii_only=True)
    ('██', '▏', '', '##')
    """
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    if ascii_only:
        return "#" * max(round(eighths / 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
