"""Stored conversations: ``converse`` and the operations beside it."""

from llm_effects.conversations.converse import converse as converse
from llm_effects.conversations.converse import open_converse as open_converse
from llm_effects.conversations.erasure import apply_retention as apply_retention
from llm_effects.conversations.erasure import erase_owner as erase_owner
from llm_effects.conversations.operations import append_messages as append_messages
from llm_effects.conversations.operations import delete_conversation as delete_conversation
from llm_effects.conversations.operations import export_conversation as export_conversation
from llm_effects.conversations.operations import fork_conversation as fork_conversation
from llm_effects.conversations.operations import import_conversation as import_conversation
from llm_effects.conversations.operations import list_conversations as list_conversations
from llm_effects.conversations.operations import load_conversation as load_conversation
from llm_effects.conversations.operations import search_conversations as search_conversations
from llm_effects.conversations.operations import start_conversation as start_conversation
