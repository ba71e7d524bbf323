"""One rank of a training run, from the data to what comes back."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from src.chat.prompt_encoder import PromptEncoder, open_prompt_encoder
from src.data.prepare import build_step_plan, open_datasets, prepare_data
from src.data.token_file import TokenDataset
from src.files.atomic import replacing_folder
from src.model.base_model import training_dtype
from src.settings import TrainSettings
from src.training.checkpoint.checkpointer import Checkpointer, StoppedEarly
from src.training.checkpoint.store import METRICS
from src.training.context import Run
from src.training.deepspeed_engine import join_ranks
from src.training.loop import train
from src.training.lora_model import load_lora_model
from src.training.plan.disk import check_disks
from src.training.plan.plan import TrainingPlan, make_plan, peak_line
from src.training.plan.resources import measure_resources, peak_memory
from src.training.replicated import ReplicatedTrainer
from src.training.results.metrics import Progress
from src.training.results.output import OutputWriter
from src.training.results.validation_reply import build_reply_generator
from src.training.supervise.heartbeat import RankStatus
from src.training.switches import read_switches
from src.training.zero3 import Zero3Trainer

POLL_SECONDS = 0.1


def run_rank(settings: TrainSettings, run_dir: Path, status: RankStatus) -> None:
    """Train on this rank's device; rank 0 writes `run_dir/output`."""
    rank = status.rank
    say: Callable[[str], None] = _say if rank == 0 else _say_nothing

    # Data, as the base model reads it; the ranks meet later, as it may take longer than they wait.
    encoder = open_prompt_encoder(settings)
    train_data, validation_data = share_data(settings, encoder, run_dir / "data", rank, say)
    device = join_ranks(int(os.environ["LOCAL_RANK"]))

    # The plan, before the base model is loaded.
    num_devices = dist.get_world_size()
    step_plan = build_step_plan(
        train_data, settings, max_seq_len=encoder.max_seq_len, num_devices=num_devices
    )
    switches = read_switches(os.environ)
    resources = measure_resources(device, switches.device_memory)
    plan = make_plan(settings, train_data, step_plan, resources, zero_stage=switches.zero_stage)
    for line in plan.lines():
        say(line)
    if rank == 0:
        say(check_disks(plan, run_dir))

    # The base model with its adapter.
    lora_model = load_lora_model(plan, device, fast_path_off=switches.fast_path_off, log=say)

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
    )
    start = Zero3Trainer if is_sharded else ReplicatedTrainer
    trainer = start(plan, run, lora_model)

    # What is kept on the way, and what a checkpoint brings back.
    writer = _output_writer(plan, encoder, run, lora_model.target_modules, run_dir)
    progress = Progress(run_dir / METRICS if rank == 0 else None, num_steps=step_plan.num_steps)
    checkpointer = Checkpointer(run, run_dir, trainer, writer)
    done = 0
    if settings.resume_from is not None:
        done = checkpointer.resume(Path(settings.resume_from), progress)
        say(f"resumed after step {done} of {step_plan.num_steps}")

    # Training.
    try:
        train(trainer, run, progress, checkpointer, done=done)
    except StoppedEarly:
        return
    except FloatingPointError as error:
        raise checkpointer.keep_after(error) from None
    say(peak_line(plan, peak_memory(device)))

    # What comes back.
    with status.busy():
        _, tensors = trainer.gather_adapter()
        if rank == 0:
            with replacing_folder(run_dir / "output") as folder:
                losses = {"train_loss": progress.train_loss, "eval_loss": progress.validation_loss}
                writer.write(folder, tensors, losses=losses)
            checkpointer.keep_finished(run_dir / "output")
        dist.barrier()
    dist.destroy_process_group()


def share_data(
    settings: TrainSettings,
    encoder: PromptEncoder,
    folder: Path,
    rank: int,
    say: Callable[[str], None],
) -> tuple[TokenDataset, TokenDataset]:
    """Return the data for training and validation: rank 0 prepares them, every rank maps them."""
    if rank == 0:
        with replacing_folder(folder) as partial:
            prepare_data(
                settings,
                encoder.tokenizer,
                encoder.chat_format,
                max_seq_len=encoder.max_seq_len,
                folder=partial,
                log=say,
            )
    while not folder.is_dir():  # the launcher ends all ranks if rank 0 fails
        time.sleep(POLL_SECONDS)
    return open_datasets(folder)


def _output_writer(
    plan: TrainingPlan,
    encoder: PromptEncoder,
    run: Run,
    target_modules: list[str],
    run_dir: Path,
) -> OutputWriter:
    step_plan = run.step_plan
    return OutputWriter(
        run.settings,
        chat_format=encoder.chat_format,
        target_modules=target_modules,
        resolved={
            **asdict(step_plan.batch_sizes),
            "num_steps": step_plan.num_steps,
            "zero_stage": plan.zero_stage,
            "context": encoder.max_seq_len,
            "dtype": str(training_dtype(run.device)).removeprefix("torch."),
        },
        data={
            "train": asdict(run.train_data.counts),
            "validation": asdict(run.validation_data.counts),
            "sequences": len(step_plan.sequences),
        },
        metrics_path=run_dir / METRICS,
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """Only one rank speaks."""
