"""Pure rules: quotas, circuit breakers and budgets."""

from llm_effects.limits.budgets import Account as Account
from llm_effects.limits.budgets import Hold as Hold
