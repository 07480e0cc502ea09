"""Limits and circuit breakers: of one process, or shared through a Redis server."""
