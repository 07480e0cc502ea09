"""Mutants of the protocols: encoders, decoders, errors, headers and the masking of keys."""

from tests.mutants.mutant import Mutant, of

anthropic = of("providers/anthropic.py", "providers/test_anthropic_answers.py")
claude_encoder = of("providers/anthropic.py", "providers/test_anthropic.py")
chat = of("providers/openai_chat.py", "providers/test_openai_chat_stream.py")
output = of("providers/openai_responses.py", "providers/test_openai_responses_answers.py")
plain = of("providers/plain_answers.py", "providers/test_plain_answers.py")
draft = of("providers/draft.py", "providers/test_draft.py")
sse = of("providers/sse.py", "providers/test_sse.py")
mapping = of("providers/error_mapping.py", "providers/test_error_mapping.py")
headers = of("providers/response_headers.py", "providers/test_response_headers.py")
encoding = of("providers/message_encoding.py", "providers/test_message_encoding.py")
target = of("providers/target.py", "providers/test_target.py")

DECODERS: tuple[Mutant, ...] = (
    anthropic(
        "anthropic-takes-a-cut-stream-for-whole", "    if not draft.done:\n        draft.finish_reason = None\n", ""
    ),
    anthropic("anthropic-splices-two-answers", "if draft.parts:  # a proxy", "if False:  # a proxy"),
    anthropic("anthropic-drops-the-signature", "        part.signature.append(piece)\n", "        pass\n"),
    anthropic(
        "anthropic-takes-a-truncated-answer-for-whole",
        '"max_tokens": FinishReason.LENGTH,',
        '"max_tokens": FinishReason.STOP,',
    ),
    anthropic("anthropic-takes-a-refusal-for-an-answer", 'if reason == "refusal":', "if False:"),
    anthropic(
        "anthropic-decodes-events-after-the-end",
        'if draft.done or event.data == "[DONE]" or',
        'if event.data == "[DONE]" or',
    ),
    claude_encoder(
        "anthropic-puts-results-after-text",
        'lambda block: not (isinstance(block, Mapping) and block.get("type") == "tool_result")',
        "lambda block: 0",
    ),
    claude_encoder(
        "anthropic-loses-system-messages", "filter(None, (request.system, *texts))", "filter(None, (request.system,))"
    ),
    claude_encoder("anthropic-sends-thinking-of-another-model", " or not is_same_model(part.origin, target):", ":"),
    chat(
        "chat-mixes-calls-of-two-indexes",
        "current = _last_call(draft) if index is None else draft.slots.get(index)",
        "current = _last_call(draft)",
    ),
    chat(
        "chat-takes-a-cut-stream-for-whole",
        "if draft.finish_reason is None and draft.done and draft.usage.output_tokens is not None and draft.parts:",
        "if draft.finish_reason is None and draft.parts:",
    ),
    chat("chat-ignores-a-breakdown", 'if choice.get("error") or reason in _BREAKDOWNS:', 'if choice.get("error"):'),
    chat("chat-loses-a-refusal", "        refuse(draft, refusal)\n", "        pass\n"),
    chat(
        "chat-loses-that-tools-are-called",
        "        draft.finish_reason = FinishReason.TOOL_CALLS\n    _seal",
        "        pass\n    _seal",
    ),
    output(
        "responses-decode-events-after-the-end",
        "if draft.done or event.data.startswith(_DONE):",
        "if event.data.startswith(_DONE):",
    ),
    output(
        "responses-take-an-incomplete-answer-for-whole",
        'FinishReason.LENGTH if status == "incomplete" else FinishReason.STOP',
        "FinishReason.STOP",
    ),
    output("responses-run-calls-of-the-server", " and runs_at_server(draft, name):", " and False:"),
    output("responses-take-a-failed-answer-for-whole", 'if status == "failed" or response.get("error"):', "if False:"),
    plain(
        "plain-answers-swap-input-and-output",
        "prompt, output = _first_count(_PROMPT, usage), _first_count(_OUTPUT, usage)",
        "output, prompt = _first_count(_PROMPT, usage), _first_count(_OUTPUT, usage)",
    ),
    plain(
        "plain-answers-count-cached-tokens-twice",
        "input_tokens=None if prompt is None else prompt - read - written,",
        "input_tokens=prompt,",
    ),
    plain(
        "plain-answers-swap-claudes-counts",
        '_latest(before.input_tokens, counts.get("input_tokens"))',
        '_latest(before.input_tokens, counts.get("output_tokens"))',
    ),
    plain(
        "plain-answers-take-a-truncated-answer-for-whole",
        '    "max_tokens": FinishReason.LENGTH,\n    "tool_calls"',
        '    "max_tokens": FinishReason.STOP,\n    "tool_calls"',
    ),
    plain(
        "plain-answers-hide-that-another-model-answered",
        "(_Completion, response.body)\n    if answer is None or _other_model(target, answer.model):",
        "(_Completion, response.body)\n    if answer is None:",
    ),
    draft("draft-repeats-streamed-text", "return delta_of(part, text[len(streamed) :])", "return delta_of(part, text)"),
    draft(
        "draft-leaks-half-a-closing-tag",
        "return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)",
        "return 0",
    ),
    draft(
        "draft-loses-held-text",
        "    return add_pieces(draft, pieces)\n\n\ndef _release",
        "    return ()\n\n\ndef _release",
    ),
    draft("draft-keeps-keys-in-answers", "return hide_keys(draft.target, draft.text)", "return draft.text"),
    draft("draft-accepts-an-empty-answer", "if not parts and not draft.usage.output_tokens:", "if False:"),
    sse(
        "sse-splits-an-event-between-cr-and-lf",
        'rest = chunk[1:] if self._after_cr and chunk.startswith(b"\\n") else chunk',
        "rest = chunk",
    ),
    sse("sse-loses-the-last-event", 'return self.feed(b"\\n\\n")', "return []"),
    sse("sse-joins-lines-without-a-line-end", 'b"\\n".join(self._data)', 'b"".join(self._data)'),
    sse(
        "sse-reads-events-of-any-size",
        "        if self._size > self.limit:\n            return self._too_large()\n        try:",
        "        try:",
    ),
    mapping(
        "mapping-retries-without-money",
        "_Row(build=quota_exhausted, statuses=frozenset({402}))",
        "_Row(build=rate_limited, statuses=frozenset({402}))",
    ),
    mapping(
        "mapping-blames-the-request-for-5xx",
        "_Row(build=overloaded, statuses=range(500, 600))",
        "_Row(build=invalid_request, statuses=range(500, 600))",
    ),
    mapping(
        "mapping-misses-prompts-that-are-too-long",
        "(*_CODES, *_TOO_LONG, *_WORDS, *_STATUSES)",
        "(*_CODES, *_WORDS, *_STATUSES)",
    ),
    mapping(
        "mapping-swaps-tokens-and-limit",
        'tokens if tokens is not None else _sum(groups.get("count"), groups.get("more"))',
        'tokens if tokens is not None else _sum(groups.get("limit"))',
    ),
    headers(
        "headers-read-milliseconds-as-seconds",
        'yield number(_value(headers, "retry-after-ms")) / 1000',
        'yield number(_value(headers, "retry-after-ms"))',
    ),
    headers(
        "headers-have-no-cap-on-retry-after", "next((min(hint, caps.PAUSE_S) for hint in", "next((hint for hint in"
    ),
    headers("headers-lose-the-advice-not-to-retry", '{"true": True, "false": False}', '{"true": True}'),
    headers(
        "headers-count-a-reset-of-a-limit-with-room-left",
        "if number(_value(headers, remaining)) == 0)",
        "if number(_value(headers, remaining)) >= 0)",
    ),
    encoding("encoding-sends-a-call-without-its-result", " or empty or unpaired_call(request)", " or empty"),
    encoding(
        "encoding-sends-sealed-thinking-elsewhere",
        " and origin is not None and part.origin == origin:",
        " and origin is not None:",
    ),
    target(
        "target-masks-after-cutting",
        "mask_all(printable(text[:searched]), secrets)",
        "mask_all(printable(text[:length]), secrets)",
    ),
    target("target-shows-a-key-in-an-answer", "        if key in text:\n", "        if False:\n"),
    target(
        "target-sends-the-key-beside-a-configured-one",
        "(header for header in _key_header(target) if header[0] not in taken)",
        "(header for header in _key_header(target))",
    ),
)
