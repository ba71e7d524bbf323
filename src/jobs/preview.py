"""Tells what a training would do, as the first message on stdin asks: `python -m src.jobs.preview`.

In:  {"do": "preview", "input": {any of train.py's inputs; files are paths}, "names": {"train_data":
     what the user calls the file}}
Out: {"event": "end", "error", "lines": the plan and what is odd about the data, "report": the
     fields of `DataReport`}

The end of stdin ends it at once.
"""

import os
import queue
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import train
from src.jobs.channel import Channel, Message
from src.jobs.failure import describe_failure
from src.jobs.inputs import check_names
from src.training.inputs import FILES
from src.training.plan.dry_run import look_ahead


def preview(asked: Message) -> Message:
    """Return what is to be told."""
    end = {"event": "end", "error": None, "lines": [], "report": None}
    try:
        check_names(train.train, asked["input"])
        paths = {name: Path(asked["input"][name]) for name in FILES if name in asked["input"]}
        lines, report = look_ahead({**asked["input"], **paths}, asked.get("names", {}))
        return {**end, "lines": lines, "report": asdict(report)}
    except Exception as error:
        return {**end, "error": describe_failure(error)}


def main() -> int:
    """Run the job and return the exit code."""
    channel, messages = Channel(), queue.SimpleQueue[Message]()
    sys.stdout = sys.stderr

    def receive() -> None:
        channel.receive(messages.put)
        os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    end = preview(messages.get())
    channel.send(end)
    channel.close()
    return 0 if end["error"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
