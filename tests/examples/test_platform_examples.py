"""The examples of the platform: the anomalies, the component and the configuration change."""

import json
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve

from llm_effects import scripted_env
from llm_effects.testing import Chunks
from tests.fixtures.examples import load

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def analysis() -> ModuleType:
    return load("analyze_anomaly")


@pytest.fixture(scope="module")
def component() -> ModuleType:
    return load("generate_ui_component")


@pytest.fixture(scope="module")
def config() -> ModuleType:
    return load("manage_config")


def test_the_series_comes_from_its_generator(analysis: ModuleType) -> None:
    generator = load("data/make_latency")
    assert analysis.SERIES.read_text(encoding="utf-8") == generator.table()


def test_exactly_the_known_anomalies_are_found(analysis: ModuleType) -> None:
    known = load("data/make_latency").ANOMALIES.values()
    anomalies = list(analysis.anomalies(analysis.read_series(analysis.SERIES)))
    assert [(each.first, each.last) for each in anomalies] == list(known)


def test_noise_is_not_an_anomaly(analysis: ModuleType) -> None:
    calm = [100 + 3 * ((17 * at) % 11 - 5) for at in range(300)]
    assert not list(analysis.anomalies(calm))


DESIGN = {
    "heading": "All services",
    "first_field": "p99_ms",
    "service": "plain",
    "p99_ms": "milliseconds",
    "error_rate": "percent",
    "healthy": "badge",
}


async def test_a_component_has_the_props_of_its_data(component: ModuleType) -> None:
    code = (await component.main(scripted_env(json.dumps(DESIGN)))).unwrap()
    fields = json.loads(component.SCHEMA.read_text(encoding="utf-8"))["fields"]
    assert not list(component.problems(code, fields))
    assert code.index("<th>p99 ms</th>") < code.index("<th>service</th>")
    assert "<td>{(100 * Number(row.error_rate)).toFixed(1)} %</td>" in code


async def test_a_component_is_shown_as_it_comes(component: ModuleType) -> None:
    text, lines = json.dumps(DESIGN), list[str]()
    chunks = Chunks(tuple(text[at : at + 6] for at in range(0, len(text), 6)))
    assert (await component.main(scripted_env(chunks), lines.append)).unwrap()
    assert lines[0] == "All s | service: ... | p99_ms: ... | error_rate: ... | healthy: ..."
    assert lines[-1] == "All services | service: plain | p99_ms: milliseconds | error_rate: percent | healthy: badge"
    assert len(set(lines)) > 5


async def test_an_invalid_design_goes_back_to_the_model(component: ModuleType) -> None:
    unsafe = json.dumps({**DESIGN, "heading": "</h2><script>"})
    env = scripted_env(unsafe, json.dumps(DESIGN))
    assert "<h2>All services</h2>" in (await component.main(env)).unwrap()
    assert "heading" in env.clients.requests[1].messages[-1].text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('from "react";', 'from "left-pad";', "imports left-pad"),
        ("  healthy: boolean;\n", "", "has the props"),
        ("row.healthy", "row.health", "uses row.health, which is not a prop"),
        ("</h2>", "</h3>", "closes h3, which is not open"),
        ("</section>", "", "leaves section open"),
        ("{rows.map(", "rows.map(", "has braces that do not match"),
    ],
)
def test_a_broken_component_is_refused(component: ModuleType, old: str, new: str, message: str) -> None:
    fields = {"service": "string", "p99_ms": "number", "error_rate": "number", "healthy": "boolean"}
    code = component.render(fields, component.Design(**DESIGN))
    assert old in code
    assert any(message in problem for problem in component.problems(code.replace(old, new), fields))


def proposal(*changes: tuple[str, float, float]) -> str:
    listed = [dict(zip(("setting", "old", "new"), change, strict=True)) for change in changes]
    return json.dumps({"changes": listed, "reason": "as requested"})


async def test_an_accepted_change_is_shown_as_a_diff(config: ModuleType) -> None:
    output = (await config.main(scripted_env(proposal(("alerts.p99_ms", 250, 200))))).unwrap()
    assert output.startswith("accepted:")
    assert "-p99_ms = 250.0\n+p99_ms = 200.0" in output


async def test_the_problems_of_a_proposal_go_back_to_the_model_once(config: ModuleType) -> None:
    env = scripted_env(proposal(("alerts.p99_ms", 999, 200)), proposal(("alerts.p99_ms", 250, 200)))
    assert "accepted" in (await config.main(env)).unwrap()
    assert "alerts.p99_ms is 250, not 999" in env.clients.requests[1].prompt  # type: ignore[attr-defined]


async def test_a_proposal_that_stays_wrong_is_refused_with_all_problems(config: ModuleType) -> None:
    invalid: Any = proposal(("alerts.p99_ms", 250, 1), ("alerts.p99_ms", 0.5, 300))
    output = (await config.main(scripted_env(invalid))).unwrap()
    assert output.startswith("refused: SchemaMismatch")
    assert all(
        each in output for each in ("may change once", "must be 50 to 5000, not 1", "alerts.p99_ms is 250, not 0.5")
    )


def test_a_change_keeps_comments_and_order(config: ModuleType) -> None:
    text = config.CONFIG.read_text(encoding="utf-8")
    change = config.Change(setting="retention.days", old=14.0, new=30.0)
    new = config.changed(text, config.Proposal(changes=[change], reason=""))
    assert config.values(new) == {**config.values(text), "retention.days": 30.0}
    assert new.splitlines()[0] == text.splitlines()[0]
    assert config.changed(new, config.Proposal(changes=[evolve(change, new=14.0)], reason="")) == text
