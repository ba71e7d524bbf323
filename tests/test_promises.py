"""Each promise of promises.md names a test that exists, is collected and can fail."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef
CHECKS = re.compile(r"raises|fail|assert\w*")
"""Calls that end a test which does not hold."""


def named_tests(page: str) -> list[tuple[str, str]]:
    """Return (file, function) of every test that the page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)


def fault_of(file: str, name: str) -> str | None:
    """Return why the named test holds no promise, or None."""
    path = ROOT / file
    if not path.is_file():
        return "there is no such file"
    if not re.fullmatch(r"test_\w+\.py", path.name):
        return "pytest does not collect the file"
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, Function)}
    if name not in functions:
        return "the file has no such function"
    if any("skip" in ast.unparse(decorator) for decorator in functions[name].decorator_list):
        return "the test is skipped"
    return None if can_fail(name, functions, set()) else "the test asserts nothing"


def can_fail(name: str, functions: dict[str, Function], seen: set[str]) -> bool:
    """Return whether a function, or one of its file that it calls, holds an assertion."""
    seen.add(name)
    nodes = list(ast.walk(functions[name]))
    if any(isinstance(node, ast.Assert) for node in nodes):
        return True
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    }
    return any(
        CHECKS.fullmatch(function) is not None
        or (function in functions.keys() - seen and can_fail(function, functions, seen))
        for function in called
    )


def test_every_promise_has_a_test_that_can_fail():
    page = (ROOT / "tests/promises.md").read_text()
    promises = [line for line in page.splitlines() if re.match(r"\| (?!promise|---)", line)]
    assert len(promises) > 80
    assert all(len(named_tests(promise)) == 1 for promise in promises)
    assert {test: fault for test in named_tests(page) if (fault := fault_of(*test))} == {}


def test_every_promise_is_a_sentence():
    page = (ROOT / "tests/promises.md").read_text()
    promises = re.findall(r"^\| (.*?) \| `tests/", page, flags=re.MULTILINE)
    assert len(promises) > 80
    assert [promise for promise in promises if not re.match(r"[A-Z].* .*\.$", promise)] == []


def test_a_test_that_holds_nothing_is_found(tmp_path: Path):
    here = "tests/test_promises.py"
    assert fault_of("tests/none.py", "test_none") == "there is no such file"
    assert fault_of("tests/conftest.py", "llama") == "pytest does not collect the file"
    assert fault_of(here, "test_none") == "the file has no such function"
    assert fault_of(here, "test_every_promise_is_a_sentence") is None
    file = tmp_path / "test_empty.py"
    file.write_text("def test_empty():\n    print()\n")
    assert fault_of(str(file), "test_empty") == "the test asserts nothing"
    file.write_text("@pytest.mark.skip\ndef test_skipped():\n    assert 1\n")
    assert fault_of(str(file), "test_skipped") == "the test is skipped"
