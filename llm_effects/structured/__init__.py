"""Structured output: ``generate_as``, schemas and decoders."""

from llm_effects.structured.typed_answers import Structured as Structured
from llm_effects.structured.typed_answers import generate_as as generate_as
