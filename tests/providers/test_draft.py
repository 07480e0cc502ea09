"""Drafts of answers: the citations of every protocol."""

import json

import pytest
from attrs import evolve

from llm_effects import LLMRequest, Message, ModelConfig, Text
from llm_effects.providers.draft import Draft, PartDraft, complete, grow, response_of, split_thinking
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.wire import WireResponse
from llm_effects.testing import answer
from llm_effects.values import Citation, FinishReason, Part, TextDelta
from llm_effects.values.serialization import Entry, dump_entry, load_entry

CLAUDE = ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")
CHAT = ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="k")
RESPONSES = ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="k")


def read(model: ModelConfig, body: object) -> tuple[Part, ...]:
    target = target_of("m", model).unwrap()
    response = WireResponse(status=200, body=json.dumps(body).encode())
    return provider_of(target).decode(target, response).unwrap().parts


def test_anthropic_citations_cover_their_block() -> None:
    cited = {"type": "char_location", "cited_text": "grass is green", "document_index": 1, "document_title": "Colours"}
    blocks = [
        {"type": "text", "text": "Well, "},
        {"type": "text", "text": "it is green", "citations": [cited]},
        {"type": "text", "text": "."},
    ]
    message = {"type": "message", "role": "assistant", "stop_reason": "end_turn", "content": blocks, "usage": {}}
    (text,) = read(CLAUDE, message)
    assert isinstance(text, Text)
    (citation,) = text.citations
    assert text.text[citation.start : citation.end] == "it is green"
    assert (citation.quote, citation.title, citation.document) == ("grass is green", "Colours", 1)
    assert json.loads(citation.source) == cited


def test_anthropic_citations_are_streamed() -> None:
    target = target_of("m", CLAUDE).unwrap()
    provider, draft = provider_of(target), Draft(target=target)
    events: tuple[dict[str, object], ...] = (
        {"type": "message_start", "message": {"usage": {}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "So: "}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "", "citations": []}},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "citations_delta", "citation": {"url": "https://a.example", "cited_text": "q"}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "green"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    )
    for event in events:
        provider.decode_event(draft, ServerEvent("", json.dumps(event))).unwrap()
    (text,) = provider.finish(draft).unwrap().parts
    assert isinstance(text, Text)
    assert text.text == "So: green"
    assert [(each.start, each.end, each.url) for each in text.citations] == [(4, 9, "https://a.example")]


def test_responses_annotations_become_citations() -> None:
    site = {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example", "title": "A"}
    file = {"type": "file_citation", "file_id": "f", "filename": "a.pdf", "index": 4}
    path = {"type": "file_path", "file_id": "f", "index": 0}
    blocks = [
        {"type": "output_text", "text": "One. ", "annotations": [site]},
        {"type": "output_text", "text": "Two!!", "annotations": [file, path]},
    ]
    body = {"status": "completed", "output": [{"type": "message", "id": "a", "content": blocks}]}
    (text,) = read(RESPONSES, body)
    assert isinstance(text, Text)
    assert [(each.start, each.end, each.title) for each in text.citations] == [(0, 3, "A"), (9, 9, "a.pdf")]


def test_chat_annotations_and_source_lists_become_citations() -> None:
    site = {"type": "url_citation", "url_citation": {"start_index": 1, "end_index": 99, "url": "https://a.example"}}
    message = {"role": "assistant", "content": "hello", "annotations": [site]}
    (text,) = read(CHAT, {"choices": [{"message": message, "finish_reason": "stop"}]})
    assert isinstance(text, Text)
    assert [(each.start, each.end, each.url) for each in text.citations] == [(1, 5, "https://a.example")]
    body = {"citations": ["https://b.example"], "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    (listed,) = read(CHAT, body)
    assert isinstance(listed, Text)
    assert [(each.start, each.end, each.url) for each in listed.citations] == [(0, 2, "https://b.example")]


@pytest.mark.parametrize("model", [CLAUDE, CHAT, RESPONSES])
def test_citations_are_not_sent_back(model: ModelConfig) -> None:
    cited = Message("assistant", (Text("green", (Citation(start=0, end=5, quote="q"),)),))
    target = target_of("m", model).unwrap()
    request = LLMRequest(messages=(Message("user", "why?"), cited, Message("user", "sure?")))
    assert b"citation" not in provider_of(target, request).encode(target, request, False).unwrap().body


def test_citations_survive_serialization() -> None:
    cited = Text("green", (Citation(start=0, end=5, quote="q", url="https://a.example", document=0, source="{}"),))
    entry = Entry(response=evolve(answer("green"), parts=(cited,)))
    assert load_entry(dump_entry(entry)) == entry


def test_the_complete_text_sends_only_what_was_not_streamed() -> None:
    draft = Draft(target=target_of("m", RESPONSES).unwrap())
    part = draft.open(PartDraft(kind="text"))
    grow(part, "because ")
    assert complete(draft, part, "because of") == (TextDelta("of"),)
    assert complete(draft, part, "because of") == ()
    assert draft.text == "because of"


def test_a_closing_tag_that_is_cut_in_two_is_not_shown() -> None:
    draft = Draft(target=target_of("m", CHAT).unwrap())
    pieces = [*split_thinking(draft, "<think>hm</th"), *split_thinking(draft, "ink>yes")]
    assert pieces == [("reasoning", "hm"), ("text", "yes")]


def test_an_answer_repeats_no_key() -> None:
    draft = Draft(target=target_of("m", evolve(CHAT, api_key="tenant-7-key")).unwrap(), finish_reason=FinishReason.STOP)
    grow(draft.open(PartDraft(kind="text")), "it is tenant-7-key")
    response = response_of(draft).unwrap()
    assert response.content == response.parts[0].text == "it is ************"  # type: ignore[union-attr]
