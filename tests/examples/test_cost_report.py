"""The table and the charts of the example ``cost_report``."""

from xml.etree import ElementTree

import pytest

from llm_effects import run, usage_report
from tests.fixtures.examples import load
from tests.fixtures.usage_rows import env_with, row


@pytest.mark.anyio
async def test_the_report_is_a_table_and_charts() -> None:
    example = load("cost_report")
    rows = (
        row("a", cost="0.3", latency=800),
        row("b", "claude", cost="0.1", latency=400),
        row("c", "claude", cost=None),
    )
    report = (await run(usage_report(by=("model", "task")), env_with(*rows))).unwrap()
    table, chart = example.table(report).splitlines(), example.chart(report).splitlines()
    assert table[1].split() == ["gpt", "/", "analysis", "1", "1", "1", "13", "$0.3", "800", "800"]
    assert "$0.1+" in table[2]
    assert table[3].startswith("all")
    assert [line.count("#") for line in chart] == [0, 24, 8, 0, 0, 24, 3]  # the longest bar is the largest value
    picture = ElementTree.fromstring(example.svg(report))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 2
