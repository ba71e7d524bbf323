"""The same steps by Transformers with PEFT, and with Liger's kernels where they are installed."""

from itertools import product
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.gpu.models import DROPOUTS, LENGTHS, LONG, RANK, large_model, training_share
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import seconds_of


def run(stage: Stage) -> None:
    model = load(stage)
    measure_all(stage, model, "PEFT")
    stage.section(measure_autocast, stage, model)
    stage.section(use_liger, stage, model)


def measure_all(stage: Stage, model: Any, way: str) -> None:
    for name, dropout in product(LENGTHS, DROPOUTS):
        stage.section(measure, stage, model, way, name, dropout)


def load(stage: Stage) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        large_model(stage),
        dtype=stage.dtype,
        attn_implementation="sdpa",
        device_map={"": stage.device},
    )
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=False).train()


def measure_autocast(stage: Stage, model: Any) -> None:
    """As Trainer and TRL do it: the adapter in float32, products under autocast."""
    matrices = [p for p in model.parameters() if p.requires_grad]
    for matrix in matrices:
        matrix.data = matrix.data.float()
    measure(stage, model, "PEFT with autocast", LONG, 0.05)
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
        measure_all(stage, model, "PEFT + Liger")


def measure(stage: Stage, model: Any, way: str, name: str, dropout: float) -> None:
    """Record the speed of optimizer steps on rows of one length, which spares the padding."""
    rows = len(LENGTHS[name])
    length = sum(LENGTHS[name]) // (64 * rows if stage.is_tiny else rows)
    for module in model.modules():
        for key in list(getattr(module, "lora_dropout", ())):
            module.lora_dropout[key] = torch.nn.Dropout(dropout)
    matrices = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(matrices, lr=1e-4, weight_decay=0.0, fused=not stage.is_tiny)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (rows, length), generator=generator).to(stage.device)

    def step() -> None:
        with torch.autocast(
            "cuda", torch.bfloat16, enabled="autocast" in way and not stage.is_tiny
        ):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matrices, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stage.peak_gigabytes()
    seconds_of(step, repeat=2)
    seconds = seconds_of(step, repeat=3)
    rate, step_name = rows * length / seconds, f", {name}, dropout {dropout:g}"
    ours = [r for r in stage.results.read() if r.check.endswith(step_name) and r.is_right]
    stage.record(
        f"{way}{step_name}",
        rate,
        "tokens/s",
        share=training_share(stage, rate, [length]),
        note=f"{1e3 * seconds:.1f} ms a step; peak {stage.peak_gigabytes():.1f} GB; "
        + ", ".join(
            f"{r.check.removesuffix(step_name)} {float(r.value) / rate:.2f} x" for r in ours
        ),
    )
