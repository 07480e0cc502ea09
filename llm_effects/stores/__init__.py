"""Stores behind the environment's Protocols: response caches, conversations, the ledger and limits."""
