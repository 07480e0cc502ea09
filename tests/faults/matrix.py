"""The fault matrix: which tests belong to a row, and how they ended.

Tests are found by name, wherever they are. A name, of a test or of a parametrised row, has the numbers of its faults:
``test_fault_57_...`` or ``"fault_57_..."`` in any folder, and in this one ``test_057_...`` or ``"057_..."`` too.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, final
from xml.etree import ElementTree

import pytest
from attrs import define, field, frozen

from tests.faults.rows import FIRST_FOUND, ROWS

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent

BY_NAME: Final[dict[int, tuple[str, ...]]] = {
    107: ("test_a_telemetry_that_raises_fails_no_call",),
    110: ("test_a_thousand_identical_calls_make_one_upstream_call", "test_a_cancelled_leader_hands_over"),
    111: (
        "test_every_flipped_bit_and_every_truncation_is_a_miss",
        "test_a_damaged_file_never_raises",
    ),
    112: ("test_a_slow_store_costs_neither_the_answer_nor_much_time",),
    114: ("test_a_clock_that_goes_back_a_little_does_not_extend_the_time_to_live",),
    115: ("test_an_infinite_time_to_live_is_for_ever",),
    117: ("test_only_whole_answers_are_stored", "test_a_restarted_answer_is_not_stored"),
    118: ("test_a_field_that_shapes_the_answer_changes_the_key", "test_owners_do_not_share_entries"),
    119: ("test_foreign_data_is_a_miss",),
    123: ("test_a_failed_turn_keeps_its_question_and_can_be_retried",),
    135: ("test_an_impossible_key_is_rejected_without_showing_it",),
    136: ("test_an_invalid_variable_is_reported_with_its_remedy", "test_limits_and_times_must_be_positive_numbers"),
    137: (
        "test_an_invalid_url_is_a_configuration_error",
        "test_keys_are_never_sent_over_plain_http_to_another_machine",
    ),
    138: ("test_a_configuration_with_a_key_cannot_be_pickled", "test_131_no_value_with_a_key_shows_it"),
}
"""Tests of a fault whose names do not have its number."""


@final
@frozen(order=True)
class Test:
    """A test, or a parametrised row of one, by its file and its name."""

    __test__ = False

    file: str
    name: str

    def __str__(self) -> str:
        return f"tests/{self.file}::{self.name if self.name.startswith('test_') else f'[{self.name}]'}"

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the faults that it tests."""
        found = re.findall(r"faults?_((?:\d+_)+)", self.name)
        if self.file.startswith("faults/"):
            found += re.findall(r"(?:^test_|^|\[|-)((?:\d{3}_)+)", self.name)
        function = self.name.partition("[")[0]
        by_name = {number for number, names in BY_NAME.items() if function in names}
        return frozenset({int(each) for text in found for each in text.split("_") if each} | by_name) & frozenset(ROWS)

    def has(self, run: "Test") -> bool:
        """Return whether a test that ran is this one, or one of its parameters.

        >>> Test("a.py", "test_one").has(Test("a.py", "test_one[trio]"))
        True
        >>> Test("a.py", "050_{status}").has(Test("a.py", "test_all[050_418-whole-trio]"))
        True
        """
        function, _, parameters = run.name.partition("[")
        if self.file != run.file or self.name == function:
            return self.file == run.file
        row = re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(self.name))
        return re.search(rf"(?:^|-){row}(?:-|\]$)", parameters) is not None


NAMES: Final = re.compile(r'def (test_\w+)|^ +f?"((?:faults?_\d+|\d{3})_[^"]+)": ', re.MULTILINE)
"""The name of a test, or of a row."""


def known_tests() -> Iterator[Test]:
    """Yield the tests and rows that have the number of a fault, as they stand in the files."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.name == "test_matrix.py":
            continue
        names = NAMES.findall(path.read_text("utf-8"))
        tests = (Test(str(path.relative_to(TESTS)), function or row) for function, row in names)
        yield from (test for test in tests if test.numbers)


@final
@define(eq=False)
class Outcomes:
    """How tests ended: ``passed``, ``failed``, ``skipped``. As a pytest plugin it runs only tests of chosen faults."""

    chosen: frozenset[int] = frozenset(ROWS)
    by_test: dict[Test, str] = field(factory=dict[Test, str])

    def add(self, test: Test, outcome: str) -> None:
        """Record an outcome; a failure stays one."""
        if test.numbers and self.by_test.get(test) != "failed":
            self.by_test[test] = outcome

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the tests of other faults and of none."""
        others = [item for item in items if not test_of(item.nodeid).numbers & self.chosen]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if test_of(item.nodeid).numbers & self.chosen]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record how a test ended."""
        if report.when == "call" or report.outcome != "passed":
            self.add(test_of(report.nodeid), report.outcome)


def test_of(node: str) -> Test:
    """Return the test of a node id, without its class.

    >>> print(test_of("tests/a.py::TestAll::test_one[::1]"))
    tests/a.py::test_one[::1]
    """
    file, _, name = node.partition("::")
    return Test(file.removeprefix("tests/"), re.sub(r"^Test\w*::", "", name))


test_of.__test__ = False  # type: ignore[attr-defined]


def run_tests(files: Iterable[str], numbers: Iterable[int]) -> Outcomes:
    """Run the tests of these faults in some files."""
    outcomes = Outcomes(frozenset(numbers))
    pytest.main(["-q", "-p", "no:cacheprovider", *(str(TESTS / file) for file in files)], plugins=[outcomes])
    return outcomes


def read_junit(path: Path) -> Outcomes:
    """Read the outcomes of a run from the file that ``pytest --junit-xml`` wrote."""
    outcomes = Outcomes()
    for case in ElementTree.parse(path).iter("testcase"):
        module = re.sub(r"\.Test\w*$", "", case.get("classname", ""))
        file = module.removeprefix("tests.").replace(".", "/") + ".py"
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        outcomes.add(Test(file, case.get("name", "")), outcome)
    return outcomes


def lines_of(number: int, tests: Iterable[Test], outcomes: Mapping[Test, str]) -> Iterator[str]:
    """Yield a row: what happens, or what happened before; what is right; each of its tests, and how it ended."""
    wrong, right = ROWS[number]
    yield f"{number:3} {'before:' if number >= FIRST_FOUND else 'fault:':7} {wrong}"
    yield f"    {'right:':7} {right}"
    own = [test for test in tests if number in test.numbers]
    ran = {test: outcome for test, outcome in outcomes.items() if number in test.numbers}
    for test in own:
        ended = [outcome for each, outcome in ran.items() if test.has(each)]
        yield f"    {counted(ended) or 'not run':>9}  {test}"
    yield from () if own else ("    NO TEST",)
    yield from (f"    {'FAILED':>9}  {test}" for test, outcome in ran.items() if outcome == "failed")


def counted(outcomes: Iterable[str]) -> str:
    """Return how many tests ended in which way.

    >>> counted(["passed", "skipped", "passed"])
    '2 passed, 1 skipped'
    """
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(outcomes).items()))


def verdict(number: int, tests: Iterable[Test], outcomes: Mapping[Test, str]) -> str:
    """Return how the tests of a row ended: ``passed``, ``failed``, ``skipped``, ``not run`` or ``without a test``."""
    ended = {outcome for test, outcome in outcomes.items() if number in test.numbers}
    if not any(number in test.numbers for test in tests):
        return "without a test"
    if not ended:
        return "not run"
    return next(each for each in ("failed", "passed", "skipped") if each in ended)


def untested(tests: Iterable[Test]) -> list[int]:
    """Return the rows without a test."""
    tested = frozenset[int]().union(*(test.numbers for test in tests))
    return sorted(set(ROWS) - tested)
