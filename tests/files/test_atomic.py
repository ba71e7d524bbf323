"""A file or folder is under its name complete or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.files.atomic import replacing_file, replacing_folder

HOLD = """
import sys, time
from pathlib import Path
from src.files.atomic import replacing_folder
with replacing_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("of another process")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    for is_durable, text in ((True, "new"), (False, "newer")):
        before = path.read_text()
        with replacing_file(path, is_durable=is_durable) as partial:
            partial.write_text(text)
            assert path.read_text() == before
        assert path.read_text() == text
    with pytest.raises(FileNotFoundError), replacing_file(path):
        (tmp_path / "none").read_text()
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_its_place_when_it_is_complete(tmp_path: Path):
    folder = tmp_path / "above" / "folder"
    for content in ("old", "new"):
        with replacing_folder(folder) as partial:
            (partial / content).write_text(content)
        assert [path.name for path in folder.iterdir()] == [content]
    assert folder.stat().st_mode == tmp_path.joinpath("above").stat().st_mode
    with pytest.raises(FileNotFoundError), replacing_folder(folder):
        (folder / "none").read_text()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_another_process_writes_is_left_alone_until_it_dies(tmp_path: Path):
    folder = tmp_path / "folder"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "writing\n"

    def write() -> None:
        with replacing_folder(folder) as partial:
            (partial / "file").write_text("ours")

    write()
    assert (folder / "file").read_text() == "ours"
    assert len(list(tmp_path.iterdir())) == 2
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    write()
    assert list(tmp_path.iterdir()) == [folder]
