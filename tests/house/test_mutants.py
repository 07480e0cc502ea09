"""The mutants fit the code: each changes one text of its module, and the result still compiles."""

import pytest

from tests.fixtures.house import PACKAGE, ROOT
from tests.mutants.mutant import DoesNotApplyError, Mutant
from tests.mutants.mutants import MUTANTS


def test_each_mutant_still_applies_and_compiles() -> None:
    broken = {each.name: each.apply(ROOT) for each in MUTANTS}
    for each in MUTANTS:
        compile(broken[each.name], each.module, "exec")
        assert broken[each.name] != (PACKAGE / each.module).read_text("utf-8"), each.name


def test_each_mutant_has_a_name_and_a_room_of_tests() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS)
    assert [each.name for each in MUTANTS if not (ROOT / "tests" / each.tests).is_file()] == []


def test_a_text_that_is_not_there_exactly_once_is_an_error_with_a_remedy() -> None:
    gone = Mutant("gone", "no such text", "", "values/caps.py", "values/test_json.py")
    twice = Mutant("twice", "Final", "", "values/caps.py", "values/test_json.py")
    for each in (gone, twice):
        with pytest.raises(DoesNotApplyError, match=r"times in llm_effects/values/caps.py, not once: fit it"):
            each.apply(ROOT)


def test_the_page_on_reliability_names_every_mutant_by_its_room() -> None:
    rooms = dict[str, list[str]]()
    for each in MUTANTS:
        rooms.setdefault(each.room, []).append(each.name)
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    for room, names in rooms.items():
        assert f"| `tests/{room}` | {len(names)} | {', '.join(names)} |" in page
