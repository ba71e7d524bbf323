"""Faults for tests: `FAULT=rank:point:kind` strikes one rank at one point; unset, it costs nothing.

Points: `start`, `step3` (before that step), `validation3`, `save3` (a checkpoint after that step).
Kinds: `kill`, `stop` (frozen), `exit`, `raise`, `nan` (the loss of that step on that rank).
"""

import os
import signal

_FAULT = tuple(os.environ.get("FAULT", "").split(":"))


def strike(point: str, rank: int) -> bool:
    """Do what `FAULT` asks for at this point; return whether the loss is to be NaN."""
    if _FAULT[:2] != (str(rank), point):
        return False
    match _FAULT[2]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(3)
        case "raise":
            raise RuntimeError("a fault, as asked")
    return _FAULT[2] == "nan"
