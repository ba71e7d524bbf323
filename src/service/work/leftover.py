"""Workers of a service that was killed: they end by themselves, but a while later."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

_NAME = "worker.json"
END_SECONDS = 10.0


def note_worker(folder: Path, pid: int) -> None:
    """Note which process works in a folder."""
    with suppress(psutil.NoSuchProcess):
        started_at = psutil.Process(pid).create_time()
        (folder / _NAME).write_text(json.dumps({"pid": pid, "started_at": started_at}))


async def end_leftover(folder: Path) -> None:
    """End the process that was noted last, if it is still there, with all of its group."""
    try:
        noted = json.loads((folder / _NAME).read_text())
        process = psutil.Process(noted["pid"])
        if process.create_time() != noted["started_at"]:
            return
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(psutil.TimeoutExpired):
        await asyncio.to_thread(process.wait, END_SECONDS)
