"""One rank of a training run: data, model, DeepSpeed's engine, the loop, and what comes back."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from src.data.dataset import TokenDataset
from src.data.prepare import build_schedule, prepare_data
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import keep_dequantized, load_base_model, training_dtype
from src.model.fast_path import use_fast_path
from src.model.loss import SummedLoss
from src.model.recompute import decoder_layers, recompute_layers
from src.settings import TrainSettings
from src.training.checkpoint import (
    METRICS,
    CheckpointStore,
    describe_run,
    read_checkpoint,
    replacing_folder,
)
from src.training.deepspeed_config import build_deepspeed_config
from src.training.disk import check_disks
from src.training.engine import (
    build_engine,
    gather_adapter,
    gather_state,
    join_ranks,
    restore_state,
)
from src.training.fault import strike
from src.training.gradients import AdapterModule, GradientSum
from src.training.keeper import Keeper, StoppedEarly, read_state
from src.training.loop import Run, train
from src.training.machine import measure_machine, peak_memory
from src.training.output import OutputWriter
from src.training.plan import TrainingPlan, make_plan, peak_line
from src.training.progress import Progress
from src.training.reader import open_reader
from src.training.sample import build_sampler
from src.training.status import RankStatus
from src.training.trainers import SharedModelTrainer, Trainer, WholeModelTrainer


def run_rank(settings: TrainSettings, run_dir: Path, status: RankStatus) -> None:
    """Train on this rank's device; rank 0 writes `run_dir/output`."""
    rank = status.rank
    say: Callable[[str], None] = _say if rank == 0 else _say_nothing
    device = join_ranks(int(os.environ["LOCAL_RANK"]))

    # Data: rank 0 prepares it, every rank maps it.
    reader = open_reader(settings)
    tokenizer, speech, context = reader.tokenizer, reader.speech, reader.context
    data_dir = run_dir / "data"
    if rank == 0:
        prepare_data(settings, tokenizer, speech, context=context, folder=data_dir, say=say)
    dist.barrier()
    train_data = TokenDataset(data_dir / "train")
    validation_data = TokenDataset(data_dir / "validation")

    # The plan, before the base model is loaded.
    schedule = build_schedule(
        train_data, settings, context=context, num_devices=dist.get_world_size()
    )
    plan = make_plan(settings, train_data, schedule, measure_machine(device))
    for line in plan.lines():
        say(line)
    if rank == 0:
        say(check_disks(plan, run_dir))

    # The base model with its adapter.
    dtype = training_dtype(device)
    config = build_deepspeed_config(
        schedule.plan,
        zero_stage=plan.zero_stage,
        bfloat16=dtype == torch.bfloat16,
        num_parameters=plan.trainable_parameters,
    )
    model, target_modules = _load_model(plan, config, device, say)
    loss_module = SummedLoss(model, fuses_head=plan.zero_stage != 3)

    # What takes the steps.
    prompt = settings.validation_prompt if settings.run_validation else None
    run = Run(
        settings=settings,
        schedule=schedule,
        train_data=train_data,
        validation_data=validation_data,
        rank=rank,
        device=device,
        sample=build_sampler(
            prompt, speech=speech, tokenizer=tokenizer, model=model, device=device
        ),
        note_step=status.note_step,
        note_work=status.note_work,
    )
    named = list(adapter_parameters(model))
    trainer = _build_trainer(plan, config, run, loss_module, [p for _, p in named])

    # What is kept on the way, and what a checkpoint brings back.
    writer = OutputWriter(
        settings,
        speech=speech,
        target_modules=target_modules,
        resolved={
            **asdict(schedule.plan),
            "num_steps": schedule.num_steps,
            "zero_stage": plan.zero_stage,
            "context": context,
            "dtype": str(dtype).removeprefix("torch."),
        },
        data={
            "train": asdict(train_data.counts),
            "validation": asdict(validation_data.counts),
            "sequences": len(schedule.sequences),
        },
        metrics_path=run_dir / METRICS,
    )
    progress = Progress(run_dir / METRICS if rank == 0 else None, num_steps=schedule.num_steps)
    gather = partial(gather_adapter, named, is_shared=plan.zero_stage == 3)
    keeper = Keeper(
        run_dir,
        _open_store(settings, reads_data=rank == 0),
        trainer,
        rank=rank,
        seconds=settings.checkpoint_seconds,
        is_shared=plan.zero_stage == 3,
        gather_state=partial(gather_state, trainer.engine, named),
        gather_adapter=gather,
        write_adapter=lambda folder, tensors, step: writer.write(
            folder, tensors, losses={}, stopped_after=step
        ),
    )
    done = 0
    if settings.resume_from is not None:
        checkpoint = read_checkpoint(Path(settings.resume_from))
        done = trainer.num_steps_done = checkpoint.step
        trainer.prime(schedule.longest_micro_batch(rank), train_data)
        restore_state(trainer.engine, named, read_state(checkpoint), step=done)
        progress.resume(checkpoint.progress)
        status.note_step(done)
        if rank == 0:
            shutil.copyfile(checkpoint.folder / METRICS, run_dir / METRICS)
        say(f"resumed after step {done} of {schedule.num_steps}")

    # Training.
    strike("start", rank)
    try:
        losses = train(trainer, run, progress, keeper, done=done)
    except StoppedEarly:
        return
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}{_where_it_is_kept(keeper)}") from None
    say(peak_line(plan, peak_memory(device)))

    # What comes back.
    tensors = gather()
    if rank == 0:
        with replacing_folder(run_dir / "output") as folder:
            writer.write(
                folder,
                tensors,
                losses={"train_loss": losses.train, "eval_loss": losses.validation},
            )
        keeper.keep_finished(run_dir / "output")
    dist.barrier()
    dist.destroy_process_group()


def _load_model(
    plan: TrainingPlan, config: dict[str, Any], device: torch.device, say: Callable[[str], None]
) -> tuple[Any, list[str]]:
    """Return the base model with a new adapter, and the names of the adapted layers."""
    settings = plan.settings
    # While this object lives, transformers loads only each rank's share of the base model.
    shares_weights = HfDeepSpeedConfig(config) if plan.zero_stage == 3 else None
    model = load_base_model(
        Path(settings.base_model_dir),
        dtype=training_dtype(device),
        device=None if shares_weights else device,
        in_4bit=settings.peft_method == "qlora",
    )
    if plan.keeps_dequantized:
        keep_dequantized(model)
    target_modules = resolve_target_modules(model, settings.lora_target_modules)
    attach_adapter(
        model,
        target_modules=target_modules,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        seed=settings.seed,
    )
    # Under ZeRO-3 a layer's weights are there only while its own forward runs.
    if shares_weights:
        say("fast path: only attention is on: ZeRO-3 shares out the weights")
    else:
        off = {part for part in os.environ.get("FAST_PATH_OFF", "").split(",") if part}
        for line in use_fast_path(model, off=off):
            say(line)
    recompute_layers(model, plan.num_recomputed)
    model.train()
    return model, target_modules


def _build_trainer(
    plan: TrainingPlan,
    config: dict[str, Any],
    run: Run,
    loss_module: SummedLoss,
    parameters: list[nn.Parameter],
) -> Trainer:
    """Start the engine; without shared weights, the longest micro-batch is tried before."""
    learning_rate = plan.settings.learning_rate
    if plan.zero_stage == 3:
        return SharedModelTrainer(
            build_engine(loss_module, parameters, config, learning_rate), run.batch
        )
    num_layers = len(decoder_layers(loss_module.model))
    gradient_sum = GradientSum(
        loss_module,
        parameters,
        make_batch=run.batch,
        recomputed_layers=min(plan.num_recomputed, num_layers),
        max_tokens=plan.max_tokens,
        say=lambda line: _say(f"rank {run.rank}: {line}"),
    )
    gradient_sum.add(run.schedule.longest_micro_batch(run.rank), run.train_data)
    gradient_sum.clear()
    engine = build_engine(AdapterModule(parameters), parameters, config, learning_rate)
    return WholeModelTrainer(engine, gradient_sum, loss_module)


def _where_it_is_kept(keeper: Keeper) -> str:
    """Keep the adapter, and return where it is; every rank takes part and tells the same."""
    folder = keeper.keep_adapter()
    told = [folder and f"; the adapter before it is in {folder.parent.name}/{folder.name}"]
    dist.broadcast_object_list(told, 0)
    return told[0] or ""


def _open_store(settings: TrainSettings, *, reads_data: bool) -> CheckpointStore | None:
    """Return where this run's checkpoints go; only the rank that writes needs to know the run."""
    if settings.checkpoint_folder is None:
        return None
    run = describe_run(settings) if reads_data else {}
    return CheckpointStore(Path(settings.checkpoint_folder), run)


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """Only one rank speaks."""
