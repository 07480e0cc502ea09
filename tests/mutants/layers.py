"""Mutants of the layers and of the pipeline that stacks them."""

from tests.mutants.mutant import Mutant, of

budget = of("policies/budget.py", "policies/test_budget.py")
limits = of("policies/limits.py", "policies/test_limits.py")
retries = of("policies/retries.py", "policies/test_retries.py")
breaker = of("policies/circuit_breaker.py", "policies/test_circuit_breaker.py")
deadline = of("policies/deadline.py", "policies/test_deadline.py")
hedging = of("policies/hedging.py", "policies/test_hedging.py")
cache = of("policies/cache.py", "policies/test_cache.py")
coalescing = of("policies/coalescing.py", "policies/test_coalescing.py")
routing = of("policies/routing.py", "policies/test_routing.py")
recovery = of("policies/routing.py", "policies/test_recovery.py")
retry_budget = of("policies/retries.py", "policies/test_retry_budget.py")
repair = of("policies/repair.py", "structured/test_typed_answers.py")
recording = of("policies/recording.py", "policies/test_recording.py")
complete = of("policies/complete.py", "policies/test_complete.py")
tracing = of("policies/tracing.py", "telemetry/test_spans.py")
pipeline = of("pipeline.py", "pipeline/test_pipeline.py")

_FINALLY = "    except BaseException:\n        raise\n    else:\n"  # instead of ``finally``: not after a cancellation

LAYERS: tuple[Mutant, ...] = (
    budget(
        "budget-settles-at-the-estimate",
        "await env.ledger.commit(hold, _spent(hold, call.attempt.record.cost))",
        "await env.ledger.commit(hold, hold.amount)",
    ),
    budget(
        "budget-never-settles",
        "await env.ledger.commit(hold, _spent(hold, call.attempt.record.cost))",
        "pass",
    ),
    budget(
        "budget-takes-an-unknown-cost-for-none",
        "return hold.amount if cost.usd is None else cost.usd",
        "return Decimal(0) if cost.usd is None else cost.usd",
    ),
    budget("budget-lets-an-unknown-price-pass", "if estimate == Cost.ZERO:", "if not estimate.usd:"),
    budget("budget-estimates-without-reasoning", "for usage in (answered, reasoned))", "for usage in (answered,))"),
    limits(
        "limits-keep-the-permit-on-cancel",
        "    finally:\n        if usage is None:",
        _FINALLY + "        if usage is None:",
    ),
    limits(
        "limits-forget-the-tokens-of-a-cancelled-attempt",
        "usage = ActualUsage(tokens=permit.demand.tokens)",
        "usage = ActualUsage()",
    ),
    limits("limits-forget-the-pause-of-a-429", ", reported_limits=_requested_pause(error))", ")"),
    limits("limits-count-what-was-never-sent", "return ActualUsage(requests=0)", "return ActualUsage()"),
    limits(
        "limits-queue-past-the-share-of-the-time",
        "return min(env.config.limits.queue_seconds, max(0.0, share_s))",
        "return env.config.limits.queue_seconds",
    ),
    limits("limits-reserve-no-tokens-for-the-answer", "output_tokens=longest)", "output_tokens=0)"),
    retries("retries-repeat-after-content", "    if call.committed:\n        return False\n", ""),
    retries(
        "retries-repeat-what-must-not-be-repeated",
        "return again <= min(routing.max_retries, retry_limit(error))",
        "return again <= routing.max_retries",
    ),
    retries("retries-ignore-retry-after", "max(scheduled, requested, ", "max(scheduled, "),
    retries("retries-pause-past-the-deadline", "ends = min(call.deadline, ", "ends = min("),
    retries(
        "retries-ignore-max-attempts",
        "if len(history.attempts) + racing + call.attempt.alternatives >= routing.max_attempts:",
        "if False:",
    ),
    retry_budget(
        "retries-ignore-the-retry-budget", "if pause is None or not _affords(call, env, cost):", "if pause is None:"
    ),
    retries(
        "retries-wait-for-a-slow-model-while-others-are-left",
        "if call.attempt.alternatives and _is_slow_or_absent(error):",
        "if False:",
    ),
    retries(
        "retries-pause-long-while-others-are-left",
        "LONGEST_WITH_OTHERS_S if call.attempt.alternatives else math.inf",
        "math.inf",
    ),
    breaker("breaker-counts-4xx", "blame_for(error) is not Blame.SERVER or ", ""),
    breaker(
        "breaker-keeps-the-probe-on-cancel",
        "    finally:  # a cancelled attempt says nothing about the model; a cancelled probe is returned\n",
        _FINALLY,
    ),
    breaker(
        "breaker-rejects-the-last-hope",
        "return call.attempt.alternatives == 0 and not any(map(is_retryable, call.history.errors))",
        "return False",
    ),
    breaker(
        "breaker-waits-for-the-end-of-a-streamed-probe",
        'if permit.kind == "probe" and call.sink is not None:',
        "if False:",
    ),
    deadline(
        "deadline-is-forgotten-below", "proceed(next, call.with_deadline(deadline), env)", "proceed(next, call, env)"
    ),
    deadline("deadline-of-the-caller-is-forgotten", "deadline = min(call.deadline, ", "deadline = max("),
    hedging(
        "hedging-doubles-calls-with-tools",
        "if call.history.contents or call.request.tools:",
        "if call.history.contents:",
    ),
    hedging(
        "hedging-shows-both-attempts",
        "        await self.claim()\n        self.shown = True",
        "        self.shown = True",
    ),
    hedging(
        "hedging-ignores-its-budget",
        "return waiting and allowed and env.limits.hedges.spend()",
        "return waiting and allowed",
    ),
    hedging(
        "hedging-begins-before-the-first-is-sent",
        "left = delay if sent_at is None else sent_at + delay - now",
        "left = 0.0 if sent_at is None else sent_at + delay - now",
    ),
    hedging("hedging-ignores-max-attempts", "return waiting and allowed and ", "return waiting and "),
    cache(
        "cache-key-leaves-out-the-tools",
        '        "tools": [(tool.name, tool.description, _sorted(tool.parameters)) for tool in request.tools],\n',
        "",
    ),
    cache("cache-key-leaves-out-the-owner", '        "owner": request.owner,\n', ""),
    cache("cache-key-is-the-prompt-only", "dump([layers, _shape(request)])", "dump([layers, _messages(request)])"),
    cache("cache-key-leaves-out-the-headers", "        namespace_of(target, whole),\n", ""),
    cache(
        "cache-stores-a-truncated-answer",
        "return response.finish_reason.value in keep and bool(",
        "return bool(",
    ),
    cache("cache-stores-a-doubtful-answer", "    if response.doubtful:\n        return False\n", ""),
    cache("cache-ignores-bypass", "return enabled and request.cache is not CachePolicy.BYPASS", "return enabled"),
    cache(
        "cache-answers-where-only-fresh-answers-count",
        "    if call.request.cache is CachePolicy.REFRESH:\n        return Success(None)\n",
        "",
    ),
    cache(
        "cache-asks-where-only-stored-answers-count",
        "if policy is CachePolicy.ONLY or _misconfigured(stored):",
        "if _misconfigured(stored):",
    ),
    cache("cache-hides-that-an-answer-is-stored", "evolve(entry.response, cached=True, ", "evolve(entry.response, "),
    cache(
        "cache-takes-all-the-time-that-is-left",
        "return min(TIMEOUT_S, max(0.0, deadline - anyio.current_time()) / 2)",
        "return TIMEOUT_S",
    ),
    cache(
        "cache-stores-the-pieces-of-a-restarted-answer",
        "not warnings and not recorder.restarted and ",
        "not warnings and ",
    ),
    coalescing(
        "coalescing-shares-across-validators", "question, validation, request.cache,", "question, request.cache,"
    ),
    coalescing(
        "coalescing-shares-the-deadline-of-the-leader",
        ' or (isinstance(error, RequestTimeout) and error.phase in {"total", "sink"})',
        "",
    ),
    coalescing(
        "coalescing-shares-the-budget-of-the-leader", "return isinstance(error, BudgetExceeded) or (", "return ("
    ),
    coalescing(
        "coalescing-drops-what-was-streamed-before",
        "delivered, patience = 0, STALLED_S",
        "delivered, patience = len(flight.events), STALLED_S",
    ),
    coalescing(
        "coalescing-strands-followers-of-a-cancelled-leader",
        "    finally:\n        flight.land()\n",
        "    finally:\n        if flight.result is not None:\n            flight.land()\n",
    ),
    coalescing(
        "coalescing-waits-for-a-stalled-leader",
        "with anyio.move_on_after(patience) as scope:",
        "with anyio.move_on_after(math.inf) as scope:",
    ),
    routing(
        "routing-forgets-the-deadline-on-fallback",
        "        return call.with_attempt(attempt)\n",
        "        return (call.with_deadline(math.inf) if history.errors else call).with_attempt(attempt)\n",
    ),
    routing(
        "routing-ignores-max-attempts",
        "if not left or len(call.history.attempts) >= env.config.routing.max_attempts:",
        "if not left:",
    ),
    routing(
        "routing-cools-nothing-down", "env.health.cool_down(attempt.model, anyio.current_time() + cool_down_s)", "pass"
    ),
    recovery(
        "routing-goes-on-after-content", "if attempt.committed and call.request.recovery is Recovery.FAIL:", "if False:"
    ),
    routing("routing-counts-ended-calls-as-in-flight", "env.health.add_in_flight(attempt.model, -1)", "pass"),
    recovery(
        "routing-resumes-without-the-beginning",
        "return evolve(call, request=request, sink=sink, ",
        "return evolve(call, sink=sink, ",
    ),
    recovery(
        "routing-returns-only-the-end-of-a-resumed-answer",
        "text = hide_all_keys(config, attempt.history.partial)",
        "text = response.content",
    ),
    routing(
        "routing-gives-one-model-all-the-time",
        "return math.inf if seconds == left else now + seconds",
        "return math.inf",
    ),
    repair("repair-never-gives-up", "if repairs >= validator.max_repairs or spent or ", "if spent or "),
    repair("repair-repeats-what-was-cut-off", " or response.finish_reason is FinishReason.LENGTH:", ":"),
    repair(
        "repair-hides-the-wrong-answer",
        "turns = (*request_messages(request), *answered, ",
        "turns = (*request_messages(request), ",
    ),
    recording(
        "recording-loses-cancelled-attempts",
        "attempt = _record(env, call, started, _interruption(problem, call), None)",
        "attempt = None",
    ),
    recording(
        "recording-blames-the-model-for-the-request",
        "return blame_for(outcome.failure()) in {Blame.SERVER, Blame.MODEL}",
        "return True",
    ),
    recording("recording-bills-rejected-attempts", "if rejected and (usage is None or usage == Usage()):", "if False:"),
    recording(
        "recording-takes-cancelled-attempts-for-free",
        "rejected = outcome is not None and not",
        "rejected = outcome is None or not",
    ),
    recording(
        "recording-counts-the-queue-as-latency",
        "sent_at, content_at = started + record.queued_s, ",
        "sent_at, content_at = started, ",
    ),
    recording("recording-loses-the-owner", "        owner=call.request.owner,\n", ""),
    complete(
        "complete-ignores-the-time-of-an-attempt",
        "with move_on_after(limit_ms / 1000):",
        "with move_on_after(math.inf):",
    ),
    complete("complete-cuts-a-stream-at-the-end-of-its-share", "share.deadline = math.inf", "pass"),
    complete("complete-believes-every-count", "if max(prompt, output) <= _SMALL_TOKENS:", "if True:"),
    complete("complete-trusts-a-truncated-prompt", "warnings=warnings, doubtful=True)", "warnings=warnings)"),
    tracing(
        "tracing-leaves-spans-of-cancelled-calls-open",
        "except BaseException as problem:",
        "except Exception as problem:",
    ),
    pipeline(
        "pipeline-sends-an-event-after-the-last",
        "            await sink(ending(result))\n",
        "            await sink(ending(result))\n            await sink(ending(result))\n",
    ),
    pipeline(
        "pipeline-counts-the-last-attempt-only",
        "cost = total_cost([attempt.cost for attempt in attempts])",
        "cost = total_cost([attempt.cost for attempt in attempts[-1:]])",
    ),
    pipeline(
        "pipeline-holds-money-in-the-queue",
        "    with_limits,\n    with_budget,\n",
        "    with_budget,\n    with_limits,\n",
    ),
    pipeline(
        "pipeline-caches-before-coalescing",
        "    with_coalescing,\n    with_cache,\n    with_routing,\n",
        "    with_cache,\n    with_coalescing,\n    with_routing,\n",
    ),
)
