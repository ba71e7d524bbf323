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

from src.base_models import KNOWN_MODELS
from src.data.batch_plan import plan_batches
from src.data.dataset import TokenDataset
from src.data.prepare import build_sequences, prepare_data
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import context_length, load_base_model, training_dtype
from src.model.fast_path import use_fast_path
from src.model.loss import SummedLoss
from src.model.recompute import decoder_layers, recompute_layers
from src.settings import TrainSettings
from src.text.formats import build_train_speech
from src.text.tokenizer import Tokenizer
from src.training.deepspeed_config import build_deepspeed_config, choose_zero_stage
from src.training.gradients import AdapterModule, GradientSum
from src.training.loop import Run, longest_micro_batch, train
from src.training.output import save_output
from src.training.progress import Progress
from src.training.sample import build_sampler
from src.training.status import RankStatus
from src.training.trainers import SharedModelTrainer, Trainer, WholeModelTrainer


def run_rank(settings: TrainSettings, run_dir: Path, status: RankStatus) -> None:
    """Train on this rank's device; rank 0 writes `run_dir/output`."""
    rank, world_size = status.rank, int(os.environ["WORLD_SIZE"])
    say: Callable[[str], None] = _say if rank == 0 else _say_nothing
    device = _start(int(os.environ["LOCAL_RANK"]))

    # Data: rank 0 prepares it, every rank maps it.
    base_dir = Path(settings.base_model_dir)
    known = KNOWN_MODELS.get(settings.base_model)
    context = context_length(base_dir, known=known.context if known else None)
    tokenizer = Tokenizer(base_dir)
    speech = build_train_speech(
        settings.base_model,
        tokenizer,
        template=settings.prompt_template,
        system_prompt=settings.system_prompt,
    )
    data_dir = run_dir / "data"
    if rank == 0:
        prepare_data(settings, tokenizer, speech, context=context, folder=data_dir, say=say)
    dist.barrier()
    train_data = TokenDataset(data_dir / "train")
    validation_data = TokenDataset(data_dir / "validation")
    sequences = build_sequences(train_data, settings, context=context)
    plan = plan_batches(
        train_batch_size=settings.train_batch_size,
        micro_batch_size=settings.micro_batch_size,
        num_devices=world_size,
    )
    assert plan.world_size == world_size, "the supervisor starts as many ranks as divide the batch"

    # Model: base model and adapter.
    dtype = training_dtype(device)
    in_4bit = settings.peft_method == "qlora"
    zero_stage = _zero_stage(base_dir, device, in_4bit=in_4bit)
    config = build_deepspeed_config(plan, zero_stage=zero_stage, bfloat16=dtype == torch.bfloat16)
    # While this object lives, transformers loads only each rank's share of the base model.
    shares_weights = HfDeepSpeedConfig(config) if zero_stage == 3 else None
    model = load_base_model(
        base_dir, dtype=dtype, device=None if shares_weights else device, in_4bit=in_4bit
    )
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
        for line in use_fast_path(model):
            say(line)
    recomputed_layers = len(decoder_layers(model)) if device.type == "cuda" else 0
    recompute_layers(model, recomputed_layers)
    model.train()
    loss_module = SummedLoss(model, fuses_head=not shares_weights)

    # The run, and its plan in one line.
    prompt = settings.validation_prompt if settings.run_validation else None
    run = Run(
        settings=settings,
        plan=plan,
        train_data=train_data,
        validation_data=validation_data,
        sequences=sequences,
        rank=rank,
        device=device,
        sample=build_sampler(
            prompt, speech=speech, tokenizer=tokenizer, model=model, device=device
        ),
        note_step=status.note_step,
    )
    dtype_name = str(dtype).removeprefix("torch.")
    say(
        f"plan: {len(train_data):,} examples in {len(sequences):,} sequences, "
        f"{train_data.counts.tokens:,} tokens of which {train_data.counts.learned_tokens:,} are "
        f"learned; {run.num_steps:,} steps over {settings.num_train_epochs} epochs; "
        f"train_batch_size {plan.global_batch_size} = {plan.world_size} "
        f"{'GPUs' if device.type == 'cuda' else 'CPU processes'} x micro-batch "
        f"{plan.micro_batch_size} x accumulation {plan.gradient_accumulation_steps}; "
        f"{settings.peft_method}, {_count_trainable(model):,} trainable parameters, "
        f"{dtype_name}, ZeRO-{zero_stage}"
    )

    # Training.
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
            recomputed_layers=recomputed_layers,
            say=lambda line: _say(f"rank {rank}: {line}"),
        )
        gradient_sum.add(longest_micro_batch(run), train_data)
        gradient_sum.clear()
        module = AdapterModule(parameters)
        engine = _build_engine(module, parameters, config, settings.learning_rate)
        trainer = WholeModelTrainer(engine, gradient_sum, loss_module)
    metrics_path = run_dir / "metrics.jsonl" if rank == 0 else None
    losses = train(trainer, run, Progress(metrics_path, num_steps=run.num_steps))

    # What comes back.
    tensors = _gather_adapter(model, is_shared=zero_stage == 3)
    if rank == 0:
        save_output(
            run_dir,
            tensors,
            settings,
            speech=speech,
            target_modules=target_modules,
            resolved={**asdict(plan), "num_steps": run.num_steps, "zero_stage": zero_stage}
            | {"context": context, "dtype": dtype_name},
            data={
                "train": asdict(train_data.counts),
                "validation": asdict(validation_data.counts),
                "sequences": len(sequences),
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


def _zero_stage(base_dir: Path, device: torch.device, *, in_4bit: bool) -> int:
    """Return the ZeRO stage; `ZERO_STAGE` names it for machines without the memory to choose by."""
    if asked := os.environ.get("ZERO_STAGE"):
        return int(asked)
    return choose_zero_stage(
        base_bytes=sum(path.stat().st_size for path in base_dir.glob("*.safetensors")),
        device_bytes=torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None,
        in_4bit=in_4bit,
    )


def _count_trainable(model: Any) -> int:
    # Under ZeRO-3 a parameter is empty here and tells its size apart.
    return sum(getattr(p, "ds_numel", p.numel()) for _, p in adapter_parameters(model))


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
