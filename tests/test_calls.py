"""A call under way: what every layer does to it."""

from typing import get_args, get_type_hints

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from llm_effects import LLMRequest
from llm_effects.effects.call import Call, changed

CALL = Call(id="1", request=LLMRequest(prompt="why?"), model="one", wait_ms=3.0)


def test_a_changed_call_is_what_evolve_makes_and_the_old_one_stays() -> None:
    new = changed(CALL, model="two", deadline=5.0)
    assert new == evolve(CALL, model="two", deadline=5.0)
    assert (CALL.model, CALL.wait_ms, new.wait_ms) == ("one", 3.0, 3.0)
    assert new.history is CALL.history


def test_a_changed_call_is_as_frozen_as_any() -> None:
    with pytest.raises(FrozenInstanceError):
        changed(CALL, model="two").model = "three"  # type: ignore[misc]


def test_what_may_be_changed_is_a_field_of_the_call_with_its_type() -> None:
    (changes,) = get_args(get_type_hints(changed)["changes"])
    types = get_type_hints(Call)
    assert get_type_hints(changes) == {name: types[name] for name in get_type_hints(changes)}
