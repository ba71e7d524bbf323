"""The same steps by Transformers with PEFT, and with Liger's kernels where they are installed."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.gpu.models import large_model
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import seconds_of
from benchmarks.shapes import flops_per_token
from src.model.shape import read_shape

SIZES = ((4, 2048), (1, 2048), (4, 150))
"""Rows and their tokens."""


def run(stage: Stage) -> None:
    model = load(stage)
    for rows, length in SIZES:
        stage.section(measure, stage, model, "PEFT", 0.0, rows, length)
    stage.section(measure, stage, model, "PEFT", 0.05, *SIZES[0])
    stage.section(measure_autocast, stage, model)
    stage.section(use_liger, stage, model)


def load(stage: Stage) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        large_model(stage),
        dtype=stage.dtype,
        attn_implementation="sdpa",
        device_map={"": stage.device},
    )
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=False).train()


def measure_autocast(stage: Stage, model: Any) -> None:
    """As Trainer and TRL do it: the adapter in float32, products under autocast."""
    matrices = [p for p in model.parameters() if p.requires_grad]
    for matrix in matrices:
        matrix.data = matrix.data.float()
    measure(stage, model, "PEFT, float32 adapter, autocast", 0.05, *SIZES[0])
    for matrix in matrices:
        matrix.grad, matrix.data = None, matrix.data.to(stage.dtype)


def use_liger(stage: Stage, model: Any) -> None:
    """Put Liger's kernels into the model; they stay."""
    try:
        from liger_kernel.transformers import (  # type: ignore[import-not-found]
            apply_liger_kernel_to_llama,
        )
    except ImportError:
        stage.record("PEFT + Liger", "not installed")
        return
    apply_liger_kernel_to_llama(model=model.get_base_model())
    if not stage.is_tiny:  # its kernels need a GPU
        for rows, length in SIZES:
            stage.section(measure, stage, model, "PEFT + Liger", 0.0, rows, length)
        stage.section(measure, stage, model, "PEFT + Liger", 0.05, *SIZES[0])


def measure(stage: Stage, model: Any, name: str, dropout: float, rows: int, length: int) -> None:
    """Record the speed of optimizer steps on rows of one length, without padding."""
    if stage.is_tiny:
        length //= 64
    for module in model.modules():
        for key in list(getattr(module, "lora_dropout", ())):
            module.lora_dropout[key] = torch.nn.Dropout(dropout)
    matrices = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(matrices, lr=1e-4, weight_decay=0.0, fused=not stage.is_tiny)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (rows, length), generator=generator).to(stage.device)

    def step() -> None:
        with torch.autocast(
            "cuda", torch.bfloat16, enabled="autocast" in name and not stage.is_tiny
        ):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matrices, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stage.peak_gigabytes()
    seconds_of(step, repeat=2)
    seconds = seconds_of(step, repeat=3)
    shape = read_shape(large_model(stage))
    assert shape is not None
    rate = rows * length / seconds
    flops = flops_per_token(shape, lora_rank=8, max_seq_len=length)
    stage.record(
        f"{name}, {rows} x {length} tokens, dropout {dropout:g}",
        rate,
        "tokens/s",
        note=f"{1e3 * seconds:.1f} ms a step; {stage.share(rate * flops, 'matmul')}; "
        f"peak {stage.peak_gigabytes():.1f} GB",
    )
