"""Mutants of what people call: clients, conversations, tools, typed answers, telemetry."""

from tests.mutants.mutant import Mutant, of

client = of("clients/client.py", "clients/test_exchange.py")
timers = of("effects/call.py", "clients/test_exchange.py")
shares = of("effects/call.py", "clients/test_client.py")
opening = of("effects/call.py", "clients/test_exchange.py")
window = of("conversations/window.py", "conversations/test_window.py")
lifecycle = of("conversations/turn_lifecycle.py", "conversations/test_converse.py")
converse = of("conversations/converse.py", "conversations/test_converse.py")
executor = of("tools/tool_executor.py", "tools/test_tool_executor.py")
waiting = of("tools/tool_executor.py", "tools/test_approvals.py")
approvals = of("tools/approvals.py", "tools/test_approvals.py")
journal = of("tools/journal.py", "tools/test_journal.py")
tools = of("tools/run.py", "tools/test_run.py")
decoding = of("structured/decoding.py", "structured/test_decoding.py")
spans = of("telemetry/spans.py", "telemetry/test_spans.py")

CALLERS: tuple[Mutant, ...] = (
    timers(
        "client-ignores-the-time-of-the-first-content",
        "self.scope.deadline = min(first_content, self._attempt_deadline, self.share_by)",
        "self.scope.deadline = min(self._attempt_deadline, self.share_by)",
    ),
    shares(
        "client-ignores-the-share-of-a-candidate",
        "self.scope.deadline = min(first_content, self._attempt_deadline, self.share_by)",
        "self.scope.deadline = min(first_content, self._attempt_deadline)",
    ),
    timers(
        "client-counts-the-time-of-the-consumer",
        "self._attempt_deadline += now - self._paused_at",
        "pass",
    ),
    client("client-reads-answers-of-any-length", "if self._characters > caps.CONTENT_CHARACTERS:", "if False:"),
    opening(
        "client-starts-anew-without-saying-so",
        "return Restarted(call.model) if call.history.contents else Started(call.model)",
        "return Started(call.model)",
    ),
    window("window-keeps-the-oldest", "accumulate(reversed(extras), initial=", "accumulate(extras, initial="),
    window("window-drops-pinned-messages", "messages = chain(before, *kept[:first], ", "messages = chain(before, "),
    window("window-shows-unanswered-questions", "        if turn.settled:\n", "        if True:\n"),
    window(
        "window-sends-calls-without-results",
        "results.get((place, call)) or _missing_result(call) for call in calls",
        "results[place, call] for call in calls if (place, call) in results",
    ),
    lifecycle(
        "lifecycle-answers-another-question",
        "if [each.message for each in turn.messages[: len(question)]] != question:",
        "if False:",
    ),
    lifecycle(
        "lifecycle-loses-the-end-on-cancel",
        "with anyio.move_on_after(STORE_TIMEOUT_S, shield=True):\n        for _",
        "with anyio.move_on_after(STORE_TIMEOUT_S):\n        for _",
    ),
    lifecycle("lifecycle-asks-twice-for-one-turn", "if not started.mine and not turn.settled:", "if False:"),
    converse("converse-loses-a-partial-answer", "if received.visible_text(env).strip():", "if False:"),
    converse(
        "converse-asks-again-with-as-much",
        "limit = SHRINK * min(context.unwrap().tokens, _limit(answer.failure()))",
        "limit = math.inf",
    ),
    executor(
        "executor-runs-dangerous-tools-unasked",
        "return Success(_Clearance()) if reason is None else",
        "return Success(_Clearance()) if True else",
    ),
    executor(
        "executor-runs-after-an-unknown-call",
        "if any(each is not None and each.outcome is ToolOutcome.UNKNOWN for each in earlier):",
        "if False:",
    ),
    executor(
        "executor-takes-a-failed-approval-for-one",
        "verdict = result.unwrap() if is_successful(result) else None",
        "verdict = result.unwrap() if is_successful(result) else Approved()",
    ),
    waiting("executor-runs-a-call-that-waits", "if clearance.waits:", "if False:"),
    waiting("executor-forgets-who-wrote-a-result", ", job.unwrap().function.trusted", ", True"),
    waiting("executor-forgets-what-a-conversation-read", ", *(state.earlier or ()))", ", *())"),
    approvals("approvals-are-not-bound-to-defaults", "call.arguments, arguments]", "call.arguments]"),
    approvals("approvals-are-not-compared-with-the-call", "if kept is None or (dump", "if kept is None and (dump"),
    approvals(
        "approvals-hide-what-cannot-be-seen", "if each.isprintable() and not _BLANK.match(each) else", "if True else"
    ),
    approvals("approvals-may-be-of-another-decision", "if stored.decision.approved is approved:", "if True:"),
    journal("journal-runs-a-started-call-again", "None if entry.fresh else _load_result(call, entry)", "None"),
    journal("journal-answers-another-question", "if entry.intent != question.encode():", "if False:"),
    tools(
        "tools-run-the-calls-of-a-cut-off-answer",
        "    if response.finish_reason not in _COMPLETE:\n        return ToolEnd.CUT_OFF\n",
        "",
    ),
    tools("tools-spend-more-than-max-cost", "spent.usd >= limit.usd:", "spent.usd > limit.usd:"),
    tools("tools-force-a-tool-for-ever", 'return choice if step == 1 or choice == "none" else None', "return choice"),
    decoding(
        "decoding-takes-the-first-json-whatever-it-is",
        "return next((each for each in decoded if is_successful(each)), decoded[0])",
        "return decoded[0]",
    ),
    spans(
        "spans-show-keys", "return lambda text: scrub(text, *secrets, *(", "return lambda text: text or scrub(text, *("
    ),
    spans("spans-measure-estimated-tokens", "if count is not None and not usage.estimated:", "if count is not None:"),
)
