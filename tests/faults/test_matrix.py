"""The tests of each fault of the matrix, from 1 to 138, and of what users of other libraries ran into.

Tests are found by name, wherever they are. A name, of a test or of a parametrised row, has the number of its fault:
``test_057_...`` or ``"057_..."`` in this folder, ``test_fault_57_...`` in any other.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

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
    tested = {number for numbers in IN_THIS_FOLDER.values() for number in numbers} | set(ELSEWHERE) | set(BY_NAME)
    assert sorted(set(range(1, 139)) - tested) == []
