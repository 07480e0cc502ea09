"""Rows of a Ray dataset, answered by actors: a start of the same program after a crash sends only what is left.

``python examples/dataset.py answers`` writes to that folder, or to a URL such as ``s3://bucket/answers``; without one
it demonstrates this in a temporary folder. It needs Ray, an extra. Each actor asks the models of its environment
variables.
"""

import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from llm_effects import LLMConfig, LLMFailure, LLMRequest, Preferences, load_config
from llm_effects.plain.datasets import dataset_progress, generate_dataset
from llm_effects.values.extras import install_command

THINGS = ("a disk", "a log file", "a cache", "a queue", "a lock", "a timeout")


def load() -> LLMConfig:
    """Return the configuration of an actor, which calls this: keys do not travel with Ray."""
    return load_config().unwrap()


def request_of(row: dict[str, Any]) -> LLMRequest:
    """Return the request of a row."""
    limits = Preferences(max_tokens=16, temperature=0.0, seed=7)
    return LLMRequest(prompt=f"What is {row['thing']}? One sentence.", preferences=limits)


def ray_data() -> Any:  # noqa: ANN401 - an extra, which type checkers may not find
    """Return Ray's module of datasets."""
    return import_module("ray.data")


def answer_rows(folder: str) -> str:
    """Answer what is not answered in the folder yet; return what is there then."""
    rows = ray_data().from_items([{"thing": thing} for thing in THINGS])
    # An actor takes half of a CPU, so that one is left for reading and writing on a small machine.
    answers = generate_dataset(rows, request_of, load=load, key="thing", done=folder, concurrency=2, cpus=0.5)
    answers.write_parquet(folder)
    now = dataset_progress(folder)
    return f"{now.done} rows, {now.failed} failed, {now.cost}"


def lines_of(folder: str) -> Iterator[str]:
    """Yield a line for each row, in order."""
    for row in ray_data().read_parquet(folder).sort("thing").take_all():
        yield f"{row['thing']}: {row['llm_text'] or row['llm_message']}"


def main(folder: str) -> str:
    """Answer all rows, start the job again, and return the answers."""
    first, second = answer_rows(folder), answer_rows(folder)
    return "\n".join((*lines_of(folder), f"first start: {first}", f"second start: {second}"))


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as temporary:
            print(main(sys.argv[1] if len(sys.argv) > 1 else temporary))
    except ModuleNotFoundError as problem:
        sys.exit(f"this example needs {problem.name}: {install_command('ray')}")
    except LLMFailure as failure:
        sys.exit(str(failure))
