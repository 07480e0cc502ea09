"""Rows of a Ray dataset, answered by actors on all machines of a cluster: ``generate_dataset``.

Ray reads, schedules, retries and writes. Each actor opens one environment, whose Redis and Postgres the others share.
Nothing else in the library imports Ray, and this module imports it on use: ``pip install 'llm-effects[ray]'``.
"""

from __future__ import annotations

import hashlib
import os
import traceback
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast, final

import anyio
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.runs import Progress, generate_many
from llm_effects.effects.combinators import at_least_one
from llm_effects.effects.effect import Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.pipeline import explain
from llm_effects.plain.fields import LLMFailure, Request, Source
from llm_effects.plain.llm import LLM
from llm_effects.policies.cache import request_key
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, cause_of, checked, describe, request_of
from llm_effects.values.extras import install_command
from llm_effects.values.json import repair_surrogates
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Cost, LLMResponse
from llm_effects.values.secrets import reveal, secrets_of_environment

_Dataset = TypeVar("_Dataset")

Row: TypeAlias = dict[str, Any]
"""A row: the names of its columns, and their values as Python objects."""

RequestOf: TypeAlias = Callable[[Row], Request]
"""Returns the request of a row: a text or an ``LLMRequest``. It runs in the actors, so Ray pickles it."""

Load: TypeAlias = Callable[[], Source]
"""Returns what ``LLM`` takes: a configuration, the path of a TOML file, an environment, or ``None``: the variables."""

COLUMNS: Final[Mapping[str, str]] = {
    "llm_key": "string",
    "llm_text": "string",
    "llm_model": "string",
    "llm_finish_reason": "string",
    "llm_input_tokens": "int64",
    "llm_output_tokens": "int64",
    "llm_cost_usd": "string",
    "llm_cached": "bool",
    "llm_error": "string",
    "llm_message": "string",
}
"""The columns that ``generate_dataset`` adds, and their Arrow types."""

ROWS_PER_SLOT: Final = 8
"""How many rows a block has for each request in flight: what an actor answers and writes at once."""

CALLS_PER_ACTOR: Final = 2
"""How many blocks an actor answers at once, so that the end of one does not leave it idle."""

READERS: Final = 16
"""How many files are read at once to find what is answered."""

_PART: Final = 16  # hexadecimal digits of a key for its row, and as many for its request


def _from_variables() -> None:
    """Leave the configuration to the environment variables of the actor."""


def generate_dataset(
    dataset: _Dataset,
    request_of: RequestOf,
    *,
    load: Load = _from_variables,
    key: str | None = None,
    done: str | os.PathLike[str] | None = None,
    actors: int = 1,
    concurrency: int = 32,
    cpus: float = 1.0,
) -> _Dataset:
    """Return a Ray dataset with an answer to the request of each row, in the columns ``COLUMNS``; it runs on use.

    Each of the ``actors`` reserves ``cpus``, calls ``load`` and opens one environment, with at most ``concurrency``
    requests in flight. A failure is a value in ``llm_error`` and ``llm_message``; an exception that ``request_of``
    raises is one too. A configuration without a usable model ends the job before its first row.

    ``done`` is the folder or URL that earlier rows were written to as Parquet. Rows that are answered there are left
    out; failed ones are sent again. ``key`` names a column that distinguishes rows whose requests are equal.

    >>> from llm_effects import LLMConfig
    >>> generate_dataset([], str, load=LLMConfig(models={}))  # type: ignore[arg-type]
    Traceback (most recent call last):
        ...
    TypeError: load must be a function that each actor calls: a configuration has keys, which must not travel with Ray
    """
    if not callable(cast("object", load)):
        msg = "load must be a function that each actor calls: a configuration has keys, which must not travel with Ray"
        raise TypeError(msg)
    job = _Job(request_of, load, key, at_least_one("actors", actors), at_least_one("concurrency", concurrency))
    data, rows = _library("ray.data"), cast("Any", dataset)
    if not isinstance(rows, data.Dataset):
        msg = f"generate_dataset needs a ray.data.Dataset, not {type(rows).__name__}"
        raise TypeError(msg)
    _warn_of_waiting(actors * cpus)
    answered = None if done is None else _library("ray").put(_sorted_keys(_answered(_read_all(done))))
    compute = data.ActorPoolStrategy(
        size=actors, max_concurrent_calls_per_actor=CALLS_PER_ACTOR, enable_true_multi_threading=True
    )
    blocks = rows.repartition(target_num_rows_per_block=ROWS_PER_SLOT * concurrency)
    arguments = (_pickled(job), answered)
    return cast(
        "_Dataset",
        blocks.map_batches(
            GenerateRows, fn_constructor_args=arguments, batch_format="pyarrow", compute=compute, num_cpus=cpus
        ),
    )


def dataset_progress(folder: str | os.PathLike[str]) -> Progress:
    """Count the rows that were written to a folder or URL, also while a job runs, over all its starts.

    A row that failed and was answered later counts as answered; if its request could not be made, only where ``key``
    names a column. ``cost`` includes failures. Raise ``ValueError`` for files that ``generate_dataset`` did not make.
    """
    answered, rows, cost = set[str](), set[str](), Cost.ZERO
    for written in _read_all(folder, warn=False):
        row = written.key[:_PART]
        rows.add(row)
        cost += Cost(None if written.cost_usd is None else Decimal(written.cost_usd))
        if written.error is None:
            answered.add(row)
    return Progress(done=len(rows), failed=len(rows) - len(answered), cost=cost)


def _warn_of_waiting(cpus: float) -> None:
    """Warn if actors reserve all CPUs of a cluster: its rows could not be read."""
    there = _library("ray").cluster_resources().get("CPU", 0.0)
    if cpus > there - 1:
        message = f"actors reserve {cpus:g} of {there:g} CPUs, and reading needs one more: use fewer, or less `cpus`"
        warnings.warn(message, stacklevel=3)


def _library(name: str) -> Any:  # noqa: ANN401 - Ray and Arrow are extras, which type checkers may not find
    try:
        return import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name != name.partition(".")[0]:
            raise
        message = f"generate_dataset needs {problem.name}: {install_command('ray')}"
        raise LLMFailure(ConfigurationError(message=message)) from None


@final
@frozen
class _Job:
    """The work of every actor."""

    request_of: RequestOf
    load: Load
    key: str | None
    actors: int
    concurrency: int


def _pickled(job: _Job) -> bytes:
    """Pickle a job for its actors; raise ``TypeError`` if a function holds a key, which Ray would store and show."""
    data: bytes = _library("ray.cloudpickle").dumps(job)
    if any(secret.encode("utf-8", "surrogatepass") in data for secret in secrets_of_environment(os.environ)):
        msg = "request_of or load holds a key of the environment variables: read it inside of load"
        raise TypeError(msg)
    return data


# In an actor.


@final
class GenerateRows:
    """The rows of one actor, with an environment that is open as long as the actor lives. Ray calls it."""

    def __init__(self, job: bytes, answered: object | None) -> None:
        self._job: _Job = _library("ray.cloudpickle").loads(job)
        self._done: Sequence[bytes] = () if answered is None else _library("ray").get(answered)
        self._llm = LLM(self._job.load())
        self._llm.run(check_job(self._job.actors))
        self._slots = anyio.CapacityLimiter(self._job.concurrency)

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - a table of Arrow
        """Return the rows that are not answered yet, with their answers."""
        check_columns(batch.column_names, self._job.key)
        asked = [ask(row, self._job.request_of, self._job.key) for row in batch.to_pylist()]
        new = [number for number, each in enumerate(asked) if not _contains(self._done, each.key)]
        outcomes = self._llm.run(answer_all([asked[number].request for number in new], self._slots))
        rows = [result_row(asked[number].key, outcome) for number, outcome in zip(new, outcomes, strict=True)]
        return _with_columns(batch.take(_library("pyarrow").array(new, type="int64")), rows)

    def __del__(self) -> None:
        """Close the environment: Ray deletes the object when the actor has no more rows."""
        if hasattr(self, "_llm"):
            self._llm.close()


def _with_columns(batch: Any, rows: Sequence[Mapping[str, object]]) -> Any:  # noqa: ANN401
    arrow = _library("pyarrow")
    for name, kind in COLUMNS.items():
        batch = batch.append_column(name, arrow.array([row[name] for row in rows], type=kind))
    return batch


def _contains(keys: Sequence[bytes], key: str) -> bool:
    place = bisect_left(keys, key.encode())
    return place < len(keys) and keys[place] == key.encode()


def check_job(actors: int) -> Effect[None]:
    """Fail with a ``ConfigurationError`` if no model is usable, or if each actor would spend a whole budget."""

    async def check(env: LLMEnv) -> Result[None, LLMError]:
        decision = await run(explain("?"), env)
        if not is_successful(decision) and isinstance(decision.failure(), ConfigurationError):
            return Failure(decision.failure())
        if actors > 1 and env.config.budgets and reveal(env.config.storage.url).startswith("memory"):
            shared = "use a storage.url that they share, such as postgresql://host/name"
            return Failure(ConfigurationError(message=f"budgets: each of {actors} actors would spend them: {shared}"))
        return Success(None)

    return effect(check)


def check_columns(names: Sequence[str], key: str | None) -> None:
    """Raise ``ValueError`` if the column ``key`` is missing, or if a column has the name of a result."""
    if key is not None and key not in names:
        msg = f"key: there is no column {key!r}, only {', '.join(names)}"
        raise ValueError(msg)
    if taken := sorted(COLUMNS.keys() & {*names}):
        msg = f"the dataset has columns with the names of results: rename {', '.join(taken)}"
        raise ValueError(msg)


Outcome: TypeAlias = Result[LLMResponse, LLMError | Cause]
"""The answer to a row, its error, or the exception that it raised."""


@final
@frozen
class Asked:
    """The request of a row, and the key by which a later start of the job finds its answer."""

    key: str
    request: Result[LLMRequest, LLMError | Cause]


def ask(row: Row, make: RequestOf, key: str | None) -> Asked:
    """Return the request of a row; whatever ``make`` raises is a failure of this row.

    >>> ask({"id": 7, "text": "why?"}, lambda row: row["text"], "id").request.unwrap().prompt
    'why?'
    >>> ask({"id": 7}, lambda row: row["text"], "id").request.failure()
    Cause(type='KeyError', message="'text' (<doctest llm_effects.plain.datasets.ask[1]>, line 1)")
    """
    own = None if key is None else row[key]
    try:
        request = _request(row, make)
        question = request_key(request.unwrap()) if is_successful(request) else repr(row)
    except Exception as problem:  # noqa: BLE001 - the function is the user's: its mistakes cost a row, not the job
        return Asked(_row_key(own, repr(row)), Failure(_cause(problem)))
    return Asked(_row_key(own, question), request)


def _request(row: Row, make: RequestOf) -> Result[LLMRequest, LLMError]:
    made = checked(make, row)
    return request_of(made.unwrap()) if is_successful(made) else Failure(made.failure())


def _row_key(own: object, question: str) -> str:
    """Return the digest of the column that distinguishes a row, if there is one, and that of its request."""
    digest = _digest(question)
    return (digest if own is None else _digest(repr(own)))[:_PART] + digest[_PART : 2 * _PART]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _cause(problem: Exception) -> Cause:
    """Return an exception as a value, without secrets and with its place."""
    cause = cause_of(problem, *secrets_of_environment(os.environ))
    place = traceback.extract_tb(problem.__traceback__)[-1]
    return Cause(cause.type, f"{cause.message} ({Path(place.filename).name}, line {place.lineno})".lstrip())


def answer_all(
    requests: Sequence[Result[LLMRequest, LLMError | Cause]], slots: anyio.CapacityLimiter
) -> Effect[tuple[Outcome, ...]]:
    """Answer requests in order, as ``generate_many`` does; several calls share the ``slots`` of their actor.

    >>> import anyio
    >>> from llm_effects import LLMRequest, run, scripted_env
    >>> requests = (Success(LLMRequest(prompt="why?")), Failure(Cause("KeyError", "'text'")))
    >>> answered = anyio.run(run, answer_all(requests, anyio.CapacityLimiter(2)), scripted_env("Because.")).unwrap()
    >>> answered[0].unwrap().content, answered[1].failure().type
    ('Because.', 'KeyError')
    """

    async def perform(env: LLMEnv) -> Result[tuple[Outcome, ...], LLMError]:
        outcomes: dict[int, Outcome] = {}

        async def one(number: int, request: Result[LLMRequest, LLMError | Cause]) -> bool:
            async with slots:
                outcomes[number] = await _answer(request, env)
            return False

        await in_parallel(requests, min(len(requests), int(slots.total_tokens)), one)
        return Success(tuple(outcomes[number] for number in range(len(requests))))

    return effect(perform)


async def _answer(request: Result[LLMRequest, LLMError | Cause], env: LLMEnv) -> Outcome:
    if not is_successful(request):
        return Failure(request.failure())
    try:
        answers = await run(generate_many((request.unwrap(),), 1), env)
    except Exception as problem:  # noqa: BLE001 - a defect costs a row, not the job; its place is in the message
        return Failure(_cause(problem))
    return answers.unwrap()[0] if is_successful(answers) else Failure(answers.failure())


def result_row(key: str, outcome: Outcome) -> Row:
    """Return the columns of a row's outcome.

    >>> row = result_row("k", Failure(ConfigurationError(message="models: none is configured")))
    >>> row["llm_error"], row["llm_message"], row["llm_cost_usd"], row["llm_text"]
    ('ConfigurationError', 'ConfigurationError: models: none is configured', '0', None)
    """
    values = _answer_values(outcome.unwrap()) if is_successful(outcome) else _error_values(outcome.failure())
    return dict.fromkeys(COLUMNS) | {"llm_key": key} | values


def _answer_values(answer: LLMResponse) -> Row:
    return {
        "llm_text": repair_surrogates(answer.content),
        "llm_model": answer.model,
        "llm_finish_reason": answer.finish_reason.value,
        "llm_input_tokens": answer.usage.prompt_tokens,
        "llm_output_tokens": answer.usage.output_tokens,
        "llm_cost_usd": _dollars(answer.cost),
        "llm_cached": answer.cached,
    }


def _error_values(error: LLMError | Cause) -> Row:
    if isinstance(error, Cause):
        message = repair_surrogates(f"{error.type}: {error.message}")
        return {"llm_cost_usd": "0", "llm_error": error.type, "llm_message": message}
    message = repair_surrogates(describe(error))
    return {
        "llm_model": error.model,
        "llm_cost_usd": _dollars(error.cost),
        "llm_error": error.tag,
        "llm_message": message,
    }


def _dollars(cost: Cost) -> str | None:
    """Return a cost as a decimal number without an exponent, ``None`` if it is unknown."""
    return None if cost.usd is None else f"{cost.usd:f}"


# What was written.


@final
@frozen
class _Written:
    """A row that was written: the columns that resuming and counting need."""

    key: str
    error: str | None
    cost_usd: str | None


def _answered(rows: Iterable[_Written]) -> Iterable[str]:
    return (row.key for row in rows if row.error is None)


def _sorted_keys(keys: Iterable[str]) -> Any:  # noqa: ANN401 - an array of numpy, which actors of a machine share
    numpy = _library("numpy")
    return numpy.unique(numpy.array([key.encode() for key in keys], dtype=f"S{2 * _PART}"))


def _read_all(folder: str | os.PathLike[str], *, warn: bool = True) -> Iterator[_Written]:
    """Yield what was written; a folder that does not exist has nothing."""
    fs = _library("pyarrow.fs")
    place = os.fspath(folder)
    files, path = fs.FileSystem.from_uri(place if "://" in place else str(Path(place).absolute()))
    infos = files.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    paths = [info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(".parquet")]
    with ThreadPoolExecutor(READERS) as pool:
        for path, rows in zip(paths, pool.map(partial(_read_file, files), paths), strict=True):
            if rows is None and warn:
                message = f"{path} has no end, as its job was killed while it wrote: delete it, its rows are sent again"
                warnings.warn(message, stacklevel=2)
            yield from rows or ()


def _read_file(files: object, path: str) -> list[_Written] | None:
    arrow, parquet = _library("pyarrow"), _library("pyarrow.parquet")
    columns = ["llm_key", "llm_error", "llm_cost_usd"]
    try:
        with parquet.ParquetFile(path, filesystem=files) as file:
            if missing := {*columns}.difference(file.schema_arrow.names):
                msg = f"{path} has no column {min(missing)}: generate_dataset did not make it"
                raise ValueError(msg)
            table = file.read(columns=columns)
    except arrow.ArrowInvalid:
        return None
    return [_Written(*values) for values in zip(*(table[name].to_pylist() for name in columns), strict=True)]
