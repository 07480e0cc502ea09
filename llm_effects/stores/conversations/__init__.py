"""Conversation stores: memory, SQLite and Postgres."""
