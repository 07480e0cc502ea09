"""What a job on a local Ray costs: ``python -m tests.benchmarks.datasets [rows [delay_ms [concurrency]]]``.

It needs ``pip install 'llm-effects[ray]'`` and the root of the checkout as ``PYTHONPATH``, for Ray's workers. One actor
asks the loopback server of ``stub.py``. ``local`` in place of the delay asks the model in the actor's process.
``resume ROWS`` measures what a start of the job reads of so many rows that are answered, without Ray.
"""

import os
import resource
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from llm_effects import LLMConfig, LLMRequest, ModelConfig, Preferences, load_config
from llm_effects.plain.datasets import (
    COLUMNS,
    ROWS_PER_SLOT,
    _answered,
    _read_all,
    _sorted_keys,
    dataset_progress,
    generate_dataset,
)
from tests.benchmarks.stub import stub

INCIDENT = "The disk of a database server is full. What do you do first? One short sentence. Case "


def used() -> tuple[float, float]:
    """Return the processor time of this process in seconds, and the most memory that it had in MB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def ask(folder: Path, row: dict[str, Any]) -> LLMRequest:
    """Return the request of a row; now and then, note what the actor has used."""
    if row["id"] % 50 == 0:
        (folder / f"used-{os.getpid()}-{row['id']}").write_text(" ".join(map(str, used())))
    return LLMRequest(prompt=f"{INCIDENT}{row['id']}", preferences=Preferences(max_tokens=24, temperature=0.0, seed=7))


def at_server(url: str) -> LLMConfig:
    return LLMConfig(models={"stub": ModelConfig(provider="openai-compatible", model="stub", endpoint=url)})


def in_process() -> LLMConfig:
    """Return the model package of the variables alone: the last resort."""
    config = load_config(environ={}).unwrap()
    return LLMConfig(models={name: model for name, model in config.models.items() if model.last_resort})


def measure(rows: int, load: Any, concurrency: int) -> None:
    """Answer rows with one actor, start the job again, and print what both took."""
    ray, data = import_module("ray"), import_module("ray.data")
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name, "answers")
        start = partial(
            generate_dataset, request_of=partial(ask, folder), load=load, key="id", done=out, concurrency=concurrency
        )
        for title in ("first start", "second start"):
            began = time.perf_counter()
            start(data.range(rows)).write_parquet(str(out))
            print(f"{title}: {time.perf_counter() - began:.1f} s with the start of its actor")
        notes = (note.read_text().split() for note in folder.glob("used-*"))
        print(
            "an actor: {:.1f} s of processor time, {:.0f} MB at most".format(
                *max(tuple(map(float, each)) for each in notes)
            )
        )
        files = list(out.glob("*.parquet"))
        size = sum(file.stat().st_size for file in files)
        print(f"{len(files)} files of at most {ROWS_PER_SLOT * concurrency} rows, {size / rows:.0f} bytes a row")
        print(dataset_progress(out))
    ray.shutdown()


def measure_resume(rows: int, in_file: int = 256) -> None:
    """Write so many answered rows as a job does, and print what reading their keys takes."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    with tempfile.TemporaryDirectory() as name:
        for first in range(0, rows, in_file):
            columns: dict[str, Any] = {each: arrow.nulls(in_file, type=kind) for each, kind in COLUMNS.items()}
            columns["llm_key"] = [f"{number:032x}" for number in range(first, first + in_file)]
            columns["llm_cost_usd"] = ["0.002"] * in_file
            parquet.write_table(arrow.table(columns), f"{name}/{first}.parquet")
        began, (before, _) = time.perf_counter(), used()
        keys = _sorted_keys(_answered(_read_all(name)))
        print(f"{len(keys)} keys: {keys.nbytes / 1e6:.0f} MB for all actors of a machine")
        print(f"{time.perf_counter() - began:.1f} s, {used()[0] - before:.1f} s of processor time, {used()[1]:.0f} MB")


def main(rows: int = 10_000, delay: str = "0", concurrency: int = 32) -> None:
    if delay == "local":
        measure(rows, in_process, concurrency)
        return
    with stub(float(delay)) as url:
        measure(rows, partial(at_server, url), concurrency)


if __name__ == "__main__":
    if sys.argv[1:2] == ["resume"]:
        measure_resume(int(sys.argv[2]))
    else:
        main(*(int(each) if each.isdigit() and place != 1 else each for place, each in enumerate(sys.argv[1:])))  # type: ignore[arg-type]
