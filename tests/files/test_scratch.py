"""What a killed process leaves among the temporary files is gone with the next one."""

import subprocess
import sys
from pathlib import Path

from src.files.scratch import LastFolder, remove_abandoned, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from src.files.scratch import scratch_folder
with scratch_folder(sys.argv[1], Path(sys.argv[2])) as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def hold_folder(prefix: str, parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Return a process that holds a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, prefix, str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_only_the_folders_of_the_dead_are_removed(tmp_path: Path):
    with scratch_folder("training-", tmp_path) as own:
        process, other = hold_folder("training-", tmp_path)
        strange = tmp_path / "training-datasets"
        strange.mkdir()
        remove_abandoned("training-", tmp_path)
        assert own.is_dir()
        assert other.is_dir()
        process.kill()
        process.wait()
        remove_abandoned("training-", tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([own, strange])
    assert list(tmp_path.iterdir()) == [strange]


def test_the_last_folder_makes_way_for_the_next(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    last = LastFolder("weights-")
    first = last.renew()
    assert first.is_dir()
    second = last.renew()
    assert list(tmp_path.iterdir()) == [second] != [first]
