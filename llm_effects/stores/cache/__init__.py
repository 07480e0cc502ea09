"""Response caches: memory, SQLite and Redis."""
