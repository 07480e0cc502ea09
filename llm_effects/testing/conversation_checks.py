"""All checks for stores of conversations."""

from typing import Final

from llm_effects.testing.conformance import Check
from llm_effects.testing.conformance_records import RECORD_CHECKS
from llm_effects.testing.conformance_tenancy import TENANCY_CHECKS
from llm_effects.testing.conformance_turns import TURN_CHECKS

CONVERSATION_CHECKS: Final[tuple[Check, ...]] = (*TURN_CHECKS, *RECORD_CHECKS, *TENANCY_CHECKS)
"""What each store of conversations must do: run every one of them on yours, under asyncio and under trio.

>>> import anyio
>>> from llm_effects.stores.conversations_memory import MemoryConversations
>>> for check in CONVERSATION_CHECKS:
...     anyio.run(check, MemoryConversations())
"""
