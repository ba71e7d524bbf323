"""Calls as Python between `<|tool_call_start|>` and `<|tool_call_end|>`, as LFM2 writes them."""

import ast
import json

from src.service.openai.parsing.call_writer import CallWriter
from src.service.openai.parsing.deltas import Content
from src.service.openai.parsing.reader import Parse, Reader

_OPENING, _CLOSING = "<|tool_call_start|>", "<|tool_call_end|>"
_JSON_NAMES = {"true": True, "false": False, "null": None}


def read_answer(reader: Reader, writer: CallWriter) -> Parse[None]:
    """Read an answer of this family."""
    while opening := (yield from reader.until(_OPENING, make=Content)):
        text, closing = yield from reader.take_until(_CLOSING)
        try:
            calls = _read_calls(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            yield Content(opening + text + closing)
            continue
        for name, arguments in calls:
            yield writer.start(name)
            yield writer.arguments(arguments)
        yield from reader.next_character()


def _read_calls(text: str) -> list[tuple[str, str]]:
    """Return the names and arguments of a list of calls; raises ValueError for anything else."""
    tree = ast.parse(text, mode="eval").body
    calls = tree.elts if isinstance(tree, ast.List) else [tree]
    return [_read_call(call) for call in calls]


def _read_call(call: ast.expr) -> tuple[str, str]:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("no call with named arguments")
    values = {}
    for argument in call.keywords:
        if argument.arg is None:
            raise ValueError("no call with named arguments")
        values[argument.arg] = _value(argument.value)
    return ast.unparse(call.func), json.dumps(values, ensure_ascii=False)


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
