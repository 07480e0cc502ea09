"""Test doubles: no network, no key, no waiting, and the same answer every time."""

from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS as CONVERSATION_CHECKS
from llm_effects.testing.conversation_checks import Check as Check
from llm_effects.testing.scripted import Chunks as Chunks
from llm_effects.testing.scripted import Delayed as Delayed
from llm_effects.testing.scripted import Reply as Reply
from llm_effects.testing.scripted import Scripted as Scripted
from llm_effects.testing.scripted import answer as answer
from llm_effects.testing.scripted import calling as calling
from llm_effects.testing.scripted import failing as failing
from llm_effects.testing.scripted import scripted as scripted
from llm_effects.testing.scripted import scripted_env as scripted_env
from llm_effects.testing.virtual_time import run_in_virtual_time as run_in_virtual_time
