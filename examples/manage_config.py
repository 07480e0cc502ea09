"""Change a configuration by a request in plain words: the model proposes a typed diff, which is then validated."""

import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, final

import anyio
from attrs import evolve, field, frozen
from attrs.validators import max_len
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    Effect,
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    SchemaMismatch,
    TaskType,
    create_default_llm_manager,
    describe,
    effect,
    fail,
    generate_as,
    rescue,
    run,
)

CONFIG: Final = Path(__file__).parent / "data" / "platform.toml"
REQUEST: Final = "Alert us earlier: at a p99 latency of 200 ms."

Setting = Literal["alerts.p99_ms", "alerts.error_rate", "sampling.rate", "retention.days"]

BOUNDS: Final[Mapping[Setting, tuple[float, float]]] = {
    "alerts.p99_ms": (50.0, 5000.0),
    "alerts.error_rate": (0.001, 0.5),
    "sampling.rate": (0.01, 1.0),
    "retention.days": (1.0, 365.0),
}


@final
@frozen
class Change:
    """One setting with its current and its new value."""

    setting: Setting
    old: float
    new: float


@final
@frozen
class Proposal:
    """All changes, and the reason."""

    changes: list[Change] = field(validator=max_len(2))
    reason: str = field(validator=max_len(60))


def values(text: str) -> dict[str, float]:
    """Read the settings of a TOML text by their dotted names."""
    tables = tomllib.loads(text)
    return {f"{table}.{key}": float(value) for table, pairs in tables.items() for key, value in pairs.items()}


def problems(proposal: Proposal, current: Mapping[str, float]) -> Iterator[str]:
    """List every problem of a proposal."""
    if not 1 <= len(proposal.changes) <= len(BOUNDS):
        yield f"changes: must be 1 to {len(BOUNDS)}, not {len(proposal.changes)}"
    if len({change.setting for change in proposal.changes}) < len(proposal.changes):
        yield "changes: each setting may change once"
    for at, change in enumerate(proposal.changes):
        least, most = BOUNDS[change.setting]
        if change.old != current[change.setting]:
            yield f"changes[{at}].old: {change.setting} is {current[change.setting]:g}, not {change.old:g}"
        if not least <= change.new <= most:
            yield f"changes[{at}].new: {change.setting} must be {least:g} to {most:g}, not {change.new:g}"


def checked_proposal(proposal: Proposal, current: Mapping[str, float]) -> Result[Proposal, LLMError]:
    """Accept a proposal, or refuse it with every problem."""
    errors = tuple(problems(proposal, current))
    return Failure(SchemaMismatch(problems=errors)) if errors else Success(proposal)


def changed(text: str, proposal: Proposal) -> str:
    """Apply the changes to their lines; comments and order are kept."""
    new_values: dict[str, float] = {change.setting: change.new for change in proposal.changes}
    lines, table = list[str](), ""
    for line in text.splitlines(keepends=True):
        table = line.strip("[]\n") if line.startswith("[") else table
        key = f"{table}.{line.partition(' =')[0]}"
        lines.append(f"{line.partition(' =')[0]} = {new_values[key]}\n" if key in new_values else line)
    return "".join(lines)


def question(instruction: str, text: str) -> LLMRequest:
    """Build the request for a proposal."""
    bounds = "\n".join(f"{name}: {least:g} to {most:g}" for name, (least, most) in BOUNDS.items())
    return LLMRequest(
        system=f"You change the configuration of a platform. It is now:\n{text}\nAllowed are:\n{bounds}",
        prompt=f"{instruction} Give the changes, with the old and the new value of each.",
        task_type=TaskType.CONFIG_MANAGEMENT,
        preferences=Preferences(max_tokens=800, temperature=0.0, seed=7),
    )


def proposed(request: LLMRequest, current: Mapping[str, float]) -> Effect[Proposal]:
    """Ask for a proposal, and check it."""
    answer = generate_as(request, Proposal).map(lambda typed: typed.value)
    return answer.bind_result(lambda proposal: checked_proposal(proposal, current))


def with_problems(request: LLMRequest, error: LLMError) -> LLMRequest | None:
    """Return the request with the problems of its proposal; ``None`` for other errors."""
    if not isinstance(error, SchemaMismatch) or error.raw:  # with a raw text, it was already retried
        return None
    return evolve(request, prompt=f"{request.prompt} Mind that {'; '.join(error.problems)}.")


def propose(instruction: str, text: str) -> Effect[Proposal]:
    """Ask for a proposal, and send its problems back once."""
    request, current = question(instruction, text), values(text)

    def again(error: LLMError) -> Effect[Proposal]:
        corrected = with_problems(request, error)
        return fail(error) if corrected is None else proposed(corrected, current)

    return rescue(proposed(request, current), again)


def outcome(text: str, result: Result[Proposal, LLMError]) -> Result[str, LLMError]:
    """Format an accepted change as a diff, or the reason of its refusal; no file is changed."""
    if is_successful(result):
        new = changed(text, result.unwrap())
        names = CONFIG.name, f"{CONFIG.name}, proposed"
        diff = difflib.unified_diff(text.splitlines(), new.splitlines(), *names, n=1, lineterm="")
        return Success("\n".join(("accepted:", *diff)))
    error = result.failure()
    return Success(f"refused: {describe(error)}") if isinstance(error, SchemaMismatch) else Failure(error)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Propose a change of the example's configuration, and show its result."""
    text = CONFIG.read_text(encoding="utf-8")
    return outcome(text, await run(propose(REQUEST, text), env))


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    result = anyio.run(live)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
