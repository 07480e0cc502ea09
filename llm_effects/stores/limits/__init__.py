"""Limiters and circuit breakers: memory and Redis."""
