"""No process outlives the one that started it.

`python src/process_tree.py PARENT CHILD` kills the child when the parent is gone
(Linux; standard library only).
"""

import ctypes
import functools
import os
import select
import signal
import subprocess
import sys


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's thread that started it ends.

    `parent` is the process that was to be the parent: where it has ended before this call, another
    one has taken its place.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def end_with_server() -> "subprocess.Popen[bytes] | None":
    """Have this process, Cog's worker, killed when Cog's server is gone; return the watcher.

    The threads of that parent come and go, so the kernel's way is not open. A thread of our own
    could wait for the interpreter's lock for seconds, which native code holds at times.
    """
    return end_together(os.getppid(), os.getpid())


def end_together(parent: int, child: int) -> "subprocess.Popen[bytes] | None":
    """Have one process killed when another is gone; return the watcher of the two."""
    if sys.platform != "linux":
        return None
    return subprocess.Popen(
        [sys.executable, "-ISB", __file__, str(parent), str(child)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def watch(parent: int, child: int) -> None:
    """Wait for the end of either, and kill the child if it is not the one that has ended."""
    child_handle = os.pidfd_open(child)
    try:
        parent_handle = os.pidfd_open(parent)
    except ProcessLookupError:
        signal.pidfd_send_signal(child_handle, signal.SIGKILL)
        return
    ended, _, _ = select.select([child_handle, parent_handle], [], [])
    if child_handle not in ended:
        signal.pidfd_send_signal(child_handle, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
