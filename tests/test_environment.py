"""A switch is on, off or left alone, and nothing else."""

import tempfile
from pathlib import Path

import pytest

from src.environment import ServeEnvironment, read_flag, read_serve_environment
from src.errors import UserError


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("0", False), ("", None), (None, None)])
def test_a_flag_is_read(value: str | None, is_on: bool | None):
    assert read_flag("LOOK_AHEAD", {} if value is None else {"LOOK_AHEAD": value}) is is_on


@pytest.mark.parametrize("value", ["true", "yes", "2", "on"])
def test_a_flag_that_cannot_be_meant_is_refused(value: str):
    with pytest.raises(UserError, match=f"^LOOK_AHEAD: expected 0 or 1, found '{value}'"):
        read_flag("LOOK_AHEAD", {"LOOK_AHEAD": value})


def test_the_environment_of_a_server_is_read():
    nothing_set = read_serve_environment({})
    assert (nothing_set.in_4bit, nothing_set.dtype) == (False, None)
    assert nothing_set.can_speculate is None
    assert nothing_set.weights_cache.is_relative_to(tempfile.gettempdir())
    assert nothing_set.weights_dir is None
    environ = {
        "BASE_MODEL_IN_4BIT": "1", "DTYPE": "float16", "LOOK_AHEAD": "0", "WEIGHTS_CACHE": "/a",
        "WEIGHTS_DIR": "/b",
    }  # fmt: skip
    assert read_serve_environment(environ) == ServeEnvironment(
        in_4bit=True,
        dtype="float16",
        can_speculate=False,
        weights_cache=Path("/a"),
        weights_dir=Path("/b"),
    )
    assert read_serve_environment({"BASE_WEIGHTS": "fp8"}).in_float8
    with pytest.raises(UserError, match=r"^BASE_MODEL_IN_4BIT: expected 0 or 1"):
        read_serve_environment({"BASE_MODEL_IN_4BIT": "yes"})
    with pytest.raises(
        UserError, match=r"^DTYPE: expected float32, bfloat16 or float16, found 'x'"
    ):
        read_serve_environment({"DTYPE": "x"})
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected fp8, found 'int8'"):
        read_serve_environment({"BASE_WEIGHTS": "int8"})
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: expected none beside BASE_MODEL_IN_4BIT"):
        read_serve_environment({"BASE_WEIGHTS": "fp8", "BASE_MODEL_IN_4BIT": "1"})
