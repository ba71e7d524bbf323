"""Only the named members ever leave an archive; every trick is refused and leaves nothing."""

import bz2
import io
import lzma
import os
import shutil
import tarfile
from pathlib import Path
from random import Random

import pytest

from src.errors import UserError
from src.weights.archive.archive import read_archive, write_archive
from tests.measure import measure
from tests.weights.archives import FILES, GOOD, HOSTILE, MAX_BYTES, make_tar


@pytest.mark.parametrize("name", GOOD)
def test_good_archives_are_read(tmp_path: Path, name: str):
    (tmp_path / "weights").write_bytes(GOOD[name])
    folder = tmp_path / "out"
    folder.mkdir()
    read_archive(tmp_path / "weights", folder, max_bytes=MAX_BYTES)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}


def test_the_same_files_make_the_same_archive(tmp_path: Path):
    archives = []
    for number, names in enumerate((list(FILES), list(reversed(FILES)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(FILES[name])
            os.utime(folder / name, (number, number))
        write_archive(folder, tmp_path / f"{number}.tar")
        archives.append((tmp_path / f"{number}.tar").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        assert tar.getnames() == sorted(FILES)


def test_what_is_written_can_be_read(tmp_path: Path):
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "checkpoint").mkdir()
    write_archive(folder, tmp_path / "weights.tar")
    read_archive(tmp_path / "weights.tar", copy, max_bytes=MAX_BYTES)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "folder", "weights.tar"]


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path):
    (tmp_path / "weights").write_bytes(make_tar())
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_config.json").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    with pytest.raises(FileExistsError):
        read_archive(tmp_path / "weights", folder, max_bytes=MAX_BYTES)
    assert (tmp_path / "victim").read_text() == "mine"
    assert [p.name for p in folder.iterdir()] == ["adapter_config.json"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: Path, name: str):
    inner = tmp_path / "inner"
    folder = inner / "out"
    folder.mkdir(parents=True)
    archive = tmp_path / "weights"
    archive.write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as caught:
        read_archive(archive, folder, max_bytes=MAX_BYTES)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert list(folder.iterdir()) == []
    assert list(inner.iterdir()) == [folder]
    assert sorted(tmp_path.iterdir()) == [inner, archive]
    assert not Path("/tmp/escaped-absolute").exists()


def test_no_hostile_archive_costs_more_than_a_second_and_64_mebibytes(tmp_path: Path):
    jobs = []
    for number, archive in enumerate(HOSTILE.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / f"{number}.archive").write_bytes(archive)
        jobs.append([str(tmp_path / f"{number}.archive"), str(folder)])
    costs = dict(zip(HOSTILE, measure("tests.weights.jobs:unpack", jobs), strict=True))
    assert len(costs) >= 170
    not_refused = {n: c for n, c in costs.items() if not c.outcome.startswith("refused: ")}
    assert not_refused == {}
    assert {name: cost for name, cost in costs.items() if cost.seconds > 1} == {}
    assert {name: cost for name, cost in costs.items() if cost.peak_mebibytes > 64} == {}


def test_a_measure_sees_what_is_costly_or_broken():
    jobs = [["bytearray", "200_000_000"], ["spin", "1.5"], ["os.abort", ""], ["int", "x"]]
    memory, seconds, signal, error = measure("tests.weights.jobs:control", jobs)
    assert memory.peak_mebibytes > 150
    assert seconds.seconds > 1
    assert signal.outcome == "signal 6"
    assert error.outcome.startswith("crashed: ValueError")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"detail": "not found"}', "JSON text"),
        (bz2.compress(b"x"), "a bzip2 file"),
        (lzma.compress(b"x"), "an xz file"),
        (HOSTILE["safetensors"], "a bare safetensors file"),
        (HOSTILE["zip"], "a zip archive"),
        (b"", "an empty file"),
    ],
)
def test_what_came_instead_is_named(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=f"not a .tar or .tar.gz archive: found .*{words}"):
        read_archive(tmp_path / "weights", tmp_path, max_bytes=MAX_BYTES)


DEEP = "saves/lora/sft/adapter_model.safetensors"
OTHERS = {
    "deep": ([DEEP], "it lies in 'saves/lora/sft'"),
    "checkpoints": ([f"out/checkpoint-{n}/{DEEP[15:]}" for n in (1, 2)], "'out/checkpoint-1' and"),
    "mlx": (["adapters.safetensors", "adapter_config.json"], "an adapter of MLX; mlx_lm.fuse"),
    "pickle": (["lora/adapter_model.bin"], "a pickle, which is never loaded; PEFT"),
    "model": (["model-00001-of-00002.safetensors"], "a whole model, whose folder BASE_MODEL"),
    "gguf": (["lora.q8.gguf"], "a file of llama.cpp"),
    "others": (["README.md", "b.txt", ".DS_Store"], "found README.md, b.txt"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_trainers_are_named_with_the_way_out(tmp_path: Path, name: str):
    names, words = OTHERS[name]
    (tmp_path / "weights").write_bytes(make_tar(files=dict.fromkeys(names, b"x")))
    with pytest.raises(UserError) as caught:
        read_archive(tmp_path / "weights", tmp_path, max_bytes=MAX_BYTES)
    assert "weights archive: adapter_model.safetensors is missing; " in str(caught.value)
    assert words in str(caught.value)


def test_json_without_an_archive_says_what_it_holds(tmp_path: Path):
    (tmp_path / "weights").write_bytes(HOSTILE["json-url"])
    with pytest.raises(UserError, match="whose weights are 'https://example"):
        read_archive(tmp_path / "weights", tmp_path, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("name", ["tar", "tar-gz", "json"])
def test_random_damage_is_a_user_error_or_harmless(tmp_path: Path, name: str):
    random = Random(name)
    archive, folder = tmp_path / "weights", tmp_path / "out"
    for _ in range(500):
        data = bytearray(GOOD[name])
        for _ in range(random.randint(1, 4)):
            place = random.randrange(len(data))
            data[place] = random.choice([0, 1, 128, 255, random.randrange(256)])
        archive.write_bytes(data)
        folder.mkdir()
        try:
            read_archive(archive, folder, max_bytes=MAX_BYTES)
        except UserError:
            assert list(folder.iterdir()) == []
        assert {p.name for p in folder.iterdir()} <= FILES.keys()
        assert sorted(tmp_path.iterdir()) == [folder, archive]
        shutil.rmtree(folder)
