"""Structured output: ``generate_as``, schemas and decoders."""

from llm_effects.structured.partial_answers import Partial as Partial
from llm_effects.structured.partial_answers import open_stream_as as open_stream_as
from llm_effects.structured.partial_answers import stream_as as stream_as
from llm_effects.structured.typed_answers import Structured as Structured
from llm_effects.structured.typed_answers import generate_as as generate_as
