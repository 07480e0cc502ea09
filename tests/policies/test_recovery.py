"""Recovery: what happens when a stream breaks after its first content (the routing layer)."""

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    Completed,
    ConfigurationError,
    Failed,
    NetworkError,
    Recovery,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
)
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing import Chunks, run_in_virtual_time, scripted
from tests.fixtures.streams import ASK, CUT, env_of, events_of, models

pytestmark = pytest.mark.anyio


async def test_a_break_after_the_first_content_fails_with_the_partial_text() -> None:
    model = scripted(Chunks(("half an ",), then=CUT), "never asked")
    events = await events_of(evolve(env_of(), clients=model))
    [started, text, failed] = events
    assert (started, text) == (Started("one"), TextDelta("half an "))
    assert isinstance(failed, Failed)
    assert (failed.error.tag, failed.error.partial, len(model.calls)) == ("MalformedResponse", "half an ", 1)


async def test_restart_tells_the_consumer_to_drop_its_text() -> None:
    env = env_of(Chunks(("half an ",), then=CUT), Chunks(("a whole", " answer")))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert events[:-1] == [
        Started("one"),
        TextDelta("half an "),
        Restarted("two"),
        TextDelta("a whole"),
        TextDelta(" answer"),
    ]
    assert isinstance(events[-1], Completed)
    assert events[-1].response.content == "a whole answer"


async def test_restarted_names_the_model_whose_content_follows() -> None:
    env = env_of(Chunks(("half",), then=CUT), NetworkError(), NetworkError(), "whole", config=models("a", "b", "c"))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert events[:-1] == [Started("a"), TextDelta("half"), Restarted("c"), TextDelta("whole")]


async def test_a_cut_stream_is_resumed_by_the_next_model() -> None:
    model = scripted(
        Chunks(("one, two, ",), then=CUT),
        Chunks(
            (
                " ",
                " three",
            )
        ),
    )
    env = evolve(env_of(config=models("a", "b", prefill=True)), clients=model)
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESUME))
    assert events[:-1] == [Started("a"), TextDelta("one, two, "), TextDelta("three")]
    assert isinstance(events[-1], Completed)
    response = events[-1].response
    assert (response.content, response.model) == ("one, two, three", "b")
    assert "continued it" in response.warnings[-1]
    assert model.requests[1].messages[-1].text == "one, two,"


async def test_resume_becomes_restart_where_the_next_model_has_no_prefill() -> None:
    env = env_of(Chunks(("half",), then=CUT), "whole", config=models("a", "b", prefill=False))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESUME))
    assert events[:-1] == [Started("a"), TextDelta("half"), Restarted("b"), TextDelta("whole")]


async def test_when_every_recovery_fails_the_error_has_the_delivered_text() -> None:
    broken = Chunks(("half",), then=CUT)
    events = await events_of(env_of(broken, broken), evolve(ASK, recovery=Recovery.RESTART))
    assert isinstance(events[-1], Failed)
    assert (events[-1].error.tag, events[-1].error.partial) == ("RequestFailed", "half")


async def test_an_error_without_fallback_is_not_recovered() -> None:
    env = env_of(Chunks(("half",), then=ConfigurationError(message="broken")), "never")
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert [type(event) for event in events] == [Started, TextDelta, Failed]


def test_a_follower_that_takes_over_begins_again_even_with_resume() -> None:
    replies = (Chunks(("half", "never"), pause=1.0), Chunks(("whole",)))
    env = evolve(env_of(*replies, config=models("one", prefill=True)), cache=MemoryCache(10))
    request = evolve(ASK, recovery=Recovery.RESUME)
    followed: list[StreamEvent] = []

    async def follow() -> None:
        followed.extend(await events_of(env, request))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            with anyio.move_on_after(2.5):
                group.start_soon(follow)
                await events_of(env, request)  # leads, as it asks first

    run_in_virtual_time(main)
    assert followed[:-1] == [Started("one"), TextDelta("half"), Restarted("one"), TextDelta("whole")]
