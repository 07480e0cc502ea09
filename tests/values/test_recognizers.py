"""Recognizers: which secrets and identifiers are found, what is left alone, and that a search is linear."""

import time
from importlib.util import find_spec

import pytest

from llm_effects.values.extras import install_command
from llm_effects.values.recognizers import find_identifiers, find_secrets, find_sensitive

NEEDS_STDNUM = pytest.mark.skipif(
    find_spec("stdnum") is None, reason="python-stdnum is not installed: pip install 'llm-effects[redaction]'"
)

SECRETS = [
    ("OPENAI_API_KEY=sk-proj-abc123def456ghi789", "sk-proj-abc123def456ghi789"),
    ("use sk-ant-api03-AAAA1111BBBB2222 now", "sk-ant-api03-AAAA1111BBBB2222"),
    ("key AKIAIOSFODNN7EXAMPLE.", "AKIAIOSFODNN7EXAMPLE"),
    ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
    (f"ghp_{'a1' * 18}", f"ghp_{'a1' * 18}"),
    (f"github_pat_{'a1' * 18}", f"github_pat_{'a1' * 18}"),
    ("glpat-abcdefghij0123456789", "glpat-abcdefghij0123456789"),
    ("xoxb-1234567890-abc", "xoxb-1234567890-abc"),
    ("https://hooks.slack.com/services/T0000/B0000/abcdefghij", "T0000/B0000/abcdefghij"),
    (f"hf_{'aB' * 17}", f"hf_{'aB' * 17}"),
    ("Authorization: Bearer abcdef0123456789==", "abcdef0123456789=="),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2ln", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2ln"),
    ("id-eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2ln", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.c2ln"),
    ("postgresql://app:hunter2@db/talks", "hunter2"),
    ("password: hunter2!", "hunter2!"),
    ('"client_secret": "a1b2c3d4"', "a1b2c3d4"),
    ("export DB_PASSWORD='a-b-c-d'", "a-b-c-d"),
    ("AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq==", None),
]

PEM = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIE+/=\n-----END RSA PRIVATE KEY-----"

NO_SECRETS = [
    "The password: please choose a new one.",
    "secret: none",
    "A sk-learn-like-pipeline-of-steps is fine.",
    "the token limit is 4096",
    "monkey: bananas2go",
    "[PASSWORD_abcdefghijkl]",
    "password: [PASSWORD_abcdefghijkl]",
]

IDENTIFIERS = [
    ("Mail ada@example.org, not @ada.", [("EMAIL", "ada@example.org")]),
    ("ada.l+x@mail.example.co.uk.", [("EMAIL", "ada.l+x@mail.example.co.uk")]),
    ("jürgen@exämple.de", [("EMAIL", "jürgen@exämple.de")]),
    ("call +49 151 2345 6789 now", [("PHONE", "+49 151 2345 6789")]),
    ("or (415) 555-2671 or 415-555-2671", [("PHONE", "(415) 555-2671"), ("PHONE", "415-555-2671")]),
    ("from 8.8.8.8:53 and 10.0.0.1 and 127.0.0.1:80, or 9.9.9.9.", [("IP", "8.8.8.8"), ("IP", "9.9.9.9")]),
    ("2001:4860:4860::8888 at 12:30:45", [("IP", "2001:4860:4860::8888")]),
    ("DE89 3704 0044 0532 0130 00 BIC COBADEFF", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
    ("GB82WEST12345698765432", [("IBAN", "GB82WEST12345698765432")]),
    ("4111 1111 1111 1111", [("CARD", "4111 1111 1111 1111")]),
    ("5555-5555-5555-4444.", [("CARD", "5555-5555-5555-4444")]),
    ("amex 3782-822463-10005", [("CARD", "3782-822463-10005")]),
    ("536-90-4399", [("NATIONAL_ID", "536-90-4399")]),
    ("RCCMNL83S18D969H", [("NATIONAL_ID", "RCCMNL83S18D969H")]),
    ("2 95 10 99 126 111 93", [("NATIONAL_ID", "2 95 10 99 126 111 93")]),
    ("54362315K and X2482300W", [("NATIONAL_ID", "54362315K"), ("NATIONAL_ID", "X2482300W")]),
    ("Id 390.533.447-05.", [("NATIONAL_ID", "390.533.447-05")]),
    ("756.9217.0769.85", [("NATIONAL_ID", "756.9217.0769.85")]),
    ("2341 2341 2346.", [("NATIONAL_ID", "2341 2341 2346")]),
]

NO_IDENTIFIERS = [
    "order 4111 1111 1111 1112",
    "DE89 3704 0044 0532 0130 01",
    "version 1.2.3 of 2026-11-29 at 18:10:56",
    "666-12-3456",
    "12345678A",
    "[EMAIL_abcdefghijkl]",
    "a @ b",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_is_found(text: str, secret: str | None) -> None:
    expected = text.partition("=")[2] if secret is None else secret
    assert expected in [text[each.start : each.end] for each in find_secrets(text)]


def test_a_private_key_is_found_whole() -> None:
    (found,) = find_secrets(f"This:\n{PEM}\n")
    assert (found.kind, f"This:\n{PEM}\n"[found.start : found.end]) == ("PRIVATE_KEY", PEM)


@pytest.mark.parametrize("text", NO_SECRETS)
def test_ordinary_text_is_no_secret(text: str) -> None:
    assert find_secrets(text) == ()


@NEEDS_STDNUM
@pytest.mark.parametrize(("text", "expected"), IDENTIFIERS)
def test_an_identifier_is_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert sorted((each.kind, text[each.start : each.end]) for each in find_identifiers(text)) == sorted(expected)
    assert set(find_identifiers(text)) <= set(find_sensitive(text))


@NEEDS_STDNUM
@pytest.mark.parametrize("text", NO_IDENTIFIERS)
def test_ordinary_text_is_no_identifier(text: str) -> None:
    assert find_identifiers(text) == ()


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_effects.values import recognizers

    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    recognizers._validators.cache_clear()
    monkeypatch.setattr(recognizers, "import_module", absent)
    with pytest.raises(ModuleNotFoundError) as problem:
        find_sensitive("?")
    assert str(problem.value) == f"find_identifiers needs python-stdnum: {install_command('redaction')}"


HOSTILE = [
    "a",
    "1 ",
    "A1 ",
    ":",
    "-----BEGIN PRIVATE KEY-----",
    "token",
    "sk-",
    "eyJ",
    "eyJ-",
    "-eyJaaaaaaaa.eyJaaaaaaaa",
    "a.",
    "1.",
    "+1",
    "://a:",
    "a@",
    "pwd=",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_search_is_linear(piece: str) -> None:
    find = find_secrets if find_spec("stdnum") is None else find_sensitive

    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        began = time.process_time()
        find(text)
        return time.process_time() - began

    seconds(1_000)
    assert seconds(400_000) < max(0.2, 40 * seconds(40_000))
