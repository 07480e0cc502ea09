"""Model clients: the HTTP exchange, the in-process engine, health checks."""
