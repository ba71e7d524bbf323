"""One rank of a training, from the data to what comes back, and how it reports its end.

Started by torch's agent; `python -m src.training.worker SETTINGS.json` replays a run on one rank.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

from src.training.supervise.heartbeat import RankStatus
from src.training.supervise.rank_process import begin_rank

STATUS: RankStatus | None = None
if __name__ == "__main__":
    # A rank shows that it lives before it imports what takes seconds.
    STATUS = begin_rank(Path(sys.argv[1]), *map(int, sys.argv[2:]))

import os
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.distributed as dist

from src.chat.prompt_encoder import open_prompt_encoder
from src.data.prepare import build_step_plan
from src.deterministic import compute_in_one_order, is_nondeterministic
from src.errors import UserError
from src.files.atomic import replacing_folder
from src.gpus import find_device
from src.out_of_memory import is_out_of_memory
from src.settings import TrainSettings
from src.training.checkpoint.checkpointer import Checkpointer, StoppedEarly
from src.training.context import Run
from src.training.deepspeed_engine import join_ranks
from src.training.loop import train
from src.training.lora_model import load_lora_model, try_sharing_rows
from src.training.machines.share import OtherMachines, share_data
from src.training.plan.decide import make_plan
from src.training.plan.disk import check_disks
from src.training.plan.resources import keep_to_limit, measure_resources, peak_line
from src.training.replicated import ReplicatedTrainer
from src.training.results.metrics import Progress
from src.training.results.output import output_writer
from src.training.results.validation_reply import build_reply_generator
from src.training.supervise.run_folder import RunFolder
from src.training.zero3 import Zero3Trainer


def main(settings_path: Path, status: RankStatus | None = None) -> NoReturn:
    """Run this rank; a failure is left for the supervisor and ends with exit code 1."""
    status = status or begin_rank(settings_path)
    try:
        run_rank(TrainSettings.load(settings_path), RunFolder(settings_path.parent), status)
    except BaseException as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        status.fail(_explain(error))
        # Other ranks may wait in a collective; leaving at once lets the agent end them.
        _leave(1)
    # All is written; the interpreter would take seconds to end, in which it shows no sign of life.
    _leave(0)


def run_rank(settings: TrainSettings, folder: RunFolder, status: RankStatus) -> None:
    """Train on this rank's device; the main rank writes `folder.output`."""
    environment, rank = settings.environment, status.rank
    if environment.deterministic:
        compute_in_one_order()
    device = torch.device("cpu")
    if environment.on_gpus:
        device = find_device(int(os.environ["LOCAL_RANK"]))  # refused now, if ever
    machines = OtherMachines() if os.environ["GROUP_WORLD_SIZE"] != "1" else None
    main_rank = machines.find_main_rank(settings) if machines else 0
    log: Callable[[str], None] = _log if rank == main_rank else _log_nothing

    # Data, as the base model reads it; the ranks meet later, as it may take longer than they wait.
    encoder = open_prompt_encoder(settings)
    train_data, validation_data = share_data(
        settings, encoder, folder.data, log, is_main=rank == main_rank, machines=machines
    )
    join_ranks(device)

    # The plan, before the base model is loaded.
    num_devices = dist.get_world_size()
    step_plan = build_step_plan(
        train_data, settings, max_seq_len=encoder.max_seq_len, num_devices=num_devices
    )
    resources = measure_resources(device, environment)
    plan = make_plan(settings, train_data, step_plan, resources, zero_stage=environment.zero_stage)
    for line in plan.lines():
        log(line)
    if rank == main_rank:
        log(check_disks(plan, folder.path))
    keep_to_limit(device, resources, environment.device_memory)

    # The base model with its adapter.
    lora_model = load_lora_model(plan, device, log=log)

    # What takes the steps.
    is_sharded = lora_model.sharding is not None
    run = Run(
        settings=settings,
        step_plan=step_plan,
        train_data=train_data,
        validation_data=validation_data,
        rank=rank,
        device=device,
        status=status,
        generate_reply=build_reply_generator(
            settings, encoder, lora_model.model, device, is_sharded=is_sharded
        ),
        main_rank=main_rank,
    )
    start = Zero3Trainer if is_sharded else ReplicatedTrainer
    trainer = start(plan, run, lora_model)
    if is_sharded:  # only now do the ranks gather a layer's weights
        try_sharing_rows(lora_model.loss, log)

    # What is kept on the way, and what a checkpoint brings back.
    writer = output_writer(plan, encoder, run, lora_model.target_modules, folder)
    progress = Progress(
        folder.metrics if run.is_main else None,
        num_steps=step_plan.num_steps,
        in_float8=plan.base_weights == "float8",
    )
    checkpointer = Checkpointer(run, folder, trainer, writer)
    done = 0
    if settings.resume_from is not None:
        done = checkpointer.resume(Path(settings.resume_from), progress)
        log(f"resumed after step {done} of {step_plan.num_steps}")

    # Training.
    try:
        train(trainer, run, progress, checkpointer, done=done)
    except StoppedEarly:
        return
    except FloatingPointError as error:
        raise checkpointer.keep_after(error) from None
    log(peak_line(device, plan.peak))

    # What comes back.
    with status.busy():
        _, tensors = trainer.gather_adapter()
        if run.is_main:
            with replacing_folder(folder.output) as partial:
                losses = {"train_loss": progress.train_loss, "eval_loss": progress.validation_loss}
                writer.write(partial, tensors, losses=losses)
            checkpointer.keep_finished(folder.output)
        if num_devices > 1:  # DeepSpeed tells the group its device where there are several
            dist.barrier()
    dist.destroy_process_group()


def _explain(error: BaseException) -> BaseException:
    """Return the error; where the operator can do something about it, as what helps."""
    if is_nondeterministic(error):
        step = str(error).partition(" does not")[0]
        return UserError(
            f"DETERMINISTIC=1: {step} has no deterministic form on this device, and this base "
            "model needs it; expected DETERMINISTIC to be unset, or another base model"
        )
    if isinstance(error, UserError) or not is_out_of_memory(error):
        return error
    return UserError(
        "out of memory outside of the training passes: expected peft_method=qlora, a smaller "
        "lora_rank or base model, fewer processes (NUM_PROCESSES), or more memory"
    )


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log(line: str) -> None:
    print(line, flush=True)


def _log_nothing(line: str) -> None:
    """Only the main rank logs."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), STATUS)
