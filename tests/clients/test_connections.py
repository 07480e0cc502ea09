"""What the transport asks of an HTTP library: addresses, certificates, and no import before its first use."""

import ssl
import sys
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_effects.clients.transport import connections
from llm_effects.clients.transport.connections import address_of, trusted
from tests.fixtures.chaos import WHOLE
from tests.fixtures.house import run_python
from tests.fixtures.servers import answering, reply_json, serving


@given(st.from_regex(connections._NORMAL, fullmatch=True))
@example("https://x.openai.azure.com/openai/deployments/gpt-5.4:mini/chat?api-version=2026-10-01&beta=~a")
@example("http://127.0.0.1:65000/")
def test_an_address_in_its_normal_form_is_what_httpx_makes_of_it(url: str) -> None:
    assert connections._parse(url) == address_of(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://h:80/v1",
        "http://h:65536/v1",
        "http://H/v1",
        "http://h/./v1",
        "http://h/a b",
        "http://h",
        "http://1.2.3/v1",
    ],
)
def test_any_other_address_is_left_to_httpx(url: str) -> None:
    assert connections._NORMAL.fullmatch(url) is None


def test_certificates_are_those_of_the_environment_or_of_certifi(
    monkeypatch: pytest.MonkeyPatch, own_certificate: Path
) -> None:
    def load() -> ssl.SSLContext:
        trusted.cache_clear()
        return trusted()

    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    try:
        assert len(load().get_ca_certs()) > 50
        monkeypatch.setenv("SSL_CERT_DIR", str(own_certificate))
        assert load().get_ca_certs() == []  # a folder is looked into at each handshake
        monkeypatch.setenv("SSL_CERT_FILE", str(own_certificate / "cert"))
        assert len(load().get_ca_certs()) == 1
        assert (load().verify_mode, load().check_hostname) == (ssl.CERT_REQUIRED, True)
    finally:
        trusted.cache_clear()


def test_two_threads_may_import_httpx_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "httpx")
    monkeypatch.setattr(connections, "import_module", lambda _: sys.modules.pop("httpx._main"))  # the other was faster
    connections.import_httpx()
    assert "httpx._main" not in sys.modules


CALL: Final = """
import sys, anyio
from llm_effects import *
from llm_effects.clients.transport.connections import trusted

async def main():
    models = {{"m": ModelConfig(provider="openai-compatible", model="m", endpoint="{url}")}}
    async with open_env(LLMConfig(models=models, transport="{kind}")) as env:
        assert (await run(generate("why?"), env)).unwrap().content

anyio.run(main)
print(*sys.modules, f"certificates={{trusted.cache_info().currsize}}")
"""


def loaded_by_a_call(kind: str) -> set[str]:
    with serving(answering(reply_json(WHOLE))) as server:
        return set(run_python(CALL.format(url=server.url, kind=kind)).split())


def test_a_call_over_aiohttp_imports_no_httpx_and_loads_certificates_only_for_https() -> None:
    loaded = loaded_by_a_call("fast")
    assert {"httpx", "httpcore", "certificates=1"} & loaded == set()
    assert {"aiohttp", "certificates=0"} <= loaded


def test_a_call_over_httpx_imports_it_without_its_command_line() -> None:
    loaded = loaded_by_a_call("httpx")
    assert {"aiohttp", "click", "rich", "pygments", "httpx._main", "certificates=1"} & loaded == set()
    assert {"httpx", "certificates=0"} <= loaded
