"""The effect type, the call, the environment and its services, combinators and schedules."""
