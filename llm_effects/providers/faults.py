"""Names that moved: they are in ``error_bodies`` now."""

from llm_effects.providers.error_bodies import filtered, request_id

__all__ = ["filtered", "request_id"]
