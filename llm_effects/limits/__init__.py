"""Pure rules: quotas, circuit breakers and budgets."""
