"""Fault 174: keys over plain HTTP go to literal loopback only; metadata services are refused, however spelt."""

from collections.abc import Callable
from typing import Any

import pytest

from llm_effects import Document, Image, InvalidRequest, ModelConfig
from llm_effects.providers.registry import target_of
from llm_effects.values.errors import ConfigurationError, checked

METADATA = [
    "169.254.169.254",
    "169.254.1.2",
    "169.254.169.254.",
    "2852039166",
    "0xA9FEA9FE",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "169%2E254%2E169%2E254",
    "１６９.２５４.１６９.２５４",
    "169。254。169。254",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::169.254.169.254]",
    "[2002:a9fe:a9fe::1]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fd00:ec2::254]",
    "[fd00:0ec2:0000::0254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "metadata.google.internal",
    "METADATA.google.internal.",
]


def problem_of(endpoint: str, **settings: Any) -> str:
    config = ModelConfig(provider="openai-compatible", model="x", endpoint=endpoint, **settings)
    error = target_of("m", config).failure()
    assert isinstance(error, ConfigurationError)
    return error.message


@pytest.mark.parametrize(
    "host",
    [
        "evil.localhost",
        "localhost.",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::]",
        "[::1%25lo]",
        "localhost.example",
    ],
)
@pytest.mark.parametrize("settings", [{"api_key": "k-12345678"}, {"headers": {"x-token": "k-12345678"}}])
def test_fault_174_no_key_goes_to_a_host_that_only_looks_like_this_machine(
    host: str, settings: dict[str, object]
) -> None:
    assert "never sent over plain HTTP" in problem_of(f"http://{host}:8000/v1", **settings)


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_fault_174_a_metadata_service_is_no_endpoint_in_any_spelling(scheme: str, host: str) -> None:
    assert "link-local address or a metadata service" in problem_of(f"{scheme}://{host}/v1")


@pytest.mark.parametrize("make", [Image, Document])
@pytest.mark.parametrize(
    "url",
    [
        *(f"http://{host}/latest/meta-data" for host in METADATA),
        "HTTP://user@169.254.169.254:80/x",
        "http:\\\\169.254.169.254\\x",
        "http://169.254.169.254\\@a.example/x",
        "http:///169.254.169.254/x",
        "http:////169.254.169.254/x",
    ],
)
def test_fault_174_no_server_is_asked_to_fetch_from_a_metadata_service(make: Callable[..., object], url: str) -> None:
    error = checked(make, url=url, media_type=None).failure()
    assert isinstance(error, InvalidRequest)
    assert "url: " in error.message


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/a.png",
        "http://localhost:9000/a.png",
        "http://192.168.1.7/a.png",
        "https://[2001:db8::1]/a.png",
    ],
)
def test_fault_174_other_pictures_are_fetched_as_before(url: str) -> None:
    assert Image(url=url).url == url
