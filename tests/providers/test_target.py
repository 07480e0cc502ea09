"""Targets: the headers that carry a key, and texts from servers without it."""

from llm_effects import ModelConfig
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import key_headers, redact

KEY = "tenant-7-key-123456"


def test_a_key_that_crosses_the_end_of_a_shown_text_is_masked_whole() -> None:
    gpt = target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key=KEY)).unwrap()
    for shown in range(1, len(KEY)):
        assert KEY[:6] not in redact(gpt, "x" * (500 - shown) + KEY + " is wrong", 500)


def test_a_configured_header_replaces_that_of_the_key() -> None:
    headers = {"Authorization": "Token other"}
    gpt = target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key=KEY, headers=headers)).unwrap()
    assert [(name, value.reveal()) for name, value in key_headers(gpt)] == [("authorization", "Token other")]
