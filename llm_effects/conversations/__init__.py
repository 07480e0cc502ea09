"""Stored conversations: ``converse`` and the operations beside it."""
