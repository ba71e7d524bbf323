"""What a command line names is taken, or refused in a sentence."""

from pathlib import Path

import pytest

from src.cli.client import _weights_source
from src.cli.inputs import parse_inputs
from src.errors import UserError

PROPERTIES = {
    "prompt": {"type": "string"},
    "seed": {"type": "integer"},
    "train_data": {"format": "uri"},
}


def test_files_and_values_are_read(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("What?")
    pairs = [f"prompt=@{path}", "seed=7", f"train_data={path}"]
    assert parse_inputs(pairs, PROPERTIES) == {"prompt": "What?", "seed": 7, "train_data": path}


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (
            "prompt=@" + "a" * 400,
            "-i prompt: what begins with @ names a file: there is no file aaa",
        ),
        ("prompt=@\0", "-i prompt: what begins with @ names a file: there is no file"),
        ("train_data=" + "a" * 400, "-i train_data: there is no file aaa"),
        ("seed=" + "1" * 5000, "-i seed: expected a whole number, found '1111"),
        ("a" * 5000, "-i aaa.*: expected name=value"),
        ("a" * 5000 + "=1", "-i aaa.*: there is no such input"),
    ],
)
def test_what_is_no_input_is_named_in_short(pair: str, sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        parse_inputs([pair], PROPERTIES)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["data:application/x-tar;base64,AA==", "DATA:,x", "https://x/y"])
def test_urls_of_weights_are_taken_as_they_are(name: str):
    assert _weights_source(name) == name


def test_weights_are_a_file_or_a_folder(tmp_path: Path):
    assert _weights_source(str(tmp_path)) == str(tmp_path.resolve())
    with pytest.raises(UserError, match="-w: there is no file aaa"):
        _weights_source("a" * 5000)
