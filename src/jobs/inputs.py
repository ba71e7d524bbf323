"""The inputs of a job, as train.py and predict.py declare them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from src.errors import UserError
from src.files.printable import printable

EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def complete_inputs(run: Callable[..., Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return all inputs of `run`, those that are missing or None with the declared defaults.

    A text that has to be given is empty. Raises UserError for one that is not declared, or of
    another type.
    """
    declared = inspect.signature(run).parameters
    check_names(run, asked)
    inputs = {
        name: "" if parameter.annotation is str else parameter.default.default
        for name, parameter in declared.items()
        if name != "self"
    }
    for name, value in asked.items():
        if value is not None:
            inputs[name] = _checked(name, value, declared[name].annotation)
    return inputs


def check_names(run: Callable[..., Any], asked: Mapping[str, Any]) -> None:
    """Raise UserError for an input that `run` does not declare."""
    declared = [name for name in inspect.signature(run).parameters if name != "self"]
    for name in asked:
        if name not in declared:
            raise UserError(
                f"input: there is no {printable(name)}; expected some of {', '.join(declared)}"
            )


def _checked(name: str, value: Any, annotation: Any) -> Any:
    kinds = [kind for kind in EXPECTED if isinstance(kind(), annotation)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if int in kinds and is_number and value % 1 == 0:
        return int(value)
    if (float in kinds and is_number) or (kinds[0] in (str, bool) and isinstance(value, kinds[0])):
        return value
    raise UserError(f"{name}: expected {EXPECTED[kinds[0]]}, found {printable(repr(value), 80)}")
