"""Real training data that is on every machine: the docstrings of Python's standard library."""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo"}


def docstring_pairs() -> list[dict[str, str]]:
    """Return questions about functions with their answers, shuffled, always in the same order.

    An answer is the first paragraph of a docstring; none comes twice.
    """
    summaries = {
        " ".join(text.split("\n\n")[0].split()): signature
        for signature, text in collect_functions()
    }
    pairs = [
        {"prompt": f"Document the Python function {signature}", "completion": summary}
        for summary, signature in summaries.items()
    ]
    random.Random(0).shuffle(pairs)
    return pairs


def collect_functions() -> Iterator[tuple[str, str]]:
    """Yield signature and docstring of the public functions, from their source."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names = [part for part in parts if part != "__init__"]
        if LEFT_OUT.isdisjoint(parts) and all(map(_is_public, names)):
            yield from _functions_in(ast.parse(path.read_bytes()), ".".join(names))


def _functions_in(scope: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    for node in scope.body:
        if isinstance(node, ast.ClassDef) and _is_public(node.name):
            yield from _functions_in(node, f"{name}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            listed = [each.arg for each in arguments if each.arg not in ("self", "cls")]
            if text := ast.get_docstring(node):
                yield f"{name}.{node.name}({', '.join(listed)})", text


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def tokenizer_texts() -> list[str]:
    """Return texts that the tokenizer of a random base model learns its words from."""
    return [f"{pair['prompt']}\n{pair['completion']}" for pair in docstring_pairs()]
