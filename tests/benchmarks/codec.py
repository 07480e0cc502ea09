"""Encoding requests and decoding answers, without any network: ``python -m tests.benchmarks.codec``.

For each protocol it prints the processor time of one request encoded, of an answer, an answer with two tool calls and
an event of text decoded, and the ratio of the latter to ``json.loads`` of the same bytes. All take turns, so that they
are measured under the same load; the figures are medians.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from llm_effects.providers.draft import Draft
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.wire import WireResponse
from llm_effects.values.events import TextDelta
from tests.fixtures.answers import REQUEST, SAMPLES, Sample

Action = Callable[[], object]


def processor_us(action: Action, times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - started) / times * 1e6


def text_events(sample: Sample, count: int) -> tuple[Draft, list[ServerEvent]]:
    """Return a draft in the middle of a stream, and so many of its events of text."""
    draft, found = Draft(target=sample.target), list[ServerEvent]()
    for event in sample.events:
        if any(isinstance(each, TextDelta) for each in sample.provider.decode_event(draft, event).unwrap()):
            found.append(event)
        if len(found) == 2:
            break
    return draft, found[1:] * count


def actions(sample: Sample) -> dict[str, tuple[Action, bytes | str]]:
    """Return what is measured, with the JSON that it decodes."""
    provider, target, response = sample.provider, sample.target, sample.response
    calling = WireResponse(status=200, body=sample.calling)
    draft, (event,) = text_events(sample, 1)

    def one_event() -> object:
        if len(draft.parts[-1].pieces) > 5000:
            draft.parts[-1].replace("x")
        return provider.decode_event(draft, event)

    return {
        "a request": (lambda: provider.encode(target, REQUEST, False), "{}"),
        "an answer": (lambda: provider.decode(target, response), response.body),
        "with two calls": (lambda: provider.decode(target, calling), calling.body),
        "an event": (one_event, event.data),
    }


def compare(rounds: int = 100, times: int = 200) -> None:
    for sample in SAMPLES:
        each = actions(sample)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in each}
        for _ in range(rounds):
            for name, (action, data) in each.items():
                parsed = processor_us(partial(json.loads, data), times)
                taken[name].append((processor_us(action, times), parsed))
        print(sample.name, end="")
        for name, values in taken.items():
            took, parsed = (median(column) for column in zip(*values, strict=True))
            ratio = "" if name == "a request" else f" ({took / parsed:.2f})"
            print(f", {name} {took:.2f} us{ratio}", end="")
        print()


if __name__ == "__main__":
    compare(*map(int, sys.argv[1:]))
