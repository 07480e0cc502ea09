"""Mutants of data that stays on this machine: each lets some of it leave, or loses its label."""

from tests.mutants.mutant import Mutant, of

TESTS = "faults/test_data_that_stays.py"
requests = of("values/requests.py", TESTS)
candidates = of("routing/candidates.py", TESTS)
registry = of("providers/registry.py", TESTS)
credentials = of("clients/credentials.py", TESTS)
complete = of("policies/complete.py", TESTS)
cache = of("policies/cache.py", TESTS)
lifecycle = of("conversations/turn_lifecycle.py", TESTS)
context = of("conversations/context.py", TESTS)
window = of("conversations/window.py", TESTS)
converse = of("conversations/converse.py", TESTS)
operations = of("conversations/operations.py", TESTS)
executor = of("tools/tool_executor.py", TESTS)
database = of("stores/sql/database.py", TESTS)
recording = of("policies/recording.py", TESTS)
embeddings = of("embeddings.py", TESTS)
spans = of("telemetry/spans.py", TESTS)
submissions = of("batches/submissions.py", "batches/test_private_batches.py")
results = of("batches/results.py", "batches/test_private_batches.py")
batch_client = of("clients/batch_client.py", "batches/test_private_batches.py")
mcp = of("tools/mcp.py", "tools/test_mcp.py")
chat_requests = of("asgi/chat_requests.py", "asgi/test_private_chats.py")

STAYING: tuple[Mutant, ...] = (
    requests(
        "staying-parts-do-not-label-their-request",
        "if self.messages and any(part.stays is not None",
        "if False and any(part.stays is not None",
    ),
    candidates(
        "staying-routing-includes-models-elsewhere",
        "if request.stays is not None and (why := ",
        "if False and (why := ",
    ),
    candidates("staying-routing-does-not-say-why", "if leaving and all(leaving.values()):", "if False:"),
    registry("staying-a-proxy-is-local", 'another machine" if proxied else ""', 'another machine" if False else ""'),
    registry(
        "staying-a-cloud-model-is-local",
        "if _is_passed_on(target.wire_model",
        "if False and _is_passed_on(target.wire_model",
    ),
    credentials("staying-the-client-sends-all", "            if problem is not None:\n", "            if False:\n"),
    credentials(
        "staying-what-was-not-sent-is-an-attempt",
        "began = call.attempt.record.queued_since = anyio.current_time()",
        "began = anyio.current_time()",
    ),
    credentials("staying-localhost-is-not-looked-up", "    if not host.isalpha():\n", "    if True:\n"),
    complete(
        "staying-stored-answers-have-no-label",
        "checked = staying_answer(checked, call.request.stays)",
        "checked = staying_answer(checked, None)",
    ),
    cache(
        "staying-questions-share-entries",
        '**({} if request.stays is None else {"stays": request.stays}),',
        "",
    ),
    cache(
        "staying-answers-go-to-a-cache-elsewhere",
        "if request.stays is not None and not _is_cache_here(config):",
        "if False:",
    ),
    lifecycle("staying-questions-are-stored-without-it", "staying_turn(turn, request.question.stays)", "turn"),
    lifecycle(
        "staying-turns-of-a-labelled-conversation-have-none",
        "staying_turn(new_turn, history.conversation.stays)",
        "new_turn",
    ),
    context("staying-a-summary-may-be-made-anywhere", "length, env), stays=stays)", "length, env), stays=None)"),
    window("staying-a-summary-loses-its-label", "summary.text, stays=summary.stays)", "summary.text)"),
    converse("staying-a-broken-answer-loses-its-label", "stays=received.stays),)", "stays=None),)"),
    converse("staying-a-repeated-turn-has-no-label", "stays=stays_of(last.message.parts),", ""),
    operations("staying-appended-messages-have-no-label", "staying_turn(turn, history.conversation.stays)", "turn"),
    executor("staying-results-of-tools-are-free", "(None if function is None else function.stays)", "None"),
    executor("staying-results-of-labelled-calls-are-free", "stays = answer.call.stays or (", "stays = None or ("),
    executor(
        "staying-what-a-tool-labels-is-free",
        "value.stays if isinstance(value, Text | LLMResponse)",
        "None if isinstance(value, Text | LLMResponse)",
    ),
    database("staying-a-database-elsewhere-stores-all", "    if not is_here(url):\n", "    if False:\n"),
    database("staying-a-journal-elsewhere-stores-all", 'getattr(each, "obj", each)', "each"),
    recording(
        "staying-the-ledger-says-no-always",
        "call.model not in models_here(env.config, proxied=is_proxied(env.clients))",
        "False",
    ),
    embeddings(
        "staying-vectors-are-made-anywhere", '"" if stays is None else why_it_leaves(target, proxied=proxied)', '""'
    ),
    spans("staying-answers-are-traced", "    if response.stays is not None:\n", "    if False:\n"),
    executor(
        "staying-tools-elsewhere-receive-all", "if function.leaves_machine and call.stays is not None:", "if False:"
    ),
    mcp("staying-servers-of-tools-are-always-here", "self._is_elsewhere if", "False if"),
    chat_requests("staying-labels-of-clients-are-dropped", "for name in _FIELDS if", "for name in _FIELDS[:3] if"),
    batch_client(
        "staying-batches-are-not-looked-at-again",
        "if any(line.request.stays is not None for line in lines):",
        "if False:",
    ),
    results("staying-answers-of-batches-are-free", "staying_answer(checked, request.stays)", "checked"),
    results("staying-the-ledger-does-not-know-of-batches", "left_machine=left)", "left_machine=None)"),
    results(
        "batches-are-collected-with-any-key", "if redacted and redacted != redaction_of(session.env):", "if False:"
    ),
    submissions("batches-send-values", 'f"{number}", sent.unwrap().request)', 'f"{number}", request)'),
    submissions("batches-take-a-random-key", "if not redaction_of(env) or", "if False or"),
)
