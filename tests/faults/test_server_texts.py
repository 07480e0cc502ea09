"""Fault 175: what servers send is shown without control characters and bidirectional marks, and never as a formula."""

import csv
import json
import unicodedata
from io import StringIO
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from llm_effects import LLMRequest, check_health, describe, generate, open_env, run
from llm_effects.effects.effect import result_of
from llm_effects.reports import to_csv
from llm_effects.telemetry.otel import open_telemetry
from llm_effects.values import CachePolicy
from llm_effects.values.validation import printable
from tests.fixtures.chaos import WHOLE, Chaos, says
from tests.fixtures.faults import MODES, config_of, model, run_case
from tests.fixtures.servers import reply, reply_json
from tests.fixtures.usage_rows import report_of, row

pytestmark = pytest.mark.anyio

STEERING: Final = "\x1b]0;pwned\x07\x1b[2J\r\n\x00\x9b31m\u202edaolyap\u2066\u200f\u2028\ufeff\ud800\U000e0041"
BIDI: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def assert_plain(text: str) -> None:
    assert [each for each in text if unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"}] == []


@given(st.text(st.characters()))
def test_fault_175_a_printable_text_steers_nothing_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert not BIDI & {unicodedata.bidirectional(each) for each in shown}
    assert text == shown or not text.isprintable()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [307, 400, 401, 404, 429, 500, 503])
async def test_fault_175_an_error_is_plain_text(chaos: Chaos, status: int, mode: str) -> None:
    error = {"message": STEERING, "code": STEERING, "type": STEERING, "param": STEERING}
    page = f"<html>{STEERING}</html>".encode(errors="replace")
    for answer in (reply_json({"error": error}, f"{status} Wrong"), reply(page, f"{status} Wrong")):
        outcome = await run_case(chaos, {"first": model(chaos, says(answer))}, mode=mode, max_retries=0)
        for leaf in (outcome.error, *getattr(outcome.error, "errors", ())):
            texts = (
                describe(leaf),
                leaf.code,
                leaf.request_id,
                getattr(leaf, "message", ""),
                leaf.cause and leaf.cause.message,
            )
            assert_plain("".join(filter(None, texts)))


async def test_fault_175_the_names_and_warnings_of_an_answer_are_plain_text(chaos: Chaos) -> None:
    choice = {"index": 0, "finish_reason": STEERING, "message": {"role": "assistant", "content": "because"}}
    answer = reply_json({**WHOLE, "model": STEERING, "choices": [choice]})
    async with open_env(config_of({"first": model(chaos, says(answer))})) as env:
        response = (await run(generate(LLMRequest(prompt="why?")), env)).unwrap()
    assert response.warnings
    assert_plain(f"{response.served_model}{response.request_id}{''.join(response.warnings)}")


async def test_fault_175_health_is_plain_text(chaos: Chaos) -> None:
    listed = reply_json({"data": [{"id": STEERING}, {"id": "m"}]})
    refused = reply_json({"error": {"message": STEERING}}, "500 Wrong")
    for answer, wanted in ((listed, "m"), (listed, "other"), (refused, "m")):
        async with open_env(config_of({"first": model(chaos, says(answer), model=wanted)})) as env:
            [health] = (await run(check_health(), env)).unwrap()
        assert_plain(health.message + "".join(health.loaded))


@pytest.mark.parametrize(
    "text", ["=1+1", " =1+1", "\n=1+1", "\u202e=1+1", "\ufeff@SUM(1)", "\x00-1", "＝1+1", "\r\n+1", "\t=1"]
)
def test_fault_175_a_csv_cell_is_plain_text_and_no_formula(text: str) -> None:
    rows = [row(owner=text, served_model=text, tags=(text,), model=text)]
    [cells] = csv.DictReader(StringIO(to_csv(rows)))
    [usage] = csv.DictReader(StringIO(to_csv(report_of(*rows, by=("owner", "model")))))
    for cell in (cells["owner"], cells["served_model"], cells["model"], usage["owner"], usage["model"]):
        assert_plain(cell)
        assert cell.startswith("'")
    assert_plain(cells["tags"])
    assert not unicodedata.normalize("NFKC", cells["tags"]).startswith(("=", "+", "-", "@"))


async def test_fault_175_a_server_chooses_no_attribute_of_a_metric(chaos: Chaos) -> None:
    def named(name: str) -> Any:
        return says(reply_json({**WHOLE, "model": f"m-{name}"}))

    reader = InMemoryMetricReader()
    config = config_of({"first": model(chaos, *(named(str(number)) for number in range(20)))})
    async with open_env(config) as live:
        env = evolve(live, telemetry=open_telemetry(meters=MeterProvider([reader])))
        for _ in range(20):
            assert (await run(generate(LLMRequest(prompt="why?", cache=CachePolicy.BYPASS)), env)).unwrap()
        assert len({each.served_model for each in (await result_of(env.ledger.rows())).unwrap()}) == 20
    data = json.loads(reader.get_metrics_data().to_json())
    metrics = [
        metric for each in data["resource_metrics"] for scope in each["scope_metrics"] for metric in scope["metrics"]
    ]
    assert {metric["name"]: len(metric["data"]["data_points"]) for metric in metrics} == {
        "gen_ai.client.operation.duration": 1,
        "gen_ai.client.token.usage": 2,
    }
    assert "m-1" not in json.dumps(data)
