"""Keeps a command's processes from outliving the process that asked for it (standard library only).

`python -m src.training.supervise.guard COMMAND...` runs the command in a session of its own
and kills the whole session when standard input ends, which it does when the supervisor is gone.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run the command and return its exit code."""
    # A signal to the whole group ends the ranks; the guard stays to report the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = subprocess.Popen(command, preexec_fn=_default_signals, stdin=subprocess.DEVNULL)

    def kill_when_alone() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=kill_when_alone, daemon=True).start()
    return process.wait()


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)
