"""Recorded traffic of all protocols: decoding in one pass gives what the tolerant readers give."""

import json
from pathlib import Path
from typing import Any

import pytest
from returns.pipeline import is_successful

from llm_effects.config.models import ModelConfig
from llm_effects.providers.registry import target_of
from llm_effects.providers.wire import WireResponse
from tests.fixtures.answers import KEY, Sample, fold, in_both_ways, plain_answer

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
PROVIDERS = {
    "openai_chat": "openai-chat",
    "openai_chat_stream": "openai-chat",
    "local_openai_compatible": "openai-compatible",
    "openai_responses": "openai-responses",
    "openai_responses_stream": "openai-responses",
    "anthropic_messages": "anthropic",
    "anthropic_messages_stream": "anthropic",
    "errors": "openai-chat",
}
LEAST_PLAIN = {"openai_chat": 12, "local_openai_compatible": 20, "openai_responses": 100, "anthropic_messages": 5}

Row = dict[str, Any]

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no recorded traffic at {CORPUS}")


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (CORPUS / f"{name}.jsonl").read_text("utf-8").splitlines() if line]


def requested_model(row: Row) -> str:
    body = row["request"].get("body")
    fields = json.loads(body) if isinstance(body, str) and body.startswith("{") else body
    return (fields.get("model") if isinstance(fields, dict) else None) or "some-model"


def sample_of(row: Row, provider: str) -> Sample:
    config = ModelConfig(provider=provider, model=requested_model(row), api_key=KEY, endpoint="http://localhost/v1")
    body = (row["response"]["body"] or "").encode()
    return Sample(row["id"], target_of("m", config).unwrap(), whole=body, stream=body)


@pytest.mark.parametrize(("name", "provider"), PROVIDERS.items())
def test_recorded_answers_are_read_the_same_in_one_pass(name: str, provider: str) -> None:
    plain = 0
    found = rows(name)
    for row in found:
        sample, sent = sample_of(row, provider), row["response"].get("headers") or {}
        headers = {key.lower(): str(value) for key, value in sent.items()}
        response = WireResponse(status=200, headers=headers, body=sample.whole)
        one, other = in_both_ways(sample.provider.decode, sample.target, response)
        assert one == other, row["id"]
        plain += plain_answer(sample, response) is not None
    print(plain, "of", len(found), "whole answers of", name, "are plain")
    assert plain >= LEAST_PLAIN.get(name, 0)


@pytest.mark.parametrize(("name", "provider"), PROVIDERS.items())
def test_recorded_streams_are_read_the_same_in_one_pass(name: str, provider: str) -> None:
    whole = 0
    for row in rows(name):
        if row.get("stream"):
            sample = sample_of(row, provider)
            one, other = in_both_ways(fold, sample, sample.events)
            assert one == other, row["id"]
            whole += is_successful(one[1])
    assert bool(whole) is ("stream" in name or "local" in name)
