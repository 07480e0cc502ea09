"""Generate a React component: the model returns a typed design, and its code is rendered and checked here."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, final

import anyio
from attrs import field, frozen
from attrs.validators import matches_re
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
    run,
)
from llm_effects.structured import Partial, stream_as

SCHEMA: Final = Path(__file__).parent / "data" / "service_status.json"
TYPES: Final = {"string": "string", "number": "number", "boolean": "boolean"}
ALLOWED_IMPORTS: Final = frozenset({"react"})

Display = Literal["plain", "milliseconds", "percent", "badge"]


@final
@frozen
class Design:
    """The model's decisions: the heading, the first field, and how each field is displayed."""

    heading: str = field(validator=matches_re(r"[A-Za-z0-9 ,.'-]{3,60}"))
    first_field: Literal["service", "p99_ms", "error_rate", "healthy"]
    service: Display
    p99_ms: Display
    error_rate: Display
    healthy: Display


CELLS: Final[dict[Display, str]] = {
    "plain": "{String(row.NAME)}",
    "milliseconds": "{String(row.NAME)} ms",
    "percent": "{(100 * Number(row.NAME)).toFixed(1)} %",
    "badge": '<span className="badge">{String(row.NAME)}</span>',
}


def render(fields: dict[str, str], design: Design) -> str:
    """Render the component: for any design it is well-formed and has the props of the data."""
    names = sorted(fields, key=lambda name: name != design.first_field)
    props = "\n".join(f"  {name}: {TYPES[kind]};" for name, kind in fields.items())
    heads = "\n".join(f"          <th>{name.replace('_', ' ')}</th>" for name in names)
    displays: dict[str, Display] = {name: getattr(design, name) for name in names}
    cells = "\n".join(
        f"            <td>{CELLS[display].replace('NAME', name)}</td>" for name, display in displays.items()
    )
    return f"""import React from "react";

interface Row {{
{props}
}}

export function ServiceStatus({{ rows }}: {{ rows: Row[] }}) {{
  return (
    <section>
      <h2>{design.heading.strip()}</h2>
      <table>
        <thead>
          <tr>
{heads}
          </tr>
        </thead>
        <tbody>
          {{rows.map((row) => (
          <tr key={{row.{names[0]}.toString()}}>
{cells}
          </tr>
          ))}}
        </tbody>
      </table>
    </section>
  );
}}
"""


def problems(code: str, fields: dict[str, str]) -> Iterator[str]:
    """List the problems of a component: its imports, its props, its structure."""
    for module in re.findall(r'^import .* from "(.*)";', code, re.MULTILINE):
        if module not in ALLOWED_IMPORTS:
            yield f"imports {module}"
    props = dict(re.findall(r"^  (\w+): (\w+);$", code, re.MULTILINE))
    if props != {name: TYPES[kind] for name, kind in fields.items()}:
        yield f"has the props {sorted(props)} instead of {sorted(fields)}"
    yield from (f"uses row.{name}, which is not a prop" for name in set(re.findall(r"row\.(\w+)", code)) - set(fields))
    open_tags: list[str] = []
    for closing, name in re.findall(r"<(/?)([a-z]\w*)[^<>]*>", code):
        if not closing:
            open_tags.append(name)
        elif not open_tags or open_tags.pop() != name:
            yield f"closes {name}, which is not open"
    yield from (f"leaves {name} open" for name in open_tags)
    if code.count("{") != code.count("}"):
        yield "has braces that do not match"


def checked_component(fields: dict[str, str], design: Design) -> Result[str, LLMError]:
    """Render the component and check it."""
    code = render(fields, design)
    errors = tuple(problems(code, fields))
    return Failure(SchemaMismatch(problems=errors, raw=code)) if errors else Success(code)


def preview(fields: dict[str, str], so_far: Partial[Design]) -> str:
    """Return a line of the table as far as its design is known: the heading, and how its columns look."""
    columns = (f"{name}: {so_far.get(name, str) or '...'}" for name in fields)
    return f"{so_far.get('heading', str) or '...'} | {' | '.join(columns)}"


def component(title: str, fields: dict[str, str], show: Callable[[str], object]) -> Effect[str]:
    """Ask for a design, ``show`` the component as it comes, and render it."""

    async def shown(so_far: Partial[Design]) -> None:
        show(preview(fields, so_far))

    listed = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
    request = LLMRequest(
        system="You design tables for the dashboards of an observability platform.",
        prompt=f"Design a table called '{title}' for rows with the fields {listed}.",
        task_type=TaskType.UI_GENERATION,
        preferences=Preferences(max_tokens=150, temperature=0.0, seed=7),
    )
    design = stream_as(request, Design, shown, growing=True).map(lambda answer: answer.value)
    return design.bind_result(lambda chosen: checked_component(fields, chosen))


def to_stderr(line: str) -> None:
    """Show a line beside the output."""
    print(line, file=sys.stderr)


async def main(env: LLMEnv, show: Callable[[str], object] = to_stderr) -> Result[str, LLMError]:
    """Read the schema, and generate a component for it."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return await run(component(schema["title"], schema["fields"], show), env)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    code = anyio.run(live)
    print(code.unwrap()) if is_successful(code) else sys.exit(describe(code.failure()))
