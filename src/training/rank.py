"""One rank of a training run: data, model, DeepSpeed's engine, the loop, and what comes back."""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
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
from src.training.deepspeed_config import build_deepspeed_config
from src.training.devices import (
    free_cpu_memory,
    limit_process_memory,
    memory_limit,
    process_memory,
)
from src.training.gradients import AdapterModule, GradientSum
from src.training.loop import Run, train
from src.training.output import save_output
from src.training.plan import LATER_LIBRARIES, Machine, make_plan, peak_line
from src.training.progress import Progress
from src.training.reader import open_reader
from src.training.sample import build_sampler
from src.training.status import RankStatus
from src.training.trainers import SharedModelTrainer, Trainer, WholeModelTrainer


def run_rank(settings: TrainSettings, run_dir: Path, status: RankStatus) -> None:
    """Train on this rank's device; rank 0 writes `run_dir/output`."""
    rank = status.rank
    say: Callable[[str], None] = _say if rank == 0 else _say_nothing
    device = _start(int(os.environ["LOCAL_RANK"]))

    # Data: rank 0 prepares it, every rank maps it.
    base_dir = Path(settings.base_model_dir)
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
    plan = make_plan(settings, train_data, schedule, _measure_machine(device))
    for line in plan.lines():
        say(line)

    # Model: base model and adapter.
    dtype = training_dtype(device)
    config = build_deepspeed_config(
        schedule.plan, zero_stage=plan.zero_stage, bfloat16=dtype == torch.bfloat16
    )
    # While this object lives, transformers loads only each rank's share of the base model.
    shares_weights = HfDeepSpeedConfig(config) if plan.zero_stage == 3 else None
    model = load_base_model(
        base_dir,
        dtype=dtype,
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
    num_recomputed = min(plan.num_recomputed, len(decoder_layers(model)))
    recompute_layers(model, num_recomputed)
    model.train()
    loss_module = SummedLoss(model, fuses_head=not shares_weights)

    # Training.
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
    )
    torch.manual_seed(settings.seed + rank)
    parameters = [p for _, p in adapter_parameters(model)]
    trainer: Trainer
    if shares_weights:
        engine = _build_engine(loss_module, parameters, config, settings.learning_rate)
        trainer = SharedModelTrainer(engine, run.batch)
    else:
        gradient_sum = GradientSum(
            loss_module,
            parameters,
            make_batch=run.batch,
            recomputed_layers=num_recomputed,
            max_tokens=plan.max_tokens,
            say=lambda line: _say(f"rank {rank}: {line}"),
        )
        gradient_sum.add(schedule.longest_micro_batch(rank), train_data)
        gradient_sum.clear()
        module = AdapterModule(parameters)
        engine = _build_engine(module, parameters, config, settings.learning_rate)
        trainer = WholeModelTrainer(engine, gradient_sum, loss_module)
    metrics_path = run_dir / "metrics.jsonl" if rank == 0 else None
    losses = train(trainer, run, Progress(metrics_path, num_steps=schedule.num_steps))
    say(peak_line(plan, _peak_memory(device)))

    # What comes back.
    tensors = _gather_adapter(model, is_shared=plan.zero_stage == 3)
    if rank == 0:
        save_output(
            run_dir,
            tensors,
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
            losses={"train_loss": losses.train, "eval_loss": losses.validation},
        )
    dist.barrier()
    dist.destroy_process_group()


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """Only one rank speaks."""


def _start(local_rank: int) -> torch.device:
    """Join the other ranks and return this rank's device."""
    for name in ("DeepSpeed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The supervisor has decided; DeepSpeed's launcher would show hidden GPUs again.
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # This op only speeds up collectives on CPU; it needs a compiler and leaks shared memory.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return device


def _measure_machine(device: torch.device) -> Machine:
    """Return what each rank may count on: the least of what they have."""
    limit = memory_limit()
    on_gpus = device.type == "cuda"
    if on_gpus:
        free, whole = torch.cuda.mem_get_info(device)
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), device)
        libraries = 0.0
    else:
        free = free_cpu_memory(int(os.environ["LOCAL_SIZE"]))
        if limit is not None:
            limit_process_memory(limit)
        libraries = process_memory() + LATER_LIBRARIES
    least = torch.tensor(min(free, limit or free), dtype=torch.float64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return Machine(
        on_gpus=on_gpus,
        available=float(least),
        libraries=libraries,
        has_bfloat16=training_dtype(device) == torch.bfloat16,
    )


def _peak_memory(device: torch.device) -> float:
    """Return the bytes that this rank held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_memory(peak=True)


def _build_engine(
    module: nn.Module,
    parameters: list[nn.Parameter],
    config: dict[str, Any],
    learning_rate: float,
) -> Any:
    is_cuda = parameters[0].device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=is_cuda)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=parameters,  # type: ignore[arg-type]
        config=config,
    )
    return engine


def _gather_adapter(model: Any, *, is_shared: bool) -> dict[str, torch.Tensor]:
    """Return the whole adapter on the CPU; every rank takes part."""
    named = list(adapter_parameters(model))
    parameters = [parameter for _, parameter in named]
    with deepspeed.zero.GatheredParameters(parameters) if is_shared else nullcontext():
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in named}
