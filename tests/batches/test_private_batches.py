"""Batches at a provider, of what is redacted, and of what stays on this machine."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import (
    LLM,
    AsyncLLM,
    Image,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    Text,
    generate_many,
    run,
    scripted_env,
    usage_report,
)
from llm_effects.batches import collect_batch, file_journal, store_journal, submit_batch
from llm_effects.batches.journals import Journal, no_journal
from llm_effects.effects.effect import result_of
from llm_effects.policies.redaction import UNCOVERED, Redaction
from llm_effects.testing import scripted
from llm_effects.values.placeholders import PLACEHOLDER, Finding
from tests.fixtures.batch_server import PROTOCOLS, BatchServer, Protocol, config_of, env_of, model_of

pytestmark = pytest.mark.anyio

ADA, BOB = "ada@example.org", "bob@example.org"
KEY = "a key for these tests"
PROMPTS = [f"Mail {ADA}", "Why?", f"Mail {BOB}"]


def find(text: str) -> list[Finding]:
    return [Finding(each.start(), each.end(), "EMAIL") for each in re.finditer(r"\w+@example\.org", text)]


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    value: Protocol = request.param
    return value


def redacting(server: BatchServer, protocol: Protocol, after: LLMEnv | None = None, key: str | None = KEY) -> LLMEnv:
    return evolve(env_of(server, config_of(protocol), after), redact=Redaction(find, key=key))


def sent_to(server: BatchServer) -> str:
    return json.dumps([[*job.items.values()] for job in server.jobs.values()]) + repr(server.files)


# Redaction.


async def test_fault_214_a_batch_holds_placeholders_and_another_process_restores_them(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    env = redacting(server, protocol)
    await run(submit_batch(PROMPTS, journal), env)
    another = redacting(server, protocol, after=env)
    results = (await run(collect_batch(PROMPTS, journal), another)).unwrap()
    assert [each.unwrap().content for each in results] == [f"answer to {each}" for each in PROMPTS]
    assert results[0].unwrap().parts == (Text(f"answer to Mail {ADA}"),)
    sent = sent_to(server)
    assert "@example" not in sent
    assert len(set(PLACEHOLDER.findall(sent))) == 2


async def test_fault_214_generate_many_by_a_provider_is_redacted(protocol: Protocol, tmp_path: Path) -> None:
    server = BatchServer()
    env, journal = redacting(server, protocol), file_journal(tmp_path / "run.jsonl")
    many = generate_many(PROMPTS, journal=journal, via="provider")
    results = (await run(many, env)).unwrap()
    assert [each.unwrap().content for each in results] == [f"answer to {each}" for each in PROMPTS]
    assert "@example" not in sent_to(server)
    assert (await run(many, redacting(server, protocol, after=env))).unwrap() == results  # from the journal
    by_calls = (await run(generate_many(PROMPTS, journal=journal), evolve(env, redact=None))).unwrap()
    assert by_calls == results
    assert len(server.jobs) == 1


async def test_fault_217_an_answer_of_a_batch_has_values_of_its_own_request_only() -> None:
    server = BatchServer()
    env = redacting(server, "openai")
    asked = [LLMRequest(prompt=f"Mail {ADA}", owner="a"), LLMRequest(prompt="Why?"), LLMRequest(prompt=f"To {ADA}")]
    await run(submit_batch(asked, store_journal("run")), env)
    name = PLACEHOLDER.findall(sent_to(server))[0]
    server.reply_to = lambda _: f"{name}!"
    contents = [each.unwrap().content for each in (await run(collect_batch(asked, store_journal("run")), env)).unwrap()]
    assert contents == [f"{ADA}!", f"{name}!", f"{name}!"]  # the other owner has another placeholder


async def test_fault_219_a_typed_answer_of_a_batch_is_restored_as_json() -> None:
    secret = 'pass"w0rd'
    env = scripted_env(
        lambda request: f'{{"key": "{request.messages[0].text if request.messages else request.prompt}"}}',
        config=config_of("openai"),
    )
    env = evolve(env, redact=Redaction(lambda text: [Finding(0, len(text))], key=KEY))
    asked = [LLMRequest(prompt=secret, response_schema={"type": "object"})]
    await run(submit_batch(asked, store_journal("run")), env)
    (result,) = (await run(collect_batch(asked, store_journal("run")), env)).unwrap()
    assert json.loads(result.unwrap().content) == {"key": secret}


async def test_a_picture_in_a_batch_has_a_warning() -> None:
    env = evolve(scripted_env("a cat", config=config_of("openai")), redact=Redaction(find, key=KEY))
    asked = [LLMRequest(messages=(Message("user", (Text("?"), Image(b"\x89PNG", "image/png"))),))]
    await run(submit_batch(asked, store_journal("run")), env)
    (result,) = (await run(collect_batch(asked, store_journal("run")), env)).unwrap()
    assert UNCOVERED in result.unwrap().warnings


async def test_without_a_key_of_its_own_nothing_is_submitted(protocol: Protocol) -> None:
    server = BatchServer()
    env = redacting(server, protocol, key=None)
    refused = (await run(submit_batch(PROMPTS, store_journal("run")), env)).unwrap().refused
    assert {error.message for _, error in refused} == {
        "redact: a batch may be collected by another process: give Redaction a key of your own"
    }
    many = (await run(generate_many(PROMPTS, via="provider"), env)).unwrap()
    assert [each.failure().tag for each in many] == ["ConfigurationError"] * 3
    assert server.asked == []


async def test_fault_216_one_text_that_cannot_be_redacted_does_not_cost_the_others(protocol: Protocol) -> None:
    def find_or_raise(text: str) -> list[Finding]:
        if "Why" in text:
            raise ValueError(text)
        return find(text)

    server, journal = BatchServer(), store_journal("run")
    env = evolve(redacting(server, protocol), redact=Redaction(find_or_raise, key=KEY))
    status = (await run(submit_batch(PROMPTS, journal), env)).unwrap()
    assert [(at, error.message) for at, error in status.refused] == [
        (1, "redact: find_or_raise raised ValueError, so nothing was sent")
    ]
    assert "Why?" not in sent_to(server)
    results = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    assert [is_successful(each) for each in results] == [True, False, True]


@pytest.mark.parametrize("wrong", ["another key", "none", "broken"])
async def test_an_answer_that_cannot_be_restored_is_left_at_the_provider(wrong: str, protocol: Protocol) -> None:
    def broken(_: str) -> list[Finding]:
        raise ValueError

    redactions = {"another key": Redaction(find, key=KEY * 2), "none": None, "broken": Redaction(broken, key=KEY)}
    server, journal = BatchServer(), store_journal("run")
    env = redacting(server, protocol)
    await run(submit_batch(PROMPTS, journal), env)
    results = (await run(collect_batch(PROMPTS, journal), evolve(env, redact=redactions[wrong]))).unwrap()
    assert [each.failure().tag for each in results] == ["ConfigurationError"] * 3
    many = await run(generate_many(PROMPTS, journal=journal, via="provider"), evolve(env, redact=redactions[wrong]))
    assert many.failure().message.startswith("redact: ")
    again = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    assert [each.unwrap().content for each in again] == [f"answer to {each}" for each in PROMPTS]
    assert len(server.jobs) == 1


async def test_a_batch_from_before_redaction_is_collected_as_it_is(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    env = redacting(server, protocol)
    await run(submit_batch(PROMPTS, journal), evolve(env, redact=None))
    results = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    assert [each.unwrap().content for each in results] == [f"answer to {each}" for each in PROMPTS]


async def test_the_other_faces_redact_batches_too() -> None:
    model = scripted(lambda request: f"<{request.prompt}>")
    env = scripted_env(config=config_of("openai"), clients=model)
    async with AsyncLLM(env, redact=Redaction(find, key=KEY)) as llm:
        await llm.submit_batch(PROMPTS, store_journal("run"))
        answers = await llm.collect_batch(PROMPTS, store_journal("run"))
    assert [each.content for each in answers if isinstance(each, LLMResponse)] == [f"<{each}>" for each in PROMPTS]
    assert "@example" not in repr(model.requests)


def test_the_blocking_face_redacts_batches_too(tmp_path: Path) -> None:
    model = scripted(lambda request: f"<{request.prompt}>")
    env = scripted_env(config=config_of("openai"), clients=model)
    with LLM(env, redact=Redaction(find, key=KEY)) as llm:
        llm.submit_batch(PROMPTS, file_journal(tmp_path / "run.jsonl"))
        answers = llm.collect_batch(PROMPTS, file_journal(tmp_path / "run.jsonl"))
    assert [each.content for each in answers if isinstance(each, LLMResponse)] == [f"<{each}>" for each in PROMPTS]
    assert "@example" not in repr(model.requests)


# What stays on this machine.

PRIVATE = LLMRequest(prompt="Ada earns 7000", stays="machine", tags=("private",))


def far(config: LLMConfig) -> LLMConfig:
    models = {name: evolve(each, endpoint="https://batches.example/v1") for name, each in config.models.items()}
    return evolve(config, models=models)


@pytest.mark.parametrize("journal", [no_journal, store_journal("run")])
async def test_fault_207_a_labelled_request_is_in_no_batch_for_another_machine(
    protocol: Protocol, journal: Journal
) -> None:
    server = BatchServer()
    env = env_of(server, far(config_of(protocol)))
    many = (await run(generate_many(["a", PRIVATE, "c"], journal=journal, via="provider"), env)).unwrap()
    assert [each.map(lambda answer: answer.content).value_or("") for each in many] == ["answer to a", "", "answer to c"]
    assert many[1].failure().message.startswith("stays: this data must stay on this machine")
    assert "7000" not in sent_to(server)
    report = (await run(usage_report(by="left_machine"), env)).unwrap()
    assert [(row.group, row.attempts) for row in report.rows] == [(("yes",), 2)]


async def test_fault_207_beside_a_local_model_without_batches_it_is_refused_too(protocol: Protocol) -> None:
    server, config = BatchServer(), far(config_of(protocol))
    local = ModelConfig(provider="lm-studio", model="m")
    env = env_of(server, evolve(config, models={**config.models, "studio": local}))
    status = (await run(submit_batch(["a", PRIVATE], store_journal("run")), env)).unwrap()
    assert [(at, error.tag) for at, error in status.refused] == [(1, "ConfigurationError")]
    assert "no model for this request takes batches (its candidates: studio)" in status.refused[0][1].message
    assert "7000" not in sent_to(server)


async def test_fault_209_a_server_of_batches_here_gets_it_and_the_answer_stays(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    env = env_of(server, config_of(protocol))
    for _ in range(2):  # the second time from the journal
        private, public = (await run(generate_many([PRIVATE, "b"], journal=journal, via="provider"), env)).unwrap()
        assert (private.unwrap().stays, public.unwrap().stays) == ("machine", None)
        assert private.unwrap().parts[0].stays == "machine"
    rows = (await result_of(env.ledger.rows())).unwrap()
    assert [row.left_machine for row in rows] == [False, False]


async def test_fault_211_localhost_is_looked_up_before_a_batch_is_submitted(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_: str, __: object) -> list[Any]:
        return [(0, 0, 0, "", ("10.0.0.7", 0))]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    server = BatchServer()
    env = env_of(server, LLMConfig(models={protocol: model_of(protocol, "http://localhost:9/v1")}))
    refused = (await run(submit_batch([PRIVATE], store_journal("run")), env)).unwrap().refused
    assert "localhost is at 10.0.0.7, which is not a loopback address" in refused[0][1].message
    assert server.asked == []
    assert (await run(submit_batch(["a"], store_journal("other")), env)).unwrap().refused == ()


async def test_what_is_redacted_and_stays_is_both() -> None:
    model = scripted(lambda request: f"<{request.prompt}>")
    env = scripted_env(config=config_of("openai"), clients=model)
    env = evolve(env, redact=Redaction(find, key=KEY))
    asked = [LLMRequest(prompt=f"Mail {ADA}", stays="machine")]
    (result,) = (await run(generate_many(asked, via="provider"), env)).unwrap()
    assert (result.unwrap().content, result.unwrap().stays) == (f"<Mail {ADA}>", "machine")
    assert "@example" not in repr(model.requests)
    assert httpx.URL(env.config.models["openai"].endpoint or "").host == "127.0.0.1"
