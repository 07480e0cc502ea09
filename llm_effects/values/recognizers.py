"""Recognizers: functions that find secrets and the usual identifiers in a text.

Secrets and addresses are known by their form. Identifiers with check digits are validated by python-stdnum (the extra
``[redaction]``), so that an order number is no card. Names of people have no form: bring a model of your own for them.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from ipaddress import ip_address
from typing import Final, TypeAlias

from llm_effects.values.extras import install_command
from llm_effects.values.placeholders import Finding

_Pattern: TypeAlias = tuple[str, re.Pattern[str]]


def find_sensitive(text: str) -> tuple[Finding, ...]:
    """Return the secrets and the identifiers of a text."""
    return (*find_secrets(text), *find_identifiers(text))


def _patterns(*rows: tuple[str, str]) -> tuple[_Pattern, ...]:
    return tuple((kind, re.compile(pattern)) for kind, pattern in rows)


# Secrets: by the prefixes that their issuers gave them for this purpose, or by the name before them. Where a pattern
# has a group, that is the secret. Repetitions are bounded or possessive, so that a search is linear.


_NAMES: Final = r"(?i:passw(?:or)?d|passphrase|pwd|secret|token|(?:api|access|account|auth|private)[_-]?key)"
_NO_WORD: Final = r"[^\s\"',;<>{}\[\]]{0,200}[\d!@#$%^&*_+/=-]"  # "the token: please" is no assignment
_ASSIGNED: Final = (
    rf"{_NAMES}[\w-]{{0,30}}[\"']?[ \t]{{0,4}}[:=][ \t]{{0,4}}[\"']?(?={_NO_WORD})([^\s\"',;<>{{}}\[\]]{{6,200}})"
)

# Each run of letters is read once, not from each "eyJ" in it.
_BEFORE_JWT: Final = r"(?<![\w-])(?=[\w-]*+\.eyJ[\w-]{8,}+\.)[\w-]*?"

_SECRETS: Final = _patterns(
    (
        "PRIVATE_KEY",
        r"-----BEGIN (?:[A-Z]{1,12} ){0,2}PRIVATE KEY-----(?:[^-]|-(?!-)){1,20000}+-----END [A-Z ]{1,40}-----",
    ),
    ("KEY", r"\b(?:sk|rk|pk|gsk|xai)[-_](?=[A-Za-z_-]{0,80}\d)[\w-]{16,}"),  # OpenAI, Anthropic, Stripe, Groq
    ("KEY", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS
    ("KEY", r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}"),  # Google
    ("KEY", r"\bgh[opsur]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}"),
    ("KEY", r"\bxox[abeoprs]-[\w-]{10,}|\bxapp-[\w-]{10,}|\bhooks\.slack\.com/services/([\w/]{20,})"),
    ("KEY", r"\bhf_[A-Za-z0-9]{30,}|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{50,}|\bdo[opr]_v1_[a-f0-9]{60,}"),
    ("KEY", r"\bSG\.[\w-]{16,40}\.[\w-]{16,}|\bwhsec_[A-Za-z0-9+/]{20,}"),  # SendGrid, webhooks of Stripe
    ("TOKEN", rf"{_BEFORE_JWT}\b(eyJ[\w-]{{8,}}+\.eyJ[\w-]{{8,}}+\.[\w-]*+)"),  # RFC 7519
    ("TOKEN", r"\b[Bb]earer[ \t]{1,4}([\w.~+/-]{16,}+=*+)"),
    ("PASSWORD", r"://[^\s/:@]{0,100}:([^\s/@]{1,200})@"),
    ("PASSWORD", _ASSIGNED),
)


def find_secrets(text: str) -> tuple[Finding, ...]:
    """Return the keys, tokens and passwords of a text.

    >>> find_secrets("export API_KEY=7f3a-99")
    (Finding(start=15, end=22, kind='PASSWORD'),)
    """
    return tuple(_found(text, _SECRETS))


def _found(text: str, patterns: tuple[_Pattern, ...]) -> Iterator[Finding]:
    for kind, pattern in patterns:
        for match in pattern.finditer(text):
            group = match.lastindex or 0
            yield Finding(match.start(group), match.end(group), kind)


# Identifiers: candidates by their form, checked by their check digits.


_ADDRESSES: Final = _patterns(
    ("EMAIL", r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{2,63}"),
    ("PHONE", r"(?<![\w+])\+\d{1,3}(?:[ ()./-]{0,2}\d){6,12}(?!\d)"),  # ITU E.164
    ("PHONE", r"(?<![\w-])(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?![\w-])"),
)

_IP: Final = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|(?=[\dA-Fa-f]{0,4}:)[\dA-Fa-f:]{2,38}[\dA-Fa-f](?![\w:]))"
)

_NUMBERS: Final = (
    ("IBAN", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", "iban"),
    (
        "CARD",
        r"(?<![\w.-])(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}|3[47]\d\d([ -]?)\d{6}\2\d{5})(?![ -]?\d|\w)",
        "luhn",
    ),
    ("NATIONAL_ID", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", "us.ssn"),
    ("NATIONAL_ID", r"\b[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-Z][0-9A-Z]{6}[A-Z]\b", "it.codicefiscale"),
    ("NATIONAL_ID", r"(?<![\w.-])[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?![\w-]|\.\d)", "fr.nir"),
    ("NATIONAL_ID", r"\b\d{8}-?[A-Z]\b", "es.dni"),
    ("NATIONAL_ID", r"\b[XYZ]\d{7}[A-Z]\b", "es.nie"),
    ("NATIONAL_ID", r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-]|\.\d)", "br.cpf"),
    ("NATIONAL_ID", r"(?<![\w.-])756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}(?![\w-]|\.\d)", "ch.ssn"),
    ("NATIONAL_ID", r"(?<![\w.-])\d{4} \d{4} \d{4}(?![\w-]|\.\d)", "in_.aadhaar"),
)
"""Kinds, forms, and the modules of python-stdnum that validate them: those that few other numbers pass."""


@cache
def _validators() -> tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...]:
    try:
        return tuple(
            (kind, re.compile(form), import_module(f"stdnum.{module}").is_valid) for kind, form, module in _NUMBERS
        )
    except ModuleNotFoundError:
        msg = f"find_identifiers needs python-stdnum: {install_command('redaction')}"
        raise ModuleNotFoundError(msg) from None


def find_identifiers(text: str) -> tuple[Finding, ...]:
    """Return the e-mail addresses, phone numbers, public IP addresses, IBANs, cards and national ids of a text."""
    validators = _validators()
    numbers = (each for row in validators for each in _valid_numbers(text, *row))
    return (*_found(text, _ADDRESSES), *_public_addresses(text), *numbers)


def _valid_numbers(text: str, kind: str, form: re.Pattern[str], is_valid: Callable[[str], bool]) -> Iterator[Finding]:
    for match in form.finditer(text):
        end = next(
            (end for end in _ends(text, match.start(), match.end()) if is_valid(_compact(text[match.start() : end]))), 0
        )
        if end:
            yield Finding(match.start(), end, kind)


def _compact(number: str) -> str:
    return number.replace(" ", "").replace("-", "")


def _ends(text: str, start: int, end: int) -> Iterator[int]:
    """Yield where a number may end: at the end of its candidate, or before one of its last blanks."""
    yield end
    while (end := text.rfind(" ", start, end)) > start:
        yield end


def _public_addresses(text: str) -> Iterator[Finding]:
    for match in _IP.finditer(text):
        if _is_public(match[0]):
            yield Finding(match.start(), match.end(), "IP")


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:
        return False
