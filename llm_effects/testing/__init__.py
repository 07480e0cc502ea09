"""Fakes to test with: no network, no key, no waiting, the same answer every time."""

from llm_effects.testing.clocks import run_in_virtual_time as run_in_virtual_time
from llm_effects.testing.conformance import Check as Check
from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS as CONVERSATION_CHECKS
from llm_effects.testing.environments import scripted_env as scripted_env
from llm_effects.testing.scripts import Late as Late
from llm_effects.testing.scripts import Pieces as Pieces
from llm_effects.testing.scripts import Reply as Reply
from llm_effects.testing.scripts import Scripted as Scripted
from llm_effects.testing.scripts import answer as answer
from llm_effects.testing.scripts import calling as calling
from llm_effects.testing.scripts import failing as failing
from llm_effects.testing.scripts import scripted as scripted

__all__ = [
    "CONVERSATION_CHECKS",
    "Check",
    "Late",
    "Pieces",
    "Reply",
    "Scripted",
    "answer",
    "calling",
    "failing",
    "run_in_virtual_time",
    "scripted",
    "scripted_env",
]
