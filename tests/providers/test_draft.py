"""Pictures, documents and citations: in each provider's form, there and back."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve

from llm_effects import (
    Document,
    Image,
    LLMConfig,
    LLMRequest,
    Message,
    ModelConfig,
    Text,
    explain,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import Capabilities
from llm_effects.effects.files import read_document, read_image
from llm_effects.providers.draft import Draft
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.wire import WireResponse
from llm_effects.testing import answer
from llm_effects.values import Citation, Part
from llm_effects.values.serialization import Entry, dump_entry, load_entry

PDF = b"%PDF-1.7 << /Type /Page >>"
GIF = b"GIF89a" + bytes((3, 0, 4, 0))

CLAUDE = ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")
GPT = ModelConfig(provider="openai", model="gpt-6-luna", api_key="k")
CHAT = ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="k")
RESPONSES = ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="k")
STUDIO = ModelConfig(provider="lm-studio")
HERE = ModelConfig(provider="llama", model_path="m.gguf")


def asked(*parts: Part) -> LLMRequest:
    return LLMRequest(messages=(Message("user", parts),))


def sent(model: ModelConfig, *parts: Part) -> Any:
    target, request = target_of("m", model).unwrap(), asked(*parts)
    body: Mapping[str, Any] = json.loads(provider_of(target, request).encode(target, request, False).unwrap().body)
    return (body.get("messages") or body["input"])[-1]["content"]


REPORT = Document(PDF, title="Report", cite=True)
LOG = Document(b"disk: 97 %", "text/plain", title="df")


def test_anthropic_takes_documents_and_may_be_asked_to_cite_them() -> None:
    pdf, log = sent(CLAUDE, REPORT, LOG)
    assert pdf["source"]["type"] == "base64"
    assert (pdf["title"], pdf["citations"]) == ("Report", {"enabled": True})
    assert log["source"] == {"type": "text", "media_type": "text/plain", "data": "disk: 97 %"}
    assert "citations" not in log
    (there,) = sent(CLAUDE, Document(url="https://a.example/x.pdf"))
    assert there["source"] == {"type": "url", "url": "https://a.example/x.pdf"}


def test_openai_takes_documents_as_files() -> None:
    (chat,) = sent(CHAT, REPORT)
    assert chat["file"]["filename"] == "Report.pdf"
    assert chat["file"]["file_data"].startswith("data:application/pdf;base64,")
    (item,) = sent(RESPONSES, REPORT)
    assert (item["type"], item["filename"]) == ("input_file", "Report.pdf")


def test_a_document_at_a_url_is_asked_about_where_it_is_fetched() -> None:
    assert sent(GPT, Document(url="https://a.example/x.pdf")) == [
        {"type": "input_file", "file_url": "https://a.example/x.pdf"}
    ]


@pytest.mark.parametrize("model", [CHAT, RESPONSES, STUDIO, HERE])
def test_plain_text_is_read_out_to_whoever_takes_no_such_documents(model: ModelConfig) -> None:
    assert sent(model, LOG, Text("why?")) == "df:\n\ndisk: 97 %\n\nwhy?"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "part", "reason"),
    [
        (STUDIO, REPORT, "it does not take documents except plain text"),
        (HERE, Image(GIF), "it does not take images"),
        (CLAUDE, Image(b"BM", "image/bmp"), "it does not take image/bmp"),
        (CLAUDE, Document(b"PK", "application/msword"), "it does not take application/msword"),
        (CLAUDE, Image(GIF + bytes(4 * 2**20)), "image/gif of 5592420 bytes, as sent, is more than its 5242880"),
        (CHAT, Document(url="https://a.example/x.pdf"), "it does not fetch documents"),
    ],
)
async def test_what_a_model_cannot_be_shown_goes_to_another(model: ModelConfig, part: Part, reason: str) -> None:
    fetching = isinstance(part, Document) and part.url
    other = GPT if fetching else ModelConfig(provider="openai-compatible", model="x", endpoint="https://a.example/v1")
    env = scripted_env("seen", config=LLMConfig(models={"blind": model, "other": other}))
    decision = (await run(explain(asked(part)), env)).unwrap()
    assert [(each.model, each.reason) for each in decision.excluded] == [("blind", reason)]
    assert (await run(generate(asked(part)), env)).unwrap().model == "other"


@pytest.mark.anyio
async def test_a_picture_that_nobody_takes_says_why() -> None:
    env = scripted_env(config=LLMConfig(models={"here": HERE}))
    error = (await run(generate(asked(Image(GIF))), env)).failure()
    assert error.tag == "InvalidRequest"
    assert "here: it does not take images" in error.message  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_model_with_a_projector_can_be_said_to_see() -> None:
    seeing = ModelConfig(provider="llama", model_path="m.gguf", capabilities=Capabilities(images=True))
    fetching = Image(url="https://a.example/x.png")
    env = scripted_env("seen", config=LLMConfig(models={"here": seeing}))
    assert (await run(generate(asked(Image(GIF))), env)).unwrap().content == "seen"
    error = (await run(generate(asked(fetching)), env)).failure()
    assert "it does not fetch URLs" in error.message  # type: ignore[union-attr]


def read(model: ModelConfig, body: object) -> tuple[Part, ...]:
    target = target_of("m", model).unwrap()
    told = WireResponse(status=200, body=json.dumps(body).encode())
    return provider_of(target).decode(target, told).unwrap().parts


def test_anthropic_cites_block_by_block() -> None:
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


def test_anthropic_cites_in_a_stream_too() -> None:
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


def test_responses_cite_by_annotations() -> None:
    site = {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://a.example", "title": "A"}
    file = {"type": "file_citation", "file_id": "f", "filename": "a.pdf", "index": 4}
    path = {"type": "file_path", "file_id": "f", "index": 0}
    said = [
        {"type": "output_text", "text": "One. ", "annotations": [site]},
        {"type": "output_text", "text": "Two!!", "annotations": [file, path]},
    ]
    body = {"status": "completed", "output": [{"type": "message", "id": "a", "content": said}]}
    (text,) = read(RESPONSES, body)
    assert isinstance(text, Text)
    assert [(each.start, each.end, each.title) for each in text.citations] == [(0, 3, "A"), (9, 9, "a.pdf")]


def test_chat_completions_cite_by_annotations_or_a_plain_list() -> None:
    site = {"type": "url_citation", "url_citation": {"start_index": 1, "end_index": 99, "url": "https://a.example"}}
    message = {"role": "assistant", "content": "hello", "annotations": [site]}
    (text,) = read(CHAT, {"choices": [{"message": message, "finish_reason": "stop"}]})
    assert isinstance(text, Text)
    assert [(each.start, each.end, each.url) for each in text.citations] == [(1, 5, "https://a.example")]
    told = {"citations": ["https://b.example"], "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    (listed,) = read(CHAT, told)
    assert isinstance(listed, Text)
    assert [(each.start, each.end, each.url) for each in listed.citations] == [(0, 2, "https://b.example")]


@pytest.mark.parametrize("model", [CLAUDE, CHAT, RESPONSES])
def test_citations_are_not_sent_back(model: ModelConfig) -> None:
    said = Message("assistant", (Text("green", (Citation(start=0, end=5, quote="q"),)),))
    target = target_of("m", model).unwrap()
    request = LLMRequest(messages=(Message("user", "why?"), said, Message("user", "sure?")))
    assert b"citation" not in provider_of(target, request).encode(target, request, False).unwrap().body


def test_citations_are_kept_in_the_cache() -> None:
    said = Text("green", (Citation(start=0, end=5, quote="q", url="https://a.example", document=0, source="{}"),))
    entry = Entry(response=evolve(answer("green"), parts=(said,)))
    assert load_entry(dump_entry(entry)) == entry


@pytest.mark.anyio
async def test_files_are_read(tmp_path: Any) -> None:
    env = scripted_env()
    (tmp_path / "a.bin").write_bytes(GIF)
    (tmp_path / "notes.md").write_text("# Disks")
    (tmp_path / "odd.pdf").write_bytes(b"BM")
    image = (await run(read_image(tmp_path / "a.bin"), env)).unwrap()
    assert image.media_type == "image/gif"
    notes = (await run(read_document(tmp_path / "notes.md"), env)).unwrap()
    assert (notes.title, notes.media_type, notes.text) == ("notes.md", "text/markdown", "# Disks")
    for broken in (read_image(tmp_path), read_image(tmp_path / "notes"), read_image("\0")):
        assert (await run(broken, env)).failure().tag == "InvalidRequest"
