"""DeepSpeed: how the ranks meet, how an engine is configured and built, and what its state is."""

import logging
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler, LossScalerBase
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from src.errors import UserError
from src.training.plan.plan import TrainingPlan

MAX_GRADIENT_NORM = 1.0
BUCKET_SIZE = 2**24
"""Gradients that ZeRO-3 sends at a time: an adapter is small beside DeepSpeed's default of 5e8."""
SUM_SCALE_POWER, MEAN_SCALE_POWER = 4, 12
"""The first loss scale in float16, as a power of two, of a sum over target tokens and of a mean."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of a parameter."""
STATE_PARTS = ("weight", *_MOMENTS)


def join_ranks(device: torch.device) -> None:
    """Join the other ranks with this one's device."""
    for name in ("DeepSpeed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # This op only speeds up collectives on CPU; it needs a compiler and leaks shared memory.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def sum_over_ranks(*values: Tensor | float, device: torch.device) -> list[float]:
    """Return the sum of each value over all ranks."""
    sums = torch.stack([torch.as_tensor(value, device=device).double() for value in values])
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def build_deepspeed_config(plan: TrainingPlan, *, bucket_size: int = BUCKET_SIZE) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run; it sends `bucket_size` gradients at a time.

    Below ZeRO-3 a rank sums up its micro-batches by itself: to DeepSpeed they are one, and never
    in float16.
    """
    batches, is_zero3 = plan.steps.batch_sizes, plan.zero_stage == 3
    accumulation = batches.gradient_accumulation_steps if is_zero3 else 1
    share = batches.global_batch_size // batches.world_size
    return {
        "train_batch_size": batches.global_batch_size,
        "train_micro_batch_size_per_gpu": share // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": MAX_GRADIENT_NORM,
        "bf16": {"enabled": plan.resources.dtype == torch.bfloat16},
        "fp16": {
            "enabled": plan.resources.dtype == torch.float16 and is_zero3,
            "initial_scale_power": MEAN_SCALE_POWER,
            "hysteresis": 1,
        },
        "zero_optimization": {
            "stage": plan.zero_stage,
            # Below ZeRO-3 all gradients come at once, when there is nothing left to overlap with.
            "overlap_comm": plan.resources.on_gpus and is_zero3,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket_size,
            "allgather_bucket_size": bucket_size,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def build_engine(module: nn.Module, parameters: list[nn.Parameter], config: dict[str, Any]) -> Any:
    """Return the engine that trains the parameters of a module with AdamW, once its rate is set.

    Raises UserError where DeepSpeed does not take the precision.
    """
    accelerator: Any = get_accelerator()
    if config["fp16"]["enabled"] and not accelerator.is_fp16_supported():
        raise UserError("DTYPE: expected float32 or bfloat16 with ZERO_STAGE=3 here, found float16")
    is_cuda = parameters[0].device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=is_cuda)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=parameters,  # type: ignore[arg-type]
        config=config,
    )
    return engine


def build_loss_scaler(dtype: torch.dtype) -> LossScalerBase:
    """Return DeepSpeed's dynamic loss scale in float16, and else one that stays 1."""
    return CreateLossScaler(
        dtype,
        static_loss_scale=1.0,
        dynamic_scaling=True,
        dynamic_loss_args={
            "init_scale": 2.0**SUM_SCALE_POWER,
            "scale_window": 1000,
            "min_scale": 1.0,
            "delayed_shift": 1,
            "consecutive_hysteresis": False,
            "raise_error_at_min_scale": False,
        },
    )


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def gather_parts(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return a parameter in float32 and its moments, complete and on the CPU; all ranks call it."""
    parts = {
        "weight": safe_get_full_fp32_param(parameter),
        **{moment: safe_get_full_optimizer_state(parameter, moment) for moment in _MOMENTS},
    }
    return {part: tensor.detach().to("cpu", copy=True) for part, tensor in parts.items()}  # type: ignore[union-attr]


def restore_parts(
    parameter: nn.Parameter, parts: dict[str, Tensor] | None, *, source: int, engine: Any
) -> None:
    """Put back what `gather_parts` returned, as rank `source` has it; all ranks call it.

    The engine must have taken a step.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor
    for part in STATE_PARTS:
        value = torch.empty(shape, device=engine.device) if parts is None else parts[part]
        value = value.to(engine.device).contiguous()
        dist.broadcast(value, source)
        if part != "weight":
            safe_set_full_optimizer_state(parameter, value, part)
            continue
        safe_set_full_fp32_param(parameter, value)
        if parameter.numel() == value.numel():  # under ZeRO-3 the float32 copy is the only one
            parameter.data.copy_(value)


def set_num_steps(engine: Any, num_steps: int) -> None:
    """Have AdamW correct its bias as after so many steps."""
    for values in engine.optimizer.optimizer.state.values():
        values["step"] = torch.as_tensor(float(num_steps), device=values["step"].device)


gathered = deepspeed.zero.GatheredParameters
