# pyright: strict
"""The types that pyright infers for ``generate_as``; read by ``test_pyright.py``, never run."""

from dataclasses import dataclass
from typing import Literal, assert_type

from attrs import frozen

from llm_effects import Effect, LLMEnv, LLMRequest, generate_as, run
from llm_effects.structured import Partial, Structured, stream_as
from llm_effects.structured.partial_answers import PartialSink


@frozen
class Report:
    title: str


@dataclass
class Point:
    x: int


async def the_type_of_the_value_is_inferred(request: LLMRequest, env: LLMEnv) -> None:
    assert_type(generate_as(request, Report), Effect[Structured[Report]])
    assert_type(generate_as("why?", Report), Effect[Structured[Report]])
    assert_type(generate_as(request, Point), Effect[Structured[Point]])
    assert_type(generate_as(request, list[Report]), Effect[Structured[list[Report]]])
    assert_type(generate_as(request, dict[str, int]), Effect[Structured[dict[str, int]]])
    assert_type(generate_as(request, Structured[Report | Point]), Effect[Structured[Report | Point]])
    assert_type(generate_as(request, Structured[Literal["low", "high"]]), Effect[Structured[Literal["low", "high"]]])
    assert_type((await run(generate_as(request, Report), env)).unwrap().value.title, str)


def the_items_of_a_list_field_have_their_classes(so_far: Partial[Report]) -> None:
    assert_type(so_far.get("title", str), str | None)
    assert_type(so_far.items_of("rows", Report), tuple[Report, ...])
    assert_type(so_far.items_of("rows", Report, Point), tuple[Report | Point, ...])


def partial_values_have_the_type_of_the_whole(
    request: LLMRequest, sink: PartialSink[Report], either: PartialSink[Report | Point]
) -> None:
    assert_type(stream_as(request, Report, sink), Effect[Structured[Report]])
    assert_type(stream_as(request, Structured[Report | Point], either), Effect[Structured[Report | Point]])
    stream_as(request, Report, either)
    stream_as(request, Structured[Report | Point], sink)  # rejected


def bare_unions_and_literals_are_objects(request: LLMRequest) -> None:
    assert_type(generate_as(request, Literal["low", "high"]), Effect[Structured[object]])
    assert_type(generate_as(request, Report | Point), Effect[Structured[object]])


async def mistakes_are_rejected(request: LLMRequest, env: LLMEnv) -> None:
    generate_as(7, Report)  # rejected
    generate_as(request)  # rejected
    generate_as(request, Report, max_repairs="two")  # rejected
    wrong: int = (await run(generate_as(request, Report), env)).unwrap().value.title  # rejected
    print(wrong)
