"""Frozen values: requests, messages, responses, events and errors. They import nothing above."""
