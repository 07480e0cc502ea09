"""How many second attempts may be made: a bucket that every call fills a little and every hedge takes one from."""

from typing import Final, final

from attrs import define

BURST: Final = 10.0
"""Hedges that may be saved up: a model that turns slow after a quiet hour is not hedged for an hour's worth."""

_ROUNDING: Final = 1e-9  # ten tenths add up to a little less than one


@final
@define
class MemoryHedges:
    """The budget of this process, empty at first."""

    _saved: float = 0.0

    def earn(self, share: float) -> None:
        """Put in a call's share of a hedge.

        >>> budget = MemoryHedges()
        >>> for _ in range(3):
        ...     budget.earn(0.5)
        >>> budget.spend(), budget.spend()
        (True, False)
        """
        self._saved = min(self._saved + share, BURST)

    def spend(self) -> bool:
        """Take one hedge out, if there is a whole one."""
        if self._saved < 1.0 - _ROUNDING:
            return False
        self._saved -= 1.0
        return True
