"""What a command line names is taken, or refused in a sentence."""

from pathlib import Path

import pytest

from src.cli.arguments.command import parse_command
from src.cli.arguments.inputs import local_weights, parse_inputs
from src.cli.arguments.output_file import find_output
from src.errors import UserError

PROPERTIES = {
    "prompt": {"type": "string"},
    "seed": {"type": "integer", "nullable": True},
    "num_train_epochs": {"type": "integer"},
    "learning_rate": {"type": "number"},
    "replicate_weights": {"nullable": True},
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
            r"-i prompt: what begins with @ names a file \(or stands in one: prompt=@FILE\): "
            "there is no file aaa",
        ),
        ("prompt=@\0", "-i prompt: what begins with @ names a file .*: there is no file"),
        ("prompt=@/", "expected a file, found the folder /"),
        ("train_data=" + "a" * 400, "train_data: there is no file aaa"),
        ("train_data=~/d.jsonl", "there is no file ~/d.jsonl; write \\$HOME"),
        (
            "train_data=https://huggingface.co/datasets/x/y/blob/main/d.jsonl",
            "which is at https://huggingface.co/datasets/x/y/resolve/main/d.jsonl",
        ),
        ("epochs=3", "did you mean num_train_epochs?"),
        ("lr=3", "did you mean learning_rate?"),
        ("model=x", "BASE_MODEL names the base model"),
        ("Hello", "expected name=value, such as -i prompt=Hello"),
        ("replicate_weights=@w.tar", r"a URL|expected an http\(s\) or data: URL; .* with -w"),
        ("replicate_weights=owner/model", "hf download owner/model --local-dir FOLDER, then -w"),
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
    assert local_weights(name) == name


def test_an_empty_text_is_none_where_there_may_be_none():
    assert parse_inputs(["seed=", "replicate_weights=", "prompt="], PROPERTIES) == {"prompt": ""}


INSTEAD = {
    "train": "expected one file of examples: scripts/train DATA.jsonl",
    "train a.jsonl b.jsonl": "cat A.jsonl B.jsonl > all.jsonl joins two",
    "train a.jsonl -i train_data=@b.jsonl": "expected one file of examples",
    "train a.jsonl --num_train_epochs 3": "given as -i num_train_epochs=3",
    "train a.jsonl --lora-rank=3": "given as -i lora_rank=3",
    "train --output": "argument -o/--output: expected one argument; expected scripts/train DATA",
    "predict Hello": "the prompt is an input: scripts/predict -i prompt=Hello",
    "predict -i": "argument -i/--input: expected one argument; expected scripts/predict -i prompt",
    "predict -p Hello": "-p: there is no such option; expected scripts/predict",
}


@pytest.mark.parametrize("command", INSTEAD)
def test_what_to_type_in_place_of_a_wrong_command(command: str):
    with pytest.raises(UserError) as caught:
        parse_command(command.split())
    assert INSTEAD[command] in str(caught.value)


def test_a_training_takes_its_file_as_cog_does():
    for command in ("train a.jsonl", "train -i train_data=@a.jsonl"):
        (pair,) = parse_command(command.split()).input
        assert pair.replace("@", "") == "train_data=a.jsonl"


def test_the_place_of_the_weights_is_proven_before_the_training(tmp_path: Path):
    data, folder = tmp_path / "data.jsonl", tmp_path / "folder"
    data.write_text("kept")
    folder.mkdir()
    assert find_output(str(tmp_path / "w.tar"), data) == tmp_path / "w.tar"
    assert find_output(str(folder), data) == folder / "weights.tar"
    assert find_output(f"{tmp_path}/new/", data) == tmp_path / "new" / "weights.tar"
    for place, sentence in {
        tmp_path / "none" / "w.tar": "there is no folder",
        data / "w.tar": "there is no folder",
        Path("/proc/w.tar"): "cannot write /proc/w.tar",
        Path("/dev/null"): "expected a file or folder, found /dev/null",
        data: "is the training data",
        tmp_path / ("a" * 300): "cannot write",
    }.items():
        with pytest.raises(UserError, match=f"-o: .*{sentence}"):
            find_output(str(place), data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "folder", "new"]
    assert data.read_text() == "kept"


def test_weights_are_a_file_or_a_folder(tmp_path: Path):
    assert local_weights(str(tmp_path)) == str(tmp_path.resolve())
    with pytest.raises(UserError, match="-w: there is no file aaa"):
        local_weights("a" * 5000)
