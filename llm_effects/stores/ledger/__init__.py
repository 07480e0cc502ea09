"""Ledgers: memory, SQLite and Postgres."""
