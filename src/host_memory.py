"""The memory of this machine, or of the container that this process is in, and what of it we hold.

Standard library and psutil only: the supervisor asks without loading what the ranks need.
"""

import contextlib
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil


def free_memory() -> int:
    """Return the bytes that this machine, or the container around this process, still has."""
    own_cgroups = Path("/proc/self/cgroup").read_text()
    limits = free_in_cgroups(own_cgroups, Path("/sys/fs/cgroup"))
    return min([psutil.virtual_memory().available, *limits])


def process_memory() -> int:
    """Return the bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def peak_process_memory() -> int:
    """Return the bytes of memory that this process held at most."""
    # Not ru_maxrss, in which a process begins with what its parent held.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else process_memory()


def limit_process_memory(limit: float) -> None:
    """Have the kernel refuse this process more than so many bytes on top of what it holds."""
    held = psutil.Process().memory_info().data
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(held + limit), hard))


def free_in_cgroups(own_cgroups: str, root: Path) -> Iterator[int]:
    """Yield the bytes left below each memory limit of a process's cgroups, version 1 or 2.

    `own_cgroups` is its /proc/PID/cgroup, `root` where the cgroups are mounted.
    """
    for line in own_cgroups.splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        # Inside a container the name may be the host's, and the files lie at the top.
        top = root / controllers
        own = top / name.strip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
            usage = _number(folder, "memory.current") or _number(folder, "memory.usage_in_bytes")
            limits = ("memory.max", "memory.high", "memory.limit_in_bytes")
            for limit in (_number(folder, name) for name in limits):
                if limit is not None and usage is not None:
                    yield max(0, limit - usage + _reclaimable(folder))


def _number(folder: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # `max` is no limit
        return int((folder / name).read_text())
    return None


def _reclaimable(folder: Path) -> int:
    """Return the bytes of file contents that the kernel drops when memory is asked for."""
    with contextlib.suppress(OSError):
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return 0
