"""The memory that is counted on is what the machine and the container still give."""

import mmap
import os
from pathlib import Path

import psutil
import pytest

from src.host_memory import (
    free_in_cgroups,
    free_memory,
    limit_process_memory,
    peak_process_memory,
    process_memory,
)

GIB = 2**30


def write_cgroup(folder: Path, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


@pytest.mark.parametrize("name", ["/", "/docker/a1b2"], ids=["own names", "the host's names"])
def test_a_container_s_limit_counts_less_what_it_holds(tmp_path: Path, name: str):
    write_cgroup(tmp_path, memory_max=8 * GIB, memory_high="max", memory_current=3 * GIB)
    assert list(free_in_cgroups(f"0::{name}\n", tmp_path)) == [5 * GIB]
    # What is only in the page cache is given up when it is asked for.
    (tmp_path / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert list(free_in_cgroups(f"0::{name}\n", tmp_path)) == [7 * GIB]


def test_every_group_above_has_a_limit_too(tmp_path: Path):
    write_cgroup(tmp_path / "slice", memory_max=4 * GIB, memory_current=GIB)
    write_cgroup(tmp_path / "slice" / "job", memory_max="max", memory_high=2 * GIB)
    write_cgroup(tmp_path / "slice" / "job", memory_current=GIB)
    assert sorted(free_in_cgroups("0::/slice/job\n", tmp_path)) == [GIB, 3 * GIB]


def test_version_1_of_cgroups(tmp_path: Path):
    write_cgroup(
        tmp_path / "memory" / "job", memory_limit_in_bytes=GIB, memory_usage_in_bytes=2 * GIB
    )
    found = list(free_in_cgroups("5:cpu:/job\n4:memory:/job\n0::/\n", tmp_path))
    assert found == [0]  # over the limit there is nothing left


def test_the_machine_s_available_memory_is_the_most():
    assert 0 < free_memory() <= psutil.virtual_memory().total
    assert 10 * 2**20 < process_memory() <= peak_process_memory()


def new_memory(num_bytes: int) -> mmap.mmap:
    """Take memory of the kernel, and none that the process has freed."""
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_a_process_is_refused_more_than_its_limit():
    child = os.fork()
    if child == 0:
        try:
            limit_process_memory(64 * 2**20)
            kept = new_memory(32 * 2**20)
            new_memory(128 * 2**20)
        except OSError:
            os._exit(0 if len(kept) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
