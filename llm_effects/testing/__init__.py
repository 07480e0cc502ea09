"""Test doubles: no network, no key, no waiting, and the same answer every time.

Every name is loaded when it is first used, so that the pytest plugin costs the tests of other packages nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS as CONVERSATION_CHECKS
    from llm_effects.testing.conversation_checks import Check as Check
    from llm_effects.testing.layer_checks import LAYER_CHECKS as LAYER_CHECKS
    from llm_effects.testing.layer_checks import LayerCheck as LayerCheck
    from llm_effects.testing.recordings import Mode as Mode
    from llm_effects.testing.recordings import Recording as Recording
    from llm_effects.testing.recordings import recorded as recorded
    from llm_effects.testing.scripted import Chunks as Chunks
    from llm_effects.testing.scripted import Delayed as Delayed
    from llm_effects.testing.scripted import Reply as Reply
    from llm_effects.testing.scripted import Scripted as Scripted
    from llm_effects.testing.scripted import answer as answer
    from llm_effects.testing.scripted import calling as calling
    from llm_effects.testing.scripted import failing as failing
    from llm_effects.testing.scripted import scripted as scripted
    from llm_effects.testing.scripted import scripted_env as scripted_env
    from llm_effects.testing.store_checks import CACHE_CHECKS as CACHE_CHECKS
    from llm_effects.testing.store_checks import LEDGER_CHECKS as LEDGER_CHECKS
    from llm_effects.testing.store_checks import LIMITS_CHECKS as LIMITS_CHECKS
    from llm_effects.testing.store_checks import CacheCheck as CacheCheck
    from llm_effects.testing.store_checks import LedgerCheck as LedgerCheck
    from llm_effects.testing.store_checks import LimitsCheck as LimitsCheck
    from llm_effects.testing.virtual_time import Backend as Backend
    from llm_effects.testing.virtual_time import run_in_virtual_time as run_in_virtual_time

_HOMES = {
    "conversation_checks": "CONVERSATION_CHECKS Check",
    "layer_checks": "LAYER_CHECKS LayerCheck",
    "recordings": "Mode Recording recorded",
    "scripted": "Chunks Delayed Reply Scripted answer calling failing scripted scripted_env",
    "store_checks": "CACHE_CHECKS LEDGER_CHECKS LIMITS_CHECKS CacheCheck LedgerCheck LimitsCheck",
    "virtual_time": "Backend run_in_virtual_time",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


class _Room(ModuleType):
    """A module that loads its names; ``scripted`` is the function, where Python itself would put the submodule."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME})

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            msg = f"module {self.__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(import_module(f"{self.__name__}.{_HOME[name]}"), name)

    @property
    def scripted(self) -> object:
        return self.__getattr__("scripted")

    @scripted.setter
    def scripted(self, _: ModuleType) -> None:
        """Ignore the submodule."""


sys.modules[__name__].__class__ = _Room
