"""Mutants of the stores: caches, conversations, ledgers, limits."""

from tests.mutants.mutant import Mutant, of

memory_cache = of("stores/cache/memory.py", "stores/cache/test_memory.py")
sqlite_cache = of("stores/cache/sqlite.py", "stores/cache/test_sqlite.py")
redis_cache = of("stores/cache/redis.py", "stores/cache/test_redis.py")
rules = of("stores/conversations/rules.py", "stores/conversations/test_conformance.py")
memory_talks = of("stores/conversations/memory.py", "stores/conversations/test_conformance.py")
sql_talks = of("stores/conversations/sql.py", "stores/conversations/test_conformance.py")
sql_rows = of("stores/conversations/sql_rows.py", "stores/conversations/test_conformance.py")
memory_ledger = of("stores/ledger/memory.py", "stores/ledger/test_ledgers.py")
sql_ledger = of("stores/ledger/sql.py", "stores/ledger/test_sql.py")
sql_rows_of_ledger = of("stores/ledger/sql.py", "stores/ledger/test_ledgers.py")
sql_budgets = of("stores/ledger/sql_budgets.py", "stores/ledger/test_sql.py")
erasing = of("stores/sql/erasing.py", "conversations/test_erasure.py")
encrypted = of("stores/encrypted.py", "stores/test_encrypted.py")
memory_limits = of("stores/limits/memory.py", "policies/test_limits.py")
redis_limits = of("stores/limits/redis.py", "stores/limits/test_redis.py")

STORES: tuple[Mutant, ...] = (
    memory_cache("memory-cache-never-expires", "return now + item.ttl", "return math.inf"),
    memory_cache("memory-cache-has-no-bound-on-entries", "while left >= self._max_entries or ", "while "),
    sqlite_cache("sqlite-cache-returns-expired-entries", "(key, at + SKEW_S, at)", "(key, at + SKEW_S, -math.inf)"),
    sqlite_cache("sqlite-cache-returns-entries-of-the-future", "(key, at + SKEW_S, at)", "(key, math.inf, at)"),
    sqlite_cache("sqlite-cache-evicts-the-newest", "ORDER BY used LIMIT 1)", "ORDER BY used DESC LIMIT 1)"),
    sqlite_cache("sqlite-cache-takes-over-a-foreign-file", "if mark != MARK and (tables or version):", "if False:"),
    redis_cache(
        "redis-cache-clears-keys-of-others",
        'pattern = re.sub(r"([*?\\[\\]\\\\])", r"\\\\\\1", self._prefix + prefix) + "*"',
        'pattern = "*"',
    ),
    rules(
        "conversations-lose-an-update",
        "        return Success(stored)\n    if conversation.version != expected:\n",
        "        return Success(stored)\n    if False:\n",
    ),
    rules(
        "conversations-ignore-the-lease-of-a-writer",
        "return stored.lease_until <= at if stored.state is TurnState.PENDING else",
        "return True if stored.state is TurnState.PENDING else",
    ),
    rules(
        "conversations-drop-an-answer-after-a-failure",
        "(stored.state is not TurnState.PENDING and not messages)",
        "stored.state is not TurnState.PENDING",
    ),
    rules(
        "conversations-keep-the-answer-of-a-failed-turn",
        "messages = () if state is TurnState.FAILED else answer",
        "messages = answer",
    ),
    rules("conversations-store-an-answer-twice", "if stored.settled or (", "if (False and "),
    rules("conversations-append-known-turns-again", " if each not in known)", ")"),
    memory_talks(
        "memory-conversations-read-another-owners",
        "record = self._records.get((owner, conversation_id))\n            return Success(",
        "record = {name: each for (_, name), each in self._records.items()}.get(conversation_id)\n"
        "            return Success(",
    ),
    memory_talks(
        "memory-conversations-replace-a-result", "            if run[key].result is None:\n", "            if True:\n"
    ),
    sql_rows(
        "sql-conversations-read-another-owners",
        "FROM llm_conversations WHERE owner = :of AND id = :name",
        "FROM llm_conversations WHERE :of = :of AND id = :name",
    ),
    sql_rows(
        "sql-journals-read-another-owners",
        "columns.owner == owner_column(owner), columns.run == run_id\n    )\n    rows",
        "columns.run == run_id\n    )\n    rows",
    ),
    sql_rows("sql-conversations-read-the-oldest-summary", "ORDER BY s.upto DESC LIMIT 1", "ORDER BY s.upto LIMIT 1"),
    sql_talks(
        "sql-journals-run-a-step-twice",
        "return Success(read_journal(connection, run_id, owner, key)[0])",
        "return Success(evolve(read_journal(connection, run_id, owner, key)[0], fresh=True))",
    ),
    sql_talks(
        "sql-conversations-forget-an-unwritten-answer",
        "if result is None or _is_unwritten(result):\n                self._kept.keep(ending)",
        "if result is None or _is_unwritten(result):\n                pass",
    ),
    memory_ledger(
        "memory-ledger-commits-twice",
        "            held = self._holds.pop(hold.id, None)\n",
        "            held = self._holds.pop(hold.id, None) or hold\n",
    ),
    memory_ledger("memory-ledger-drops-the-refund", "self._add(held, cost - held.amount)", "self._add(held, cost)"),
    memory_ledger(
        "memory-ledger-checks-the-first-budget-only",
        "for each in hold.accounts)\n        return next(",
        "for each in hold.accounts[:1])\n        return next(",
    ),
    memory_ledger("memory-ledger-counts-the-end-twice", "row.at < until", "row.at <= until"),
    sql_budgets("sql-budgets-hold-expired-reservations", "        self._free_expired(account.key, hold.at)\n", ""),
    sql_budgets(
        "sql-budgets-forget-what-is-reserved",
        "refused = check_budget(account, totals.spent + totals.reserved, hold.amount)",
        "refused = check_budget(account, totals.spent, hold.amount)",
    ),
    sql_budgets("sql-budgets-drop-the-refund", "                self.totals[account.key].reserved -= amount\n", ""),
    sql_ledger("sql-ledger-loses-rows-that-failed", "            self._waiting[:0] = self._running\n", ""),
    sql_ledger("sql-ledger-hides-rows-that-wait", "waiting = self._buffer.held()  # before", "waiting = ()  # before"),
    sql_rows_of_ledger(
        "sql-ledger-takes-an-unknown-cost-for-none",
        "cost=Cost.UNKNOWN if cost_usd is None else",
        "cost=Cost.ZERO if cost_usd is None else",
    ),
    memory_limits(
        "memory-limits-jump-the-queue",
        "answer = 0.0 if state.queue.waiting else state.ask(quota, demand)",
        "answer = state.ask(quota, demand)",
    ),
    memory_limits(
        "memory-limits-strand-the-queue-behind-a-cancelled-call",
        "demand, -1)\n        self.wake_first()\n",
        "demand, -1)\n",
    ),
    memory_limits(
        "memory-limits-save-retries-without-end",
        "min(budget.tokens, self._left[server] + amount)",
        "self._left[server] + amount",
    ),
    memory_limits("memory-limits-save-hedges-without-end", "min(self._saved + share, BURST)", "self._saved + share"),
    redis_limits(
        "redis-limits-keep-a-permit-that-was-undone",
        "        state.undo(local)\n        return number / 1000",
        "        return number / 1000",
    ),
    redis_limits(
        "redis-limits-let-many-probes-go", "if wait <= 0 and tonumber(known[2] or 0) <= now then", "if wait <= 0 then"
    ),
    erasing("erasing-takes-the-old-steps-of-a-run-that-goes-on", "where(of_found, *whole)", "where(of_found)"),
    erasing("erasing-leaves-the-log", "    is_empty = empty_log(file)\n", "    is_empty = True\n"),
    encrypted("encrypted-values-can-be-moved", "dump([kind, owner, *ids])", "dump([kind])"),
    encrypted(
        "encrypted-results-hide-a-lost-key",
        "unreadable=_lost(stored.result) if result is None else None",
        "unreadable=None",
    ),
)
