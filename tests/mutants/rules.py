"""Mutants of the pure rules: limits, routing, values, effects."""

from tests.mutants.mutant import Mutant, of

quotas = of("limits/quotas.py", "limits/test_quotas.py")
breaker = of("limits/circuit_breaker.py", "limits/test_circuit_breaker.py")
budgets = of("limits/budgets.py", "limits/test_budgets.py")
router = of("routing/router.py", "routing/test_router.py")
candidates = of("routing/candidates.py", "routing/test_router.py")
prices = of("routing/prices.py", "routing/test_prices.py")
statistics = of("routing/statistics.py", "routing/test_statistics.py")
errors = of("values/errors.py", "values/test_errors.py")
responses = of("values/responses.py", "values/test_responses.py")
secrets = of("values/secrets.py", "values/test_secrets.py")
tokens = of("values/tokens.py", "values/test_tokens.py")
combinators = of("effects/combinators.py", "effects/test_combinators.py")
schedules = of("effects/schedules.py", "effects/test_schedules.py")

RULES: tuple[Mutant, ...] = (
    quotas(
        "quotas-free-the-minute-a-second-early",
        "    cells = drop_before(cells, floor(now) - SECONDS)",
        "    cells = drop_before(cells, floor(now) - SECONDS + 1)",
    ),
    quotas(
        "quotas-ignore-the-calls-ahead",
        "seconds_until_all_fit(meter.cells, limit, amount + ahead, now)",
        "seconds_until_all_fit(meter.cells, limit, amount, now)",
    ),
    quotas(
        "quotas-believe-an-older-report",
        "if at < meter.reported_at or reported == _NOT_REPORTED:",
        "if reported == _NOT_REPORTED:",
    ),
    quotas(
        "quotas-never-correct-the-estimate",
        "tokens = _correct(state.tokens, permit.cell, usage.tokens - permit.demand.tokens)",
        "tokens = state.tokens",
    ),
    quotas(
        "quotas-never-free-a-slot",
        "in_flight = state.in_flight - (permit.quota.concurrency is not None)",
        "in_flight = state.in_flight",
    ),
    quotas(
        "quotas-allow-one-call-too-many", "state.in_flight < quota.concurrency", "state.in_flight <= quota.concurrency"
    ),
    quotas(
        "quotas-do-not-count-down-what-remains",
        "remaining=meter.remaining - amount if reported else meter.remaining",
        "remaining=meter.remaining",
    ),
    breaker(
        "breaker-skips-the-probe",
        'return evolve(breaker, probing_until=now + lease), BreakerPermit("probe", breaker.epoch)',
        'return Breaker(epoch=breaker.epoch + 1), BreakerPermit("counted", breaker.epoch + 1)',
    ),
    breaker("breaker-lets-many-probes-go", " and breaker.probing_until <= now:", ":"),
    breaker(
        "breaker-counts-outcomes-of-an-earlier-epoch",
        "    if permit.epoch != breaker.epoch:\n        return breaker\n",
        "",
    ),
    breaker("breaker-opens-after-one-failure", "attempted >= config.min_attempts and ", ""),
    breaker(
        "breaker-opens-again-after-a-forced-call",
        'return _open(breaker, config, now) if permit.kind == "probe" else breaker',
        "return _open(breaker, config, now)",
    ),
    budgets(
        "budgets-refuse-the-last-cent", "if spent + amount <= account.limit:", "if spent + amount < account.limit:"
    ),
    budgets("budgets-share-one-account-among-all-owners", 'yield f"{kind}:{name}"', 'yield f"{kind}:{pattern}"'),
    budgets("budgets-count-days-in-local-time", "hour = at.astimezone(UTC).replace(", "hour = at.replace("),
    router("router-asks-cooled-down-models-first", "return frozenset((*cooled_down, *(", "return frozenset((*(), *("),
    router(
        "router-ignores-the-load-of-equal-models",
        "in_flight.get(each.name, 0) / each.config.weight",
        "0.0",
    ),
    router("router-sends-every-call-to-an-unmeasured-model", "EXPLORERS: Final = 3", "EXPLORERS: Final = 1_000_000"),
    candidates(
        "router-falls-back-to-an-equal-window",
        "return other.context_length > failed.context_length",
        "return other.context_length >= failed.context_length",
    ),
    candidates("router-takes-a-cheaper-model-unasked", " if Allow.CHEAPER_MODEL in allow else ()", ""),
    candidates(
        "router-falls-back-after-a-refusal-unasked",
        "return tuple(rest) if Allow.FALLBACK_ON_REFUSAL in allow else ()",
        "return tuple(rest)",
    ),
    candidates(
        "candidates-forget-the-room-for-the-answer",
        "needed = requirements.tokens + (request.preferences.max_tokens or 0)",
        "needed = requirements.tokens",
    ),
    candidates("candidates-offer-tools-to-any-model", "if request.tools and can.tools is False:", "if False:"),
    prices(
        "prices-charge-cached-tokens-in-full",
        "rates.input if rates.cache_read is None else rates.cache_read",
        "rates.input",
    ),
    prices("prices-charge-reasoning-twice", "(output - reasoning, rates.output)", "(output, rates.output)"),
    prices("prices-begin-a-tier-too-early", "prompt_tokens > tier.above_tokens", "prompt_tokens >= tier.above_tokens"),
    prices(
        "prices-use-a-future-price",
        "(change for change in price.changes if change.since <= today)",
        "(change for change in price.changes)",
    ),
    statistics(
        "statistics-cool-models-down-for-our-own-limits",
        "0.0 if blame_for(error) is Blame.OURSELVES else error.retry_after or 0.0",
        "error.retry_after or 0.0",
    ),
    statistics(
        "statistics-never-decay",
        "return statistics.confidence * math.exp2(-max(0.0, (now - statistics.at).total_seconds()) / HALF_LIFE_S)",
        "return statistics.confidence",
    ),
    statistics(
        "statistics-count-failures-as-answers",
        "float(not succeeded) - statistics.error_rate",
        "float(succeeded) - statistics.error_rate",
    ),
    errors(
        "errors-ignore-the-advice-of-the-server", "return max(limit, 1) if error.should_retry else 0", "return limit"
    ),
    errors("errors-retry-an-exhausted-quota", "return 0 if error.quota else UNLIMITED", "return UNLIMITED"),
    errors(
        "errors-retry-a-missed-deadline", 'return 0 if error.phase in {"total", "queue", "sink"} else 1', "return 1"
    ),
    errors(
        "errors-blame-the-server-for-4xx",
        "(error.status or 0) >= 500 else Blame.MODEL",
        "(error.status or 0) >= 400 else Blame.MODEL",
    ),
    errors(
        "errors-count-a-refused-connection-as-sent",
        '{"dns", "connect", "refused", "local"}',
        '{"dns", "connect", "local"}',
    ),
    errors(
        "errors-fall-back-after-a-missed-deadline",
        'return Fallback.NEVER if error.phase in {"total", "sink"} else Fallback.ANY',
        "return Fallback.ANY",
    ),
    responses(
        "responses-forget-cached-tokens",
        "return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens",
        "return self.input_tokens",
    ),
    responses(
        "responses-take-an-unknown-cost-for-none",
        "return Cost(None if self.usd is None or other.usd is None else self.usd + other.usd)",
        "return Cost((self.usd or Decimal(0)) + (other.usd or Decimal(0)))",
    ),
    secrets(
        "secrets-mask-the-short-one-first",
        "sorted(filter(None, texts), key=len, reverse=True)",
        "sorted(filter(None, texts), key=len)",
    ),
    tokens("tokens-learn-from-absurd-counts", "if not MIN_RATIO <= newest <= MAX_RATIO:", "if False:"),
    combinators("combinators-retry-before-retry-after", "pause = max(scheduled, requested)\n", "pause = scheduled\n"),
    combinators(
        "combinators-fall-back-after-any-error",
        "if is_successful(result) or not moves_on(result.failure()):",
        "if is_successful(result):",
    ),
    combinators("combinators-let-the-loser-go-on", "            self.scopes[1 - mine].cancel()\n", ""),
    schedules("schedules-retry-once-too-often", "step.retry <= retries", "step.retry <= retries + 1"),
    schedules("schedules-take-the-shorter-pause", "is None else max(mine, theirs)", "is None else min(mine, theirs)"),
)
