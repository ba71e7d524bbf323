"""DeepSpeed's engine: how it is started, and how its state is gathered and put back."""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of a parameter."""

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def join_ranks(local_rank: int) -> torch.device:
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


def build_engine(
    module: nn.Module,
    parameters: list[nn.Parameter],
    config: dict[str, Any],
    learning_rate: float,
) -> Any:
    """Return the engine that trains the parameters of a module."""
    is_cuda = parameters[0].device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=is_cuda)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=parameters,  # type: ignore[arg-type]
        config=config,
    )
    return engine


def gather_adapter(named: NamedParameters, *, is_sharded: bool) -> dict[str, Tensor]:
    """Return the whole adapter on the CPU; every rank takes part."""
    named = list(named)
    parameters = [parameter for _, parameter in named]
    with deepspeed.zero.GatheredParameters(parameters) if is_sharded else nullcontext():
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in named}


def gather_state(engine: Any, named: NamedParameters) -> dict[str, Tensor]:
    """Return weights in float32 and the optimizer's means, whole and on the CPU.

    Every rank takes part; how many there are leaves no trace in what is returned.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in named:
        found = {
            "weight": safe_get_full_fp32_param(parameter),
            **{m: safe_get_full_optimizer_state(parameter, m) for m in _MOMENTS},
        }
        for part, tensor in found.items():
            assert tensor is not None, f"{name} has no {part}"
            state[f"{part}.{name}"] = tensor.detach().to("cpu", copy=True).contiguous()
    return state


def restore_state(
    engine: Any, named: NamedParameters, state: Mapping[str, Tensor], *, step: int
) -> None:
    """Put back what `gather_state` returned after a step; the engine must have taken one."""
    for name, parameter in named:
        weight = state[f"weight.{name}"].to(engine.device)
        safe_set_full_fp32_param(parameter, weight)
        for moment in _MOMENTS:
            value = state[f"{moment}.{name}"].to(engine.device)
            safe_set_full_optimizer_state(parameter, value, moment)
        if parameter.numel() == weight.numel():  # under ZeRO-3 the float32 copy is the one
            parameter.data.copy_(weight)
    for values in engine.optimizer.optimizer.state.values():
        if "step" in values:
            values["step"] = torch.as_tensor(float(step), device=values["step"].device)
