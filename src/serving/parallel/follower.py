"""One of the other ranks: `python -m src.serving.parallel.follower CONNECTION PARENT`.

It holds its part of the model, and does what the first rank tells it on a connection, which is
given as a number; it ends when that is closed, and is killed when the parent is gone.
"""

import gc
import os
import pickle
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from src.errors import UserError
from src.files.printable import printable
from src.gpus import find_device
from src.model.base_model import load_base_model
from src.model.core.compiled import keep_code_in
from src.process_tree import end_together
from src.serving.engine.model_runner import ModelRunner
from src.serving.engine.runners import build_runner
from src.serving.lora.weights import LoadedAdapter
from src.serving.parallel.followers import END, Job
from src.serving.parallel.group import join_group


class Follower:
    """The other end of `Followers`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._job: Job = pickle.loads(connection.recv_bytes())
        self._partition = self._job.partition
        self.num_ranks = self._partition.num_ranks

    def agree(self, value: int) -> int:
        """Return the smallest of the values of all ranks."""
        self._connection.send(value)
        ((smallest,),) = pickle.loads(self._connection.recv_bytes())
        return smallest

    def join(self, device: torch.device) -> None:
        """Meet the other ranks."""
        rank, num_ranks = self._partition.rank, self.num_ranks
        join_group(self._job.meeting, rank=rank, num_ranks=num_ranks, device=device)

    def run(self) -> None:
        """Load this rank's part, and do as it is told; raises EOFError where the first is gone."""
        job, device = self._job, torch.device("cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)
        if job.is_on_gpu:
            device = find_device(self._partition.rank)
            torch.cuda.set_device(device)
        if job.code_folder is not None:
            keep_code_in(job.code_folder)
        options = {"dtype": job.dtype, "device": device, "partition": self._partition}
        model = load_base_model(job.folder, **options)
        model.eval()
        with torch.inference_mode():
            runner, _ = build_runner(model, job.options, self)
            assert isinstance(runner, ModelRunner)
            gc.freeze()
            steps = Steps(runner, device)
            while (message := self._connection.recv_bytes()) != END:
                for command in pickle.loads(message):
                    steps.take(*command)


class Steps:
    """Does on this rank what the first one does."""

    def __init__(self, runner: ModelRunner, device: torch.device) -> None:
        self._runner, self._device = runner, device
        self._lora: Any = None

    def take(self, name: str, *values: Any) -> None:
        """Do one thing."""
        match name, *values:
            case "give" | "copy" | "drop" | "clear", *_:
                getattr(self._runner.kv_cache.tensors, name)(*values)
            case "acquire", key, slot, part:
                adapter = LoadedAdapter(key, {}) if part is None else part.unpack()
                if self._runner.lora.acquire(adapter) != slot:
                    raise RuntimeError("an adapter lies elsewhere than on the first rank")
            case "release", slot:
                self._runner.lora.release(slot)
            case "batch", slots:
                self._lora = self._runner.lora.batch(slots)
            case "prefill", chunks:
                self._runner.prefill(chunks)
            case "decode", lengths:
                tokens = torch.empty(len(lengths), dtype=torch.long, device=self._device)
                dist.broadcast(tokens, src=0)
                positions = torch.tensor([max(0, length - 1) for length in lengths])
                self._runner.decode(tokens, positions.to(self._device), lengths, self._lora)
            case _:
                raise RuntimeError(f"a follower cannot {name}")


def main(connection: Connection, parent: int) -> int:
    """Follow until the first rank ends, or this one fails."""
    end_together(parent, os.getpid())
    try:
        Follower(connection).run()
    except (EOFError, KeyboardInterrupt):
        return 0
    except Exception as error:
        reason = printable(next(iter(str(error).splitlines()), ""), 300)
        is_ours = isinstance(error, UserError)
        with suppress(OSError):  # the first rank may be gone
            connection.send(reason if is_ours else f"{type(error).__name__}: {reason}")
        return 1
    return 0


if __name__ == "__main__":
    code = main(Connection(int(sys.argv[1])), int(sys.argv[2]))
    os._exit(code)
