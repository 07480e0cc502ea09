"""Who may ask an endpoint, for whom, and how much: keys, owners, budgets, bodies."""

import hmac
from typing import Any

import anyio
import httpx
import pytest
from attrs import define, evolve

from llm_effects import LLMConfig, LLMEnv, LLMRequest, ModelConfig, load_config, open_env, scripted_env
from llm_effects.asgi import app as app_module
from llm_effects.asgi import create_app
from llm_effects.config import BudgetConfig, Price, ServeConfig
from llm_effects.testing.scripted import ONE_MODEL, scripted
from llm_effects.values.secrets import Secret
from tests.fixtures.endpoint import QUESTION, ask, client_of, with_keys

ADA, BOB = "key-of-ada-1234567890", "key-of-bob-1234567890"
KEYED = with_keys(ONE_MODEL, ada=ADA, bob=BOB)

# Keys.


@pytest.mark.anyio
async def test_the_owner_of_a_key_is_the_owner_of_its_requests() -> None:
    model = scripted("ok")
    env = scripted_env(clients=model, config=KEYED)
    for key in (ADA, BOB):
        async with client_of(env, key) as client:
            assert (await ask(client)).status_code == 200
    assert [request.owner for request in model.requests] == ["ada", "bob"]


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {ADA}", ADA, f"Bearer {ADA}x"])
async def test_a_missing_or_wrong_key_is_refused_before_anything_is_read(header: str) -> None:
    async with client_of(scripted_env("never", config=KEYED)) as client:
        client.headers["authorization"] = header
        for response in (await client.get("/models"), await client.get("/models/auto"), await ask(client)):
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert "key-of-ada" not in response.text
            assert "wrong" not in response.text


@pytest.mark.anyio
async def test_fault_253_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, compare = list[bytes](), hmac.compare_digest

    def counted(one: Any, other: Any) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for key in (ADA, BOB, "key-of-none"):
        async with client_of(scripted_env(config=KEYED), key) as client:
            await client.get("/models")
            assert len(compared) == 2
            compared.clear()


def test_fault_253_a_key_is_shown_nowhere() -> None:
    assert ADA not in f"{KEYED!r} {KEYED.serve.keys}"
    with pytest.raises(Exception, match="two owners") as raised:
        with_keys(ONE_MODEL, ada=ADA, bob=ADA)
    assert ADA not in str(raised.value)
    wrong = load_config({"models": {}, "serve": {"keys": {"ada": f"{ADA} {ADA}"}}}).failure()
    assert "serve.keys: the key of 'ada' contains a space" in repr(wrong)
    assert ADA not in repr(wrong)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ada": " "}, "keys: the key of 'ada' must not be blank"),
        ({"": ADA}, "keys: the owner '': must not be blank"),
        ({"ada": "<key>"}, "keys: the key of 'ada' is a placeholder"),
        ({"ada": 7}, "keys: the key of 'ada' must be a text, not int"),
        ({"ada": ADA, "bob": ADA}, "keys: two owners have the same key"),
        ([ADA], "keys: must be a table, not list"),
    ],
)
def test_impossible_keys_are_rejected(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig(keys=keys)


def test_a_key_comes_from_a_variable() -> None:
    assert load_config(environ={"LLM_SERVE_KEY": ADA}).unwrap().serve.keys == {"default": Secret(ADA)}
    source = {"models": {}, "serve": {"keys": {"ada": "env:K"}, "body_bytes": 10}}
    assert load_config(source, environ={"K": ADA}).unwrap().serve == ServeConfig(keys={"ada": ADA}, body_bytes=10)


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_identifies_the_owner_of_a_key(*, is_async: bool) -> None:
    def identify(key: Secret) -> str | None:
        return "ada" if key == Secret(ADA) else None

    async def identify_later(key: Secret) -> str | None:
        await anyio.lowlevel.checkpoint()
        return identify(key)

    model = scripted("ok")
    env, function = scripted_env(clients=model), identify_later if is_async else identify
    async with client_of(env, ADA, identify=function) as ada, client_of(env, BOB, identify=function) as bob:
        assert ((await ask(ada)).status_code, (await ask(bob)).status_code) == (200, 401)
    assert [request.owner for request in model.requests] == ["ada"]


ODD_OWNERS: list[Any] = [None, "", " \t", False, True, 0, 7, b"ada", ["ada"], "a\0b", "\ud800", "a" * 513]


@pytest.mark.anyio
@pytest.mark.parametrize("owner", ODD_OWNERS, ids=lambda each: repr(each)[:12])
async def test_fault_292_what_no_store_could_take_for_an_owner_is_refused(
    owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(scripted_env("never"), ADA, identify=lambda _: owner) as client:
        with caplog.at_level("WARNING", "llm_effects"):
            for response in (await client.get("/models"), await client.get("/models/auto"), await ask(client)):
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
                assert response.json()["error"] == {
                    "message": "the key is not valid",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_api_key",
                }
    assert ("the owner that identify returned: must" in caplog.text) is bool(owner)
    assert ADA not in caplog.text


@pytest.mark.anyio
async def test_fault_292_an_owner_is_passed_on_character_by_character() -> None:
    model = scripted("ok")
    async with client_of(scripted_env(clients=model), ADA, identify=lambda _: " ada ") as client:
        assert (await ask(client)).status_code == 200
    assert [request.owner for request in model.requests] == [" ada "]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_anyone": "false"}, "allow_anyone: must be bool, not str"),
        ({"identify": {ADA: "ada"}}, "identify: must be a function of a key, not dict"),
    ],
)
def test_fault_292_what_would_open_or_break_the_gate_is_rejected_at_once(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_app(scripted_env("never"), **options)


@pytest.mark.parametrize("source", ["llm.toml", {"models": {}}])
def test_an_endpoint_over_no_configuration_is_told_the_remedy(source: Any) -> None:
    with pytest.raises(TypeError, match=r"write load_config\(\.\.\.\)\.unwrap\(\)"):
        create_app(source)


@pytest.mark.anyio
async def test_each_owner_has_a_budget() -> None:
    dear = ModelConfig(provider="lm-studio", price=Price(input=1, output=10))
    budget = BudgetConfig(name="each owner", limit_usd="0.0006", scope="owner:*")
    config = with_keys(LLMConfig(models={"a": dear}, budgets=(budget,)), ada=ADA, bob=BOB)
    env = scripted_env("ok", config=config)
    async with client_of(env, ADA) as ada, client_of(env, BOB) as bob:
        spent = [await ask(ada, max_tokens=50) for _ in range(20)]
        assert (spent[0].status_code, spent[-1].status_code) == (200, 429)
        assert spent[0].json()["llm_effects"]["cost_usd"] is not None
        assert spent[-1].json()["error"]["code"] == "insufficient_quota"
        assert spent[-1].headers["x-should-retry"] == "false"
        assert (await ask(bob, max_tokens=50)).status_code == 200


@pytest.mark.anyio
async def test_owners_share_no_cached_answer() -> None:
    answers = iter(range(10))
    model = scripted(lambda _: f"{next(answers)}")
    async with open_env(KEYED) as live:
        env = evolve(live, clients=model)
        async with client_of(env, ADA) as ada, client_of(env, BOB) as bob:
            said = [(await ask(client, stream=streamed)).text for client in (ada, ada, bob) for streamed in (False,)]
    assert ['"cached":true' in text for text in said] == [False, True, False]
    assert len(model.requests) == 2


# Without keys: from this machine only.


async def asked_from(env: LLMEnv, peer: str = "127.0.0.1", host: str = "localhost", **headers: str) -> int:
    transport = httpx.ASGITransport(create_app(env), client=(peer, 5000))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}/v1") as client:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return (await client.post("/chat/completions", json=QUESTION, headers=named)).status_code


@pytest.mark.anyio
async def test_fault_252_without_keys_only_this_machine_is_served() -> None:
    env = scripted_env("ok")
    assert await asked_from(env) == 200
    assert await asked_from(env, "::1", "[::1]:8000") == 200
    assert await asked_from(env, "::ffff:127.0.0.1", "127.0.0.1:8000") == 200
    assert await asked_from(env, origin="http://localhost:3000") == 200
    assert await asked_from(env, "192.168.0.7") == 403  # another machine
    assert await asked_from(env, "") == 403  # a socket of a proxy
    assert await asked_from(env, x_forwarded_for="192.168.0.7") == 403  # through a proxy on this machine
    assert await asked_from(env, origin="https://evil.example") == 403  # a page in a browser here
    assert await asked_from(env, origin="null") == 403
    assert await asked_from(env, host="evil.example") == 403  # whose name was pointed at this machine
    assert await asked_from(env, origin="http://[::1") == 403


@pytest.mark.anyio
async def test_without_keys_anyone_is_served_only_if_asked_for() -> None:
    app = create_app(scripted_env("ok"), allow_anyone=True)
    transport = httpx.ASGITransport(app, client=("192.168.0.7", 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://service/v1") as client:
        assert (await ask(client)).status_code == 200


@pytest.mark.anyio
async def test_with_keys_other_machines_are_served() -> None:
    transport = httpx.ASGITransport(create_app(scripted_env("ok", config=KEYED)), client=("192.168.0.7", 5000))
    headers = {"authorization": f"bearer {ADA}", "origin": "https://app.example"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service/v1", headers=headers) as client:
        assert (await ask(client)).status_code == 200


# Bodies.


@define
class Pieces(httpx.AsyncByteStream):
    """A body that has no end, or that stalls after its first piece."""

    stalls: bool = False
    sent: int = 0

    def __aiter__(self) -> "Pieces":  # type: ignore[override]
        return self

    async def __anext__(self) -> bytes:
        self.sent += 1
        await anyio.sleep(30 if self.stalls and self.sent > 1 else 0)
        return b"x" * 50


def posting(body: Pieces) -> httpx.Request:
    url = "http://localhost/v1/chat/completions"
    return httpx.Request("POST", url, headers={"host": "localhost"}, stream=body)


SMALL = evolve(ONE_MODEL, serve=ServeConfig(body_bytes=200))


@pytest.mark.anyio
async def test_fault_251_a_body_that_is_too_long_is_refused_as_soon_as_that_is_known() -> None:
    endless = Pieces()
    model = scripted("never")
    async with client_of(scripted_env(clients=model, config=SMALL)) as client:
        declared = await client.post("/chat/completions", content=b"x" * 201)
        absurd = await client.post("/chat/completions", content=b"{}", headers={"content-length": "9" * 5_000})
        streamed = await client.send(posting(endless))
    for response in (declared, absurd, streamed):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert endless.sent < 10
    assert model.requests == ()


@pytest.mark.anyio
async def test_fault_251_a_body_that_does_not_arrive_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "BODY_S", 0.02)

    async with client_of(scripted_env("never")) as client:
        with anyio.fail_after(20):
            assert (await client.send(posting(Pieces(stalls=True)))).status_code == 408


@pytest.mark.anyio
async def test_fault_251_a_compressed_body_is_refused() -> None:
    async with client_of(scripted_env("never")) as client:
        response = await client.post("/chat/completions", content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415


@pytest.mark.anyio
async def test_a_long_body_is_read_in_a_thread() -> None:
    model = scripted("ok")
    async with client_of(scripted_env(clients=model)) as client:
        assert (await ask(client, messages=[{"role": "user", "content": "x" * 300_000}])).status_code == 200
    (request,) = model.requests
    assert isinstance(request, LLMRequest)
    assert len(request.messages[0].text) == 300_000
