"""Cog's server starts a worker, and a worker without its server is of no use and holds a GPU.

`python src/process_tree.py PARENT CHILD` kills the child when the parent is gone
(Linux; standard library only).
"""

import functools
import os
import select
import signal
import subprocess
import sys


@functools.cache
def end_with_parent() -> "subprocess.Popen[bytes] | None":
    """Have this process killed when the process that started it is gone; return the watcher.

    A thread could wait for the interpreter's lock for seconds, which native code holds at times;
    the kernel's own PR_SET_PDEATHSIG follows a thread of the parent, and threads come and go.
    """
    if sys.platform != "linux":
        return None
    return subprocess.Popen(
        [sys.executable, "-ISB", __file__, str(os.getppid()), str(os.getpid())],
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
