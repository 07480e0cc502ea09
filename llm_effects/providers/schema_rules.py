"""What each protocol takes of JSON Schema, as rows of data.

Sources: OpenAI, "Structured Outputs: supported schemas"; Anthropic, "Structured outputs: JSON Schema limitations";
llama.cpp, ``grammars/README.md`` and its converter. Read in September 2026.
"""

import re
from collections.abc import Mapping
from typing import Final, final

from attrs import field, frozen

_ANNOTATIONS: Final = frozenset({"type", "enum", "const", "description", "anyOf", "$ref", "$defs"})
_OBJECTS: Final = frozenset({"properties", "required", "additionalProperties"})
_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)  # fmt: skip


@final
@frozen(kw_only=True)
class Rules:
    """What a protocol takes.

    ``keywords`` are kept, all others become words in the description. ``formats`` are the known ones of texts;
    ``None`` is any. ``most`` caps keywords that are numbers. ``closed`` says that an object must name all that it
    may hold, and hold all of it; ``recursive`` that a schema may hold itself. The limits are numbers of their kind
    in a whole schema: ``None`` is no limit.
    """

    name: str
    keywords: frozenset[str]
    formats: frozenset[str] | None = None
    patterns: re.Pattern[str] | None = None
    most: Mapping[str, float] = field(factory=dict[str, float])
    closed: bool = True
    recursive: bool = True
    properties: int | None = None
    levels: int | None = None
    choices: int | None = None
    optional: int | None = None
    unions: int | None = None


_NO_LOOKING_AROUND: Final = re.compile(r"(?!.*\(\?(?:[=!]|<[=!])).*", re.DOTALL)
_PLAIN: Final = re.compile(r"\^(?!.*(?:\(\?|\\[A-Za-z0-9]|\^|\$.)).*\$", re.DOTALL)
"""Anchored at both ends only, without classes by name, sets of what may not be, and groups of a special kind."""

OPENAI: Final = Rules(
    name="OpenAI's strict mode",
    keywords=_ANNOTATIONS | _OBJECTS | _NUMBERS | {"items", "minItems", "maxItems", "pattern", "format"},
    formats=_FORMATS,
    patterns=_NO_LOOKING_AROUND,
    properties=5000,
    levels=10,
    choices=1000,
)
"""Chat completions and Responses with ``strict``; without it a schema is a mere hint."""

ANTHROPIC: Final = Rules(
    name="Anthropic's structured output",
    keywords=_ANNOTATIONS | _OBJECTS | {"items", "minItems", "format"},
    formats=_FORMATS | {"uri"},
    most={"minItems": 1},
    recursive=False,
    optional=24,
    unions=16,
)
"""``output_config.format``, where a schema is enforced or refused."""

GRAMMAR: Final = Rules(
    name="llama.cpp's grammar",
    keywords=_ANNOTATIONS
    | _OBJECTS
    | _NUMBERS
    | {"items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "oneOf", "allOf"},
    patterns=_PLAIN,
    most={"minItems": 100, "maxItems": 100, "minLength": 500, "maxLength": 500},
    closed=False,
)
"""Local engines: each repetition is written out in the grammar, so large counts break or slow it."""
