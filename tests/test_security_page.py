"""SECURITY.md promises nothing without a test."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named_tests(page: str) -> list[tuple[str, str]]:
    """Return (file, function) of every test that the page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)


def missing(page: str) -> list[tuple[str, str]]:
    """Return the named tests that do not exist."""
    return [
        (file, name)
        for file, name in named_tests(page)
        if not (ROOT / file).is_file()
        or name
        not in {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
    ]


def test_every_promise_has_a_test_that_exists():
    page = (ROOT / "SECURITY.md").read_text()
    promises = [line for line in page.splitlines() if re.match(r"\| (?!promise|---)", line)]
    assert len(promises) > 25
    assert all(len(named_tests(promise)) == 1 for promise in promises)
    assert missing(page) == []


def test_a_test_that_does_not_exist_is_found():
    here = "tests/test_security_page.py"
    assert missing(f"| x | `{here}::test_none` |") == [(here, "test_none")]
    assert missing("| x | `tests/none.py::test_none` |") == [("tests/none.py", "test_none")]
