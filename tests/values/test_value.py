"""How frozen values compare, hash and show themselves."""

from typing import Final

import attrs
import pytest

from llm_effects import config, limits, routing, values
from llm_effects.values import NetworkError, TextDelta
from llm_effects.values.conversations import History
from llm_effects.values.events import ReasoningDelta

ROOMS: Final = (config, limits, routing, values)
VALUES: Final = [each for room in ROOMS for each in vars(room).values() if isinstance(each, type) and attrs.has(each)]


@pytest.mark.parametrize("kind", VALUES)
def test_every_value_compares_by_its_fields(kind: type) -> None:
    assert kind.__eq__ is not object.__eq__
    assert kind.__hash__ is not object.__hash__
    assert kind.__repr__ is not object.__repr__


def test_values_of_two_classes_differ_though_their_fields_are_the_same() -> None:
    assert TextDelta("a") == TextDelta("a")
    assert TextDelta("a") != ReasoningDelta("a")
    assert TextDelta("a").__eq__("a") is NotImplemented


def test_equal_values_have_the_same_hash() -> None:
    assert len({TextDelta("a"), TextDelta("a"), TextDelta("b"), ReasoningDelta("a")}) == 3
    assert len({NetworkError(phase="refused", status=500), NetworkError(phase="refused")}) == 1


def test_a_value_shows_what_is_set() -> None:
    assert repr(NetworkError(phase="refused", status=500)) == "NetworkError(status=500, phase='refused')"


def test_a_value_with_a_field_that_has_no_hash_has_none_either() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(attrs.evolve(TextDelta("a"), text=[]))  # type: ignore[arg-type]
    assert History.__hash__ is not None
