"""Prompt caches over the wire: a server that keeps one by Claude's published rules, refusals included."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from attrs import evolve

from llm_effects import LLMRequest, Message, Text, explain, generate, open_env, run, start_conversation, usage_report
from llm_effects.conversations import converse
from llm_effects.policies.redaction import Redaction
from llm_effects.values.placeholders import Finding
from tests.fixtures.claude_cache import RULES, TURNS, ClaudeServer, config_of, price_of_model, tool_loop
from tests.fixtures.servers import serving

pytestmark = pytest.mark.anyio

GUIDE = Path(__file__).parents[2] / "docs/guides/prompt-caching.md"


async def test_fault_189_a_tool_loop_reads_what_it_wrote_and_costs_a_quarter() -> None:
    cached, plain = (await tool_loop("5m")).row, (await tool_loop("off")).row
    assert cached.requests == plain.requests == TURNS
    prompt = cached.input_tokens + cached.cache_write_tokens + cached.cache_read_tokens
    assert prompt == plain.input_tokens
    assert cached.cache_read_tokens > 0.9 * prompt
    assert cached.cache_saved_usd == plain.cost_usd - cached.cost_usd
    assert cached.cost_usd < plain.cost_usd / 4
    assert plain.cache_saved_usd == 0


async def test_the_guide_has_the_figures_of_the_loop() -> None:
    rows = [(await tool_loop(kept)).row for kept in ("off", "5m", "1h")]
    guide = GUIDE.read_text(encoding="utf-8")
    for row in rows:
        tokens = (row.input_tokens, row.cache_write_tokens, row.cache_read_tokens)
        assert f"| {' | '.join(f'{each:,}' for each in tokens)} | ${row.cost_usd:.4f} |" in guide
    assert f"{1 - rows[1].cost_usd / rows[0].cost_usd:.0%}" in guide


async def test_fault_189_a_step_with_many_results_is_still_found() -> None:
    server = ClaudeServer()
    with serving(server.behave) as listening:
        async with open_env(config_of(listening.url)) as env:
            talk = (Message("user", RULES * 60),)
            for _ in range(3):
                request = LLMRequest(messages=talk, conversation="c")
                answered = (await run(generate(request), env)).unwrap()
                parts = [Text(f"{at}: {RULES}") for at in range(30)]  # more blocks than Claude looks back
                talk = (*talk, Message("assistant", answered.content), Message("user", parts))
            row = (await run(usage_report(), env)).unwrap().total
    assert row.cache_read_tokens > 0.9 * row.cache_write_tokens
    assert row.input_tokens == 0


async def test_fault_189_each_turn_of_a_conversation_reads_the_one_before() -> None:
    server = ClaudeServer()
    with serving(server.behave) as listening:
        async with open_env(config_of(listening.url)) as env:
            (await run(start_conversation("c", system=RULES * 60), env)).unwrap()
            answers = [(await run(converse("c", f"Question {at}?"), env)).unwrap() for at in range(4)]
    first, *later = (each.usage for each in answers)
    assert first.cache_write_tokens == first.prompt_tokens
    for before, usage in zip([first, *later], later, strict=False):
        assert usage.cache_read_tokens == before.prompt_tokens
        assert usage.input_tokens == 0


async def test_fault_189_each_turn_of_a_redacted_conversation_reads_the_one_before() -> None:
    def find(text: str) -> list[Finding]:
        kind = "OWNER" if text.startswith("Question") else "EMAIL"
        return [Finding(each.start(), each.end(), kind) for each in re.finditer(r"\w+@example\.org", text)]

    server = ClaudeServer()
    with serving(server.behave) as listening:
        async with open_env(config_of(listening.url)) as live:
            env = evolve(live, redact=Redaction(find, key="a key for these tests"))
            (await run(start_conversation("c", system=f"{RULES * 60} Mail a@example.org."), env)).unwrap()
            asked = [f"Question {at}? Mail {name}@example.org." for at, name in enumerate("bacba")]
            answers = [(await run(converse("c", each), env)).unwrap() for each in asked]
    first, *later = (each.usage for each in answers)
    assert first.cache_write_tokens == first.prompt_tokens
    for before, usage in zip([first, *later], later, strict=False):
        assert usage.cache_read_tokens == before.prompt_tokens


async def test_fault_190_a_request_with_more_marks_than_four_is_answered() -> None:
    server = ClaudeServer()
    with serving(server.behave) as listening:
        async with open_env(config_of(listening.url)) as env:
            parts = [Text(f"{at}: {RULES * 20}", cache=True) for at in range(9)]
            answered = (await run(generate(LLMRequest(messages=[Message("user", parts)])), env)).unwrap()
    assert "cache: of 9 marks the last 4 are sent, as many as the provider accepts" in answered.warnings
    assert answered.usage.cache_write_tokens


async def test_fault_192_writes_for_an_hour_are_paid_twice_the_input() -> None:
    hour, minutes = (await tool_loop("1h", 3)).row, (await tool_loop("5m", 3)).row
    assert hour.cache_write_1h_tokens == hour.cache_write_tokens == minutes.cache_write_tokens
    assert minutes.cache_write_1h_tokens == 0
    more = Decimal("1.5") * minutes.cache_write_tokens / 1_000_000  # 4 dollars instead of 2.50, for a million
    assert hour.cost_usd - minutes.cost_usd == more


async def test_fault_193_single_prompts_write_nothing_and_marked_ones_are_read() -> None:
    server = ClaudeServer()
    with serving(server.behave) as listening:
        async with open_env(config_of(listening.url)) as env:
            plain = LLMRequest(system=RULES * 60, prompt="Why?")
            unmarked = [(await run(generate(evolve(plain, prompt=f"Why {at}?")), env)).unwrap() for at in range(2)]
            rules = Message("system", Text(RULES * 60, cache=True))
            asked = [LLMRequest(messages=[rules, Message("user", f"Why {at}?")]) for at in range(2)]
            marked = [(await run(generate(request), env)).unwrap() for request in asked]
            decisions = [(await run(explain(request), env)).unwrap().candidates[0] for request in (plain, asked[0])]
    assert [each.usage.cache_read_tokens + each.usage.cache_write_tokens for each in unmarked] == [0, 0]
    assert marked[0].usage.cache_write_tokens == marked[1].usage.cache_read_tokens > 0
    assert [each.prompt_cache.partition(":")[0] for each in decisions] == ["no", "yes"]


async def test_explain_says_what_later_requests_save() -> None:
    single = LLMRequest(system=RULES * 60, prompt="Why?")
    async with open_env(config_of("http://127.0.0.1:9")) as env:
        decisions = [(await run(explain(evolve(single, conversation=name)), env)).unwrap() for name in (None, "c")]
    [alone], [growing] = (each.candidates for each in decisions)
    assert alone.cache_saving_usd == 0
    price = price_of_model()
    assert growing.cache_saving_usd == growing.estimated_tokens * (price.input - price.cache_read) / 1_000_000
    shown = decisions[1]._repr_markdown_().replace("\\", "")
    assert f"which saves ${growing.cache_saving_usd:f} of each later request" in shown
