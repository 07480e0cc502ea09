"""The check and the plot of the hour of mixed work."""

from collections import Counter
from xml.etree import ElementTree

import pytest

from tests.benchmarks.endurance import NAMES, Outcome, Sample, check, plot


def samples(grown: str = "") -> list[Sample]:
    return [
        {"minutes": float(minute), **{name: 100.0 + (minute * 10 if name == grown else minute % 2) for name in NAMES}}
        for minute in range(1, 41)
    ]


def test_what_stays_the_same_passes(capsys: pytest.CaptureFixture[str]) -> None:
    check(Outcome(samples(), Counter({"plain: answered": 3}), {}))
    assert "3 plain: answered" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_grows_is_named(name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} grew from"):
        check(Outcome(samples(name), Counter(), {}))


def test_the_plot_has_a_line_for_each_series() -> None:
    drawing = ElementTree.fromstring(plot(samples()))
    assert len([each for each in drawing.iter() if each.tag.endswith("polyline")]) == len(NAMES)
