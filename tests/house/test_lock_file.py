"""The lock file covers every requirement of ``pyproject.toml``, by hash, and names no registry."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.fixtures.house import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED_EXTRAS = ("local", "dev", "docs")


def required() -> list[Requirement]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    extras = [text for extra in LOCKED_EXTRAS for text in project["optional-dependencies"][extra]]
    texts = [
        *project["dependencies"],
        *extras,
        *groups["build"],
        *groups["model"],
        *PROJECT["build-system"]["requires"],
    ]
    return [Requirement(text) for text in texts]


def locked() -> dict[str, list[Version]]:
    versions: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", LOCK, re.MULTILINE):
        versions.setdefault(canonicalize_name(name), []).append(Version(version))
    return versions


def test_every_requirement_is_locked_to_a_version_that_fits() -> None:
    versions = locked()
    fits = {
        str(each): any(each.specifier.contains(found) for found in versions.get(canonicalize_name(each.name), []))
        for each in required()
    }
    assert [text for text, good in fits.items() if not good] == [], "renew the lock file: nox -s lock"


def test_every_locked_package_has_a_hash() -> None:
    entries = re.split(r"\n(?=[\w.-]+(?:\[[\w,-]+\])?==)", LOCK)[1:]
    assert entries
    assert [entry.partition(" ")[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_lock_file_names_no_registry() -> None:
    assert re.findall(r"https?:|file:|--\w*index\S*|--find-links", LOCK) == []
