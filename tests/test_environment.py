"""A switch is on, off or left alone, and nothing else."""

import pytest

from src.environment import read_flag
from src.errors import UserError


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("0", False), ("", None), (None, None)])
def test_a_flag_is_read(value: str | None, is_on: bool | None):
    assert read_flag("LOOK_AHEAD", {} if value is None else {"LOOK_AHEAD": value}) is is_on


@pytest.mark.parametrize("value", ["true", "yes", "2", "on"])
def test_a_flag_that_cannot_be_meant_is_refused(value: str):
    with pytest.raises(UserError, match=f"^LOOK_AHEAD: expected 0 or 1, found '{value}'"):
        read_flag("LOOK_AHEAD", {"LOOK_AHEAD": value})
