"""Where each fault of the matrix is tested: every number from 1 to 138, and what users of other libraries ran into.

A place is a file under tests/ and the beginning of a test's name, or of a row's.
"""

import re
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent.parent

CONNECTIONS: Final = "faults/test_connections.py"
STATUSES: Final = "faults/test_statuses.py"
HINTS: Final = "faults/test_hints.py"
BODIES: Final = "faults/test_bodies_200.py"
STREAMS: Final = "faults/test_streams_cut.py"
LIFETIMES: Final = "faults/test_lifetimes.py"
SECRETS: Final = "faults/test_secrets.py"
TRANSPORTS: Final = "clients/test_transport.py"
CACHING: Final = "test_caching.py"
SQLITE: Final = "test_cache_sqlite.py"
REDIS: Final = "test_cache_redis.py"
STORES: Final = "test_cache_stores.py"
CONFIG: Final = "config/test_config.py"
LOADING: Final = "config/test_loading.py"
REGISTRY: Final = "providers/test_registry.py"
FILES: Final = "test_storage_files.py"
POSTGRES: Final = "test_storage_postgres.py"
LAWS: Final = "test_conversation_laws.py"
PROCESSES: Final = "test_conversation_processes.py"
LIMITS: Final = "policies/test_limits.py"
QUOTAS: Final = "limits/test_quotas.py"
BREAKERS: Final = "policies/test_circuit_breaker.py"

NUMBERED: Final[dict[str, tuple[int, ...]]] = {
    CONNECTIONS: (*range(1, 20),),
    STATUSES: (*range(20, 35), *range(38, 41), *range(42, 52), *range(53, 57)),
    HINTS: (35, 36, 37, 41, 52),
    BODIES: (*range(57, 80),),
    STREAMS: (*range(80, 104),),
    LIFETIMES: (*range(104, 110),),
    SECRETS: (131, 132, 134),
}
"""Files whose tests or rows begin with the number itself."""

ELSEWHERE: Final[dict[int, tuple[tuple[str, str], ...]]] = {
    107: (("test_telemetry.py", "test_a_telemetry_that_raises_costs_nobody_an_answer"),),
    110: ((CACHING, "test_a_thousand_identical_calls_are_one"), (CACHING, "test_a_cancelled_leader_hands_over")),
    111: ((CACHING, "test_every_flipped_bit_and_every_cut_is_a_miss"), (SQLITE, "test_a_damaged_file_never")),
    112: (
        (CACHING, "test_a_slow_store_costs_neither"),
        (SQLITE, "test_fault_112_a_locked_file"),
        (REDIS, "test_fault_112_a_server_that_hangs"),
    ),
    113: ((SQLITE, "test_fault_113_a_newer_file"),),
    114: ((SQLITE, "test_fault_114_an_entry_of_a_future_day"), (SQLITE, "test_a_clock_that_goes_back_a_little")),
    115: ((STORES, "test_fault_115_no_time_to_live"), (STORES, "test_infinitely_long_is_for_ever")),
    116: ((SQLITE, "test_fault_116_the_bound_in_bytes"),),
    117: ((CACHING, "test_only_whole_answers_are_kept"), (CACHING, "test_a_restarted_answer_is_not_kept")),
    118: ((CACHING, "test_what_shapes_the_answer_changes_the_key"), (CACHING, "test_owners_do_not_share")),
    119: ((SQLITE, "test_faults_111_119"), (CACHING, "test_what_is_no_entry_of_ours_is_a_miss")),
    120: ((LAWS, "test_fault_120_every_store"), (PROCESSES, "test_fault_120_four_processes_lose_nothing")),
    121: ((PROCESSES, "test_fault_121_a_killed_process"), (POSTGRES, "test_fault_128_a_server_that_crashes")),
    122: ((FILES, "test_fault_122_each_commit_reaches_the_disk"),),
    123: ((FILES, "test_fault_123_a_call_that_fails"), ("test_dialogues.py", "test_a_failed_turn_keeps_its_question")),
    124: ((LAWS, "test_faults_124_125_an_id_finds_its_own"),),
    125: ((LAWS, "test_faults_124_125_an_id_finds_its_own"),),
    126: ((FILES, "test_fault_126_a_disk_that_is_full"), (FILES, "test_fault_126_a_locked_file")),
    127: ((FILES, "test_fault_127_a_newer_file"), (FILES, "test_fault_127_a_migration_that_breaks_off")),
    128: ((POSTGRES, "test_fault_128_a_transaction_that_was_taken_back"), (POSTGRES, "test_fault_128_a_commit")),
    129: ((LAWS, "test_fault_129_redis_keeps_no_conversations"),),
    130: ((FILES, "test_fault_130_what_was_forged"),),
    133: (
        (FILES, "test_fault_133_only_the_owner"),
        (SQLITE, "test_fault_133_only_the_owner"),
    ),
    135: ((CONFIG, "test_an_impossible_key_is_rejected"), (TRANSPORTS, "test_fault_135_a_key_that_no_header_may_hold")),
    136: ((LOADING, "test_an_invalid_variable_is_reported"), (CONFIG, "test_limits_and_times_must_be_positive")),
    137: ((TRANSPORTS, "test_a_url_that_cannot_be_called"), (REGISTRY, "test_keys_are_never_sent_over_plain_http")),
    138: (
        (CONFIG, "test_a_configuration_with_a_key_cannot_be_pickled"),
        (SECRETS, "test_131_nothing_that_holds_a_key"),
    ),
}
"""Those that are tested under another name."""

WIRE: Final[dict[int, tuple[tuple[str, str], ...]]] = {
    9: ((STREAMS, "096_drip_of_comments"), (STREAMS, "test_096_an_endless_answer"), (CONNECTIONS, "test_002_")),
    10: ((STATUSES, "test_wire_10_retries_never_multiply"),),
    11: ((STATUSES, "042_429_quota"), (STATUSES, "042_429_spend_limit_of_claude")),
    12: ((HINTS, "test_035_a_hint_beyond_the_deadline"), (HINTS, "test_wire_12_13_a_model_that_asked")),
    13: (
        (HINTS, "test_wire_12_13_a_model_that_asked"),
        (BREAKERS, "test_if_every_breaker_is_open_the_last_candidate"),
        (BREAKERS, "test_there_is_one_probe_at_a_time"),
    ),
    15: ((LIFETIMES, "test_104_wire_15_cancelled_anywhere"), (TRANSPORTS, "test_fault_104_random_cancellations")),
    16: ((LIFETIMES, "test_105_a_crowd_is_served"), ("clients/test_pool.py", "test_fault_105_the_queue")),
    26: (
        (QUOTAS, "test_no_minute_exceeds_its_quota"),
        (LIMITS, "test_tokens_are_reserved"),
        (LIMITS, "test_a_failure_refunds"),
    ),
}
"""What hurt users of other libraries most, by its number in the list of wire failures."""


def named(file: str, name: str) -> bool:
    """Whether a test or a row of a file begins with a name."""
    path = TESTS / file
    return path.exists() and re.search(rf'def {re.escape(name)}|"{re.escape(name)}', path.read_text()) is not None


def numbered(file: str, number: int) -> bool:
    """Whether a test or a row of a file bears a number, alone or among others."""
    return re.search(rf'(def test_|")(\d{{3}}_)*{number:03}_', (TESTS / file).read_text()) is not None


@pytest.mark.parametrize(("file", "number"), [(file, each) for file, numbers in NUMBERED.items() for each in numbers])
def test_a_number_has_a_test_that_bears_it(file: str, number: int) -> None:
    assert numbered(file, number)


@pytest.mark.parametrize("place", [each for places in (*ELSEWHERE.values(), *WIRE.values()) for each in places])
def test_a_place_that_is_told_is_there(place: tuple[str, str]) -> None:
    assert named(*place)


def test_every_number_is_somewhere() -> None:
    told = {number for numbers in NUMBERED.values() for number in numbers} | set(ELSEWHERE)
    assert sorted(set(range(1, 139)) - told) == []
