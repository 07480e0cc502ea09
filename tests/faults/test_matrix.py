"""The tests of each fault of the matrix, and of what users of other libraries ran into.

Tests are found by name, wherever they are. A name, of a test or of a parametrised row, has the number of its fault:
``test_057_...`` or ``"057_..."`` in this folder, ``test_fault_57_...`` in any other.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.faults.__main__ import main
from tests.faults.matrix import BY_NAME, NAMES, Outcomes, Test, known_tests, lines_of, read_junit, untested, verdict
from tests.faults.rows import FIRST_FOUND, ROWS

HERE: Final = Path(__file__).parent
TEXTS: Final = {path: path.read_text(encoding="utf-8") for path in HERE.parent.rglob("test_*.py")}

IN_THIS_FOLDER: Final[dict[str, tuple[int, ...]]] = {
    "test_connections.py": (*range(1, 20),),
    "test_statuses.py": (*range(20, 35), *range(38, 41), *range(42, 52), *range(53, 57)),
    "test_hints.py": (35, 36, 37, 41, 52),
    "test_bodies_200.py": (*range(57, 80),),
    "test_streams_cut.py": (*range(80, 104),),
    "test_lifetimes.py": (*range(104, 110),),
    "test_secrets.py": (131, 132, 134),
}
"""Numbers in the names of tests or rows, by file."""

ELSEWHERE: Final = Counter(
    {
        112: 8,
        113: 1,
        114: 1,
        115: 1,
        116: 1,
        119: 1,
        120: 3,
        121: 1,
        122: 1,
        123: 1,
        124: 1,
        125: 1,
        126: 4,
        127: 6,
        128: 6,
        129: 1,
        130: 1,
        133: 2,
        135: 1,
    }
)
"""How many tests of other folders have a number in their names, at least."""

WIRE: Final[dict[int, tuple[str, ...]]] = {
    9: (
        "096_drip_of_comments",
        "test_096_an_endless_answer_ends_with_its_attempt",
        "test_002_a_connection_that_is_never_accepted_costs_only_its_own_time_out",
    ),
    10: ("test_wire_10_retries_never_multiply",),
    11: ("042_429_quota", "042_429_spend_limit_of_claude"),
    12: (
        "test_035_a_hint_beyond_the_deadline_falls_back_at_once_and_cools_the_model_down",
        "test_wire_12_13_a_cooled_down_model_is_asked_last",
    ),
    13: (
        "test_wire_12_13_a_cooled_down_model_is_asked_last",
        "test_if_every_breaker_is_open_the_last_candidate_is_called",
        "test_there_is_one_probe_at_a_time_and_a_cancelled_one_is_released",
    ),
    15: (
        "test_104_wire_15_repeated_cancellations_at_any_point_leak_nothing",
        "test_fault_104_random_cancellations_leak_no_slot_and_no_connection",
    ),
    16: ("test_105_many_calls_are_served_without_an_error", "test_fault_105_the_queue_is_first_come_first_served"),
    26: (
        "test_no_minute_exceeds_its_quota",
        "test_tokens_are_reserved_for_the_longest_answer_and_replaced_by_actual_usage",
        "test_a_failure_refunds_what_the_server_cannot_have_counted",
    ),
}
"""Tests of what hurt users of other libraries most, by its number in the list of wire failures."""


def files_with(name: str) -> list[str]:
    """Return the files that have a test or a row of this name."""
    pattern = re.compile(rf'def {re.escape(name)}\(|^ +"{re.escape(name)}": ', re.MULTILINE)
    return [path.name for path, text in TEXTS.items() if path != Path(__file__) and pattern.search(text)]


def numbers_in(text: str) -> set[int]:
    """Return the numbers in the names of the tests and rows of a file in this folder."""
    names = re.findall(r'(?:def test_|")((?:\d{3}_)+)', text)
    return {int(number) for name in names for number in name.split("_") if number}


def numbers_elsewhere() -> Counter[int]:
    """Return how many tests and rows of other folders have each number in their names."""
    texts = [text for path, text in TEXTS.items() if path.parent != HERE]
    names = [name for text in texts for name in re.findall(r'(?:def test_|")faults?_((?:\d+_)+)', text)]
    return Counter(int(number) for name in names for number in name.split("_") if number)


@pytest.mark.parametrize("file", IN_THIS_FOLDER)
def test_each_file_tests_its_faults(file: str) -> None:
    assert set(IN_THIS_FOLDER[file]) - numbers_in(TEXTS[HERE / file]) == set()


def test_other_folders_test_their_faults() -> None:
    assert ELSEWHERE - numbers_elsewhere() == Counter()


@pytest.mark.parametrize("name", [each for names in (*BY_NAME.values(), *WIRE.values()) for each in names])
def test_a_named_test_exists(name: str) -> None:
    assert files_with(name), f"no test or row is named {name}"


def test_every_fault_has_a_test() -> None:
    assert [*range(1, 207)] == sorted(ROWS)[:206]
    assert untested(known_tests()) == []


def test_no_test_or_row_has_a_number_that_is_no_fault() -> None:
    names = " ".join(name for text in TEXTS.values() for both in NAMES.findall(text) for name in both)
    texts = re.findall(r"faults?_((?:\d+_)+)", names)
    assert {int(each) for text in texts for each in text.split("_") if each} - set(ROWS) == set()


@pytest.mark.parametrize(
    ("file", "name", "numbers"),
    [
        ("batches/test_runs.py", "test_fault_145_a_batch_waits[asyncio-8]", {145}),
        ("clients/test_transport.py", "test_faults_16_17_redirects[trio]", {16, 17}),
        ("clients/test_transport.py", "test_errors[fault_3_closed_early-trio]", {3}),
        ("clients/test_transport.py", "test_100_things[003_closed]", set[int]()),
        ("faults/test_connections.py", "test_broken[asyncio-007_silence-whole]", {7}),
        ("faults/test_connections.py", "test_036_041_dates[trio]", {36, 41}),
        ("faults/test_connections.py", "test_much[100-2000]", set[int]()),
        ("faults/test_secrets.py", "test_131_no_value_with_a_key_shows_it", {131, 138}),
    ],
)
def test_the_numbers_of_a_test_are_in_its_name(file: str, name: str, numbers: set[int]) -> None:
    assert Test(file, name).numbers == numbers


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.faults.test_connections" name="test_broken[asyncio-007_silence-whole]" time="0.1"/>
<testcase classname="tests.faults.test_connections" name="test_broken[trio-007_silence-whole]"><failure/></testcase>
<testcase classname="tests.routing.test_router" name="test_no_fault" time="0.1"><failure/></testcase>
<testcase classname="tests.stores.test_open" name="test_fault_112_full[trio]"><skipped/></testcase>
<testcase classname="tests.clients.test_local_engine.TestEngine" name="test_fault_9_queue[trio]"/>
</testsuite></testsuites>"""


def test_the_outcomes_of_an_earlier_run_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    ended = read_junit(tmp_path / "junit.xml").by_test
    assert sorted(ended.values()) == ["failed", "passed", "passed", "skipped"]
    assert Test("clients/test_local_engine.py", "test_fault_9_queue[trio]") in ended
    row = Test("faults/test_connections.py", "007_silence")
    assert [*lines_of(7, (row,), ended)] == [
        "  7 fault:  silence before the headers",
        "    right:  times out at the first content; the attempt is recorded",
        "    1 failed, 1 passed  tests/faults/test_connections.py::[007_silence]",
        "       FAILED  tests/faults/test_connections.py::test_broken[trio-007_silence-whole]",
    ]
    assert main(["7", "112", "--junit", str(tmp_path / "junit.xml")]) == 1
    shown = capsys.readouterr().out
    assert "2 rows: 1 failed, 1 skipped\nfailed: 7\n3 tests: 1 failed, 1 passed, 1 skipped" in shown


def test_the_command_lists_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for number, (wrong, right) in ROWS.items():
        label = "before:" if number >= FIRST_FOUND else "fault: "
        assert f"{number:3} {label} {wrong}\n    right:  {right}\n" in shown
    assert f"{len(ROWS)} rows: {len(ROWS)} not run" in shown


def test_a_row_without_a_test_is_not_passed_over() -> None:
    assert verdict(7, (), {}) == "without a test"
    assert [*lines_of(7, (), {})][-1].strip() == "NO TEST"


def test_an_error_after_a_success_is_a_failure() -> None:
    outcomes, test = Outcomes(), Test("a.py", "test_fault_1_x")
    for outcome in ("passed", "failed", "passed"):
        outcomes.add(test, outcome)
    assert outcomes.by_test == {test: "failed"}
