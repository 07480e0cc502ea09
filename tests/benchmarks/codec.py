"""Encoding requests and decoding answers, without any network: ``python -m tests.benchmarks.codec``.

For each protocol it prints the processor time of one request encoded, one whole answer decoded and one event of text
decoded, and its ratio to ``json.loads`` of the same bytes. All take turns, so that they are measured under the same
load; the figures are medians.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

from llm_effects.providers.draft import Draft
from llm_effects.providers.sse import ServerEvent
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


def actions(sample: Sample) -> dict[str, Action]:
    provider, target, response = sample.provider, sample.target, sample.response
    draft, (event,) = text_events(sample, 1)

    def one_event() -> object:
        if len(draft.parts[-1].pieces) > 5000:
            draft.parts[-1].replace("x")
        return provider.decode_event(draft, event)

    return {
        "encode": lambda: provider.encode(target, REQUEST, False),
        "decode": lambda: provider.decode(target, response),
        "json.loads of it": lambda: json.loads(response.body),
        "event": one_event,
        "json.loads of the event": lambda: json.loads(event.data),
    }


def compare(rounds: int = 100, times: int = 200) -> None:
    for sample in SAMPLES:
        each = actions(sample)
        taken: dict[str, list[float]] = {name: [] for name in each}
        for _ in range(rounds):
            for name, action in each.items():
                taken[name].append(processor_us(action, times))
        us = {name: median(values) for name, values in taken.items()}
        whole, event = us["decode"] / us["json.loads of it"], us["event"] / us["json.loads of the event"]
        print(
            f"{sample.name}: encode {us['encode']:.1f} us, decode {us['decode']:.1f} us ({whole:.2f} of json.loads), "
            f"an event of text {us['event']:.2f} us ({event:.2f})"
        )


if __name__ == "__main__":
    compare(*map(int, sys.argv[1:]))
