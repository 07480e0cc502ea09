"""All mutants, chosen from the code alone, before its tests were read."""

from tests.mutants.callers import CALLERS
from tests.mutants.decoders import DECODERS
from tests.mutants.layers import LAYERS
from tests.mutants.rules import RULES
from tests.mutants.staying import STAYING
from tests.mutants.stores import STORES

MUTANTS = (*LAYERS, *RULES, *STORES, *DECODERS, *CALLERS, *STAYING)
