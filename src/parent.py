"""Cog's server starts a worker, and a worker without its server is of no use and holds a GPU."""

import functools
import os
import signal
import threading
import time

POLL_SECONDS = 0.3


@functools.cache
def end_with_parent() -> None:
    """Have this process end at once when the process that started it is gone.

    The kernel's own PR_SET_PDEATHSIG follows the thread that started this process, and the threads
    of Cog's server come and go.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
