"""A soak that finds nothing has looked: what is left, unclear or wrong is counted."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from src.errors import UserError
from src.weights.archive.archive import read_archive, write_archive
from tests.soak.files import bad_weights, tensors_of
from tests.soak.lane import Lane, NotAsPromised, Row
from tests.soak.server import SoakServer
from tests.soak.web import SoakWeb


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    server = SoakServer("train", tmp_path, {})
    return Lane(server, SoakWeb({}), random.Random(0), action="act")


def test_a_process_that_is_left_is_counted_and_ended(lane: Lane):
    name, _, value = lane.server.mark.partition("=")
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, name: value})
    stranger = subprocess.Popen(["sleep", "60"])
    lane.check_left(time.monotonic() + 0.5)
    assert lane.row == Row(processes=1)
    assert process.wait(5) == -9
    assert stranger.poll() is None
    stranger.kill()
    lane.check_left(time.monotonic())
    assert lane.row == Row(processes=1)


def test_folders_that_are_left_are_named(lane: Lane):
    for name in ("training-a", "weights-b", "weights-cache/0/.download-c", "other"):
        (lane.server.temporary / name).mkdir(parents=True, exist_ok=True)
    assert sorted(lane.server.leftovers()) == [".download-c", "training-a", "weights-b"]


def test_an_error_that_is_no_plain_sentence_is_counted(lane: Lane):
    lane.check_error({"error": "Training failed: UserError: seed: expected a number"}, "^seed: ")
    assert lane.row == Row()
    for error in ("", "KeyError: 'x'", "Traceback (most recent call last)", "in file.py, line 3"):
        lane.check_error({"error": error})
    assert lane.row == Row(unclear=4)
    with pytest.raises(NotAsPromised, match="expected the error to say"):
        lane.check_error({"error": "something else"}, "^seed: ")


def test_each_bad_column_is_bad():
    good = {"tried": 1, "as_promised": 1, "refused": 1}
    assert Row(**good).is_good()
    for name in ("otherwise", "processes", "folders", "wrong", "not_ready", "unclear"):
        assert not Row(**good, **{name: 1}).is_good()


def test_bad_weights_are_bad_and_the_good_ones_good(tmp_path: Path):
    folder = tmp_path / "good"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + b"data")
    write_archive(folder, tmp_path / "weights.tar")
    good = (tmp_path / "weights.tar").read_bytes()
    assert tensors_of(good).endswith(b"data")
    num_refused = 0
    for number, content in enumerate(bad_weights(good).values()):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content)
        out = tmp_path / f"out-{number}"
        out.mkdir()
        try:
            read_archive(path, out, max_bytes=10**6)
        except UserError:
            num_refused += 1
    # The others are good archives of bad tensors, which only the base model's shapes tell.
    assert num_refused >= 6
