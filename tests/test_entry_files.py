"""Cog's parser quietly drops what is no plain literal: the entry files hold nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def is_literal(source: str, value: ast.expr) -> bool:
    """Return whether Cog reads a value as Python does: one token, one line, no escapes."""
    if isinstance(value, ast.List):
        return all(is_literal(source, item) for item in value.elts)
    text = (ast.get_source_segment(source, value) or "").removeprefix("-")
    if isinstance(value, ast.UnaryOp):
        value = value.operand
    if not isinstance(value, ast.Constant) or "\\" in text or "\n" in text:
        return False
    # Two strings side by side are one constant here, and garbled text in Cog.
    return not isinstance(value.value, str) or (text[0] in "\"'" and text[1:-1] == value.value)


def check_inputs(source: str) -> int:
    """Return how many inputs a file's functions take; fail on one that Cog would misread."""
    tree = ast.parse(source)
    inputs = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Input"
    ]
    for call in inputs:
        assert not call.args, ast.unparse(call)
        for keyword in call.keywords:
            assert is_literal(source, keyword.value), ast.unparse(call)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    served = [function for function in functions if function.name in ("train", "run")]
    num_inputs = 0
    for function in served:
        assert function.returns is not None
        arguments = [argument for argument in function.args.args if argument.arg != "self"]
        for argument, default in zip(arguments, function.args.defaults, strict=True):
            assert argument.annotation is not None, argument.arg
            kind = ast.unparse(argument.annotation).removesuffix(" | None")
            assert kind in ("str", "int", "float", "bool", "Path"), argument.arg
            assert default in inputs or ast.unparse(default) == f"Inputs.{argument.arg}"
            num_inputs += 1
    return num_inputs


@pytest.mark.parametrize(("name", "num_inputs"), [("train.py", 28), ("predict.py", 2 * 18)])
def test_the_inputs_are_plain_literals(name: str, num_inputs: int):
    assert check_inputs((ROOT / name).read_text()) == num_inputs


@pytest.mark.parametrize(
    "written",
    [
        "a: int = Input(default=2 * 2)",
        "a: int = Input(default=RANK)",
        "a: int = Input(default=make())",
        "a: int = Input(4)",
        "a: int = make()",
        "a: int = Inputs.b",
        'a: int = Input(default=1, description="one " "two")',
        'a: int = Input(default=1, description=("one " "two"))',
        'a: int = Input(default=1, description=f"one")',
        'a: str = Input(default="a\\nb")',
        "a: int = Input(default=1, ge=LIMIT)",
        "a = Input(default=1)",
        "a: list[int] = Input(default=1)",
    ],
)
def test_what_cog_would_drop_is_noticed(written: str):
    with pytest.raises(AssertionError):
        check_inputs(f"def train({written}) -> Path: ...")
