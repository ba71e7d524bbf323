"""Runs one training, as the first message on stdin asks for: `python -m src.jobs.training`.

In:  {"do": "train", "input": {any of train.py's inputs; files are paths}, "names": {"train_data":
     what the user calls the file}, "output": where the archive is to be}, later {"do": "cancel"}
Out: {"event": "log", "text"} for whole lines
     {"event": "metric", "record": a line of metrics.jsonl}
     {"event": "end", "status": "succeeded" | "failed" | "canceled", "error", "weights": the path}

The end of stdin ends it with all its processes. Where there is a CHECKPOINT_DIR, it has a few
seconds to save a checkpoint and keep the adapter.
"""

import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import train
from src.files.atomic import replacing_file
from src.jobs.channel import Channel, Message
from src.jobs.failure import describe_failure
from src.jobs.inputs import check_names
from src.jobs.printed import LineLog
from src.training.inputs import FILES
from src.training.run import run_training
from src.training.supervise.failure import TrainingError
from src.training.supervise.supervisor import SHUTDOWN_SECONDS

ENDING_SECONDS = SHUTDOWN_SECONDS + 3.0
"""Time for a run to save its state and end, once nobody is there to take it."""


class Commands:
    """What whoever started this job asks for, and whether they are there."""

    def __init__(self, channel: Channel) -> None:
        self._training: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._has_ended = threading.Event()
        threading.Thread(target=self._receive, args=[channel], daemon=True).start()

    def training(self) -> Message:
        """Return what is to be trained, once it has come."""
        return self._training.get()

    def is_gone(self, *, now: bool = False) -> bool:
        """Whether nobody is there any more."""
        return self._has_ended.is_set()

    def _receive(self, channel: Channel) -> None:
        channel.receive(self._take)
        self._has_ended.set()
        if os.environ.get("CHECKPOINT_DIR"):
            time.sleep(ENDING_SECONDS)
        os._exit(1)

    def _take(self, message: Message) -> None:
        match message:
            case {"do": "train"}:
                self._training.put(message)
            case {"do": "cancel"}:
                # As Cog does, in the thread that trains.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            case _:
                print(f"a message that asks for nothing known: {message}", file=sys.stderr)


def run_job(commands: Commands, channel: Channel) -> Message:
    """Train, and return how it ended."""
    end = {"event": "end", "status": "succeeded", "error": None, "weights": None}
    try:
        with _cancelable():
            asked = commands.training()
            check_names(train.train, asked["input"])
            archive = run_training(
                {name: _value(name, value) for name, value in asked["input"].items()},
                record_metric=lambda *_, **__: None,
                on_record=lambda record: channel.send({"event": "metric", "record": record}),
                names=asked.get("names", {}),
                server=commands,
            )
            if archive is not None:
                _move(archive, Path(asked["output"]))
                end["weights"] = asked["output"]
    except KeyboardInterrupt:
        end["status"] = "canceled"
    except Exception as error:
        end |= {"status": "failed", "error": describe_failure(error)}
    return end


@contextmanager
def _cancelable() -> Iterator[None]:
    """Context in which a cancel raises KeyboardInterrupt, one that came before it at once."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _value(name: str, value: Any) -> Any:
    return Path(value) if name in FILES and isinstance(value, str) else value


def _move(archive: Path, output: Path) -> None:
    try:
        with replacing_file(output) as partial:
            shutil.move(archive, partial)
    except OSError as error:
        raise TrainingError(f"cannot write the weights to {output}: {error.strerror}") from None


def main() -> int:
    """Run the job and return the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    channel = Channel()
    sys.stdout = LineLog(lambda lines: channel.send({"event": "log", "text": lines}))
    commands = Commands(channel)
    end = run_job(commands, channel)
    if not commands.is_gone():
        channel.send(end)
    channel.close()
    return 0 if end["status"] == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
