"""Structured output: ``generate_as``, schemas and decoders."""
