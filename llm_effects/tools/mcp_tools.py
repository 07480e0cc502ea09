"""The tools and results of an MCP server as values: names that every provider accepts, schemas checked, texts plain."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, final

from attrs import field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.structured.decoding import Problems
from llm_effects.tools.schema_checks import SchemaCheck, accepted_schema, plain, shortened
from llm_effects.tools.signatures import Arguments, read_any_object
from llm_effects.values import caps
from llm_effects.values.json import dump
from llm_effects.values.requests import Tool
from llm_effects.values.validation import printable

if TYPE_CHECKING:
    import mcp_types as wire

MOST_TOOLS: Final = 256
"""Most tools of one server: no provider takes more in one request."""

DESCRIPTION_CHARACTERS: Final = 4096
"""Most characters of a tool's description that a model sees."""

_NAME_CHARACTERS: Final = 64


@final
@frozen(kw_only=True)
class McpTool:
    """A tool of a server: as a model sees it, its ``name`` at the server, and what the server hints about it.

    A hint is ``None`` where the server gave none. Hints are claims: a tool that is ``read_only`` may still write.
    """

    tool: Tool
    name: str
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    output_schema: Mapping[str, object] | None = field(default=None, repr=False)


@final
@frozen
class McpListing:
    """The tools of a server, and its ``problems``: what was left out, and why."""

    tools: tuple[McpTool, ...] = ()
    problems: tuple[str, ...] = ()


# The tools of a list.


def listed_tools(prefix: str, tools: Iterable[wire.Tool], masks: tuple[str, ...] = ()) -> McpListing:
    """Return the tools that a model may see, and why others are left out."""
    found: dict[str, tuple[wire.Tool, dict[str, object]]] = {}
    problems: list[str] = []
    for each in tools:
        schema = accepted_schema(each.input_schema, masks)
        if not is_successful(schema):
            problems.append(_left_out(each, schema.failure()))
        elif each.name in found:
            problems.append(_left_out(each, "it is listed twice"))
        elif not 0 < len(each.name) <= caps.NAME_CHARACTERS:
            problems.append(_left_out(each, "its name is empty or too long"))
        else:
            found[each.name] = each, schema.unwrap()
    names = names_for(prefix, found)
    kept = (_tool(names[name], each, schema, masks) for name, (each, schema) in found.items())
    return McpListing(tuple(kept), tuple(problems))


def _left_out(tool: wire.Tool, problem: str) -> str:
    return f"{shortened(printable(tool.name), _NAME_CHARACTERS)} is left out: {problem}"


def _tool(name: str, tool: wire.Tool, schema: Mapping[str, object], masks: tuple[str, ...]) -> McpTool:
    import mcp_types as wire

    hints = tool.annotations or wire.ToolAnnotations()
    description = plain(tool.description or tool.title or "", masks)
    return McpTool(
        tool=Tool(name, shortened(description, DESCRIPTION_CHARACTERS), schema),
        name=tool.name,
        read_only=hints.read_only_hint,
        destructive=hints.destructive_hint,
        idempotent=hints.idempotent_hint,
        open_world=hints.open_world_hint,
        output_schema=tool.output_schema,
    )


def names_for(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Return a name for each tool that every provider accepts, all different; a digest marks those that were cut.

    >>> names_for("web", ["search", "read.page", "read/page"])
    {'search': 'web_search', 'read.page': 'web_read_page_4b0560', 'read/page': 'web_read_page_94449e'}
    """
    simple = {name: re.sub(r"[^a-zA-Z0-9_-]", "_", f"{prefix}_{name}") for name in names}
    count = Counter(simple.values())
    return {
        name: short if count[short] == 1 and len(short) <= _NAME_CHARACTERS else _marked(short, name)
        for name, short in simple.items()
    }


def _marked(short: str, name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:6]
    return f"{short[: _NAME_CHARACTERS - 7]}_{digest}"


def read_arguments(check: SchemaCheck, arguments: str) -> Result[Arguments, Problems]:
    """Read the arguments of a call, and check them against the schema before the server does."""
    read = read_any_object(arguments)
    if not is_successful(read):
        return read
    problems = check.problems(read.unwrap()["arguments"])
    return Failure(problems) if problems else read


# The result of a call.


def problems_of(tool: McpTool, answer: wire.CallToolResult) -> str:
    """Return how a result differs from what the tool promises; empty if it does not."""
    if tool.output_schema is None:
        return ""
    if answer.structured_content is None:
        return "it has no structured content"
    schema = accepted_schema(tool.output_schema)
    return "; ".join(SchemaCheck(schema.unwrap()).problems(answer.structured_content)) if is_successful(schema) else ""


def text_of_result(answer: wire.CallToolResult, masks: tuple[str, ...]) -> str:
    """Return a result as the text that a model sees: whatever is no text is named."""
    blocks = [*map(_block_text, answer.content[: caps.PARTS])]
    if not blocks and answer.structured_content is not None:
        blocks.append(dump(answer.structured_content).decode())
    return plain("\n".join(blocks), masks)


def _block_text(block: wire.ContentBlock) -> str:
    import mcp_types as wire

    match block:
        case wire.TextContent():
            return block.text
        case wire.ImageContent() | wire.AudioContent():
            return f"[{block.type} of type {_short(block.mime_type)} is left out: {len(block.data) * 3 // 4} bytes]"
        case wire.ResourceLink():
            return f"[resource {_short(block.name)} at {_short(block.uri)}]"
        case wire.EmbeddedResource(resource=wire.TextResourceContents() as found):
            return f"[resource {_short(found.uri)}]\n{found.text}"
        case wire.EmbeddedResource(resource=found):
            return f"[resource {_short(found.uri)} is left out: it is no text]"


def _short(text: str) -> str:
    return shortened(printable(text), caps.NAME_CHARACTERS)
