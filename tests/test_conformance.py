"""The documents name tests; here is the proof that these exist and that no rule goes without.

The test itself shows the rule.  A rule without one has to give the reason.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = ROOT / "docs/conformance.md"
DOCUMENTS = (MAP, ROOT / "docs/architecture.md", ROOT / "docs/inheritance.md")
# How an answer begins that is not a test.
REASONS = ("not testable: ", "not served: ", "differs: ")
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions_in(path: str) -> frozenset[str]:
    """Return the names of the tests in a file, none if it is not there."""
    file = ROOT / path
    if not file.exists():
        return frozenset()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, kinds)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def rows() -> list[tuple[str, ...]]:
    """Return the cells of every rule in the map."""
    lines = [line for line in MAP.read_text().splitlines() if line.startswith("| ")]
    return [
        tuple(cell.strip() for cell in line.strip("|").split(" | "))
        for line in lines
        if not line.startswith(("| rule ", "| stock "))
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = _NAMED.findall(document.read_text())
    assert named
    missing = [f"{path}::{name}" for path, name in named if name not in functions_in(path)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)[`:]", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_no_name_of_a_test_is_spelled_in_another_way() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        assert text.count("::") == len(_NAMED.findall(text)), document


def test_every_rule_has_a_source_and_a_test_or_a_reason() -> None:
    found = rows()
    assert len(found) > 100
    for row in found:
        assert len(row) == 3, row
        rule, source, answer = row
        assert rule
        assert source
        reason = next((reason for reason in REASONS if answer.startswith(reason)), "")
        if reason:
            assert len(answer) > len(reason) + 20, row
        else:
            assert _NAMED.sub("", answer).strip(", ") == "", row
            assert _NAMED.search(answer), row


def test_what_differs_is_shown_by_a_test() -> None:
    assert all(_NAMED.search(row[2]) for row in rows() if row[2].startswith("differs: "))


def test_no_rule_is_listed_twice() -> None:
    rules = [row[0] for row in rows()]
    assert len(set(rules)) == len(rules)
