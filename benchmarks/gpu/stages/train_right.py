"""Loss and LoRA gradients against Transformers and PEFT in float32, each example alone."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.gpu.models import small_model
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import relative_error
from src.data.collate import Batch
from src.deterministic import compute_in_one_order
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import keep_dequantized, load_base_model
from src.model.loss import SummedLoss

RANK = 8
BFLOAT16 = 0.05
"""Relative error of a gradient; plain bfloat16 layers have 0.022."""
REPEATED = 0.01
"""Between runs of one kind: a backward pass of attention adds in any order, which makes 0.005."""

Gradients = dict[str, Tensor]
Found = tuple[float, Gradients]


def run(stage: Stage) -> None:
    folder = small_model(stage)
    reference = stage.section(train_in_float32, stage, folder)
    if reference is None:
        return
    stage.section(check_paths, stage, folder, reference)
    stage.section(check_dropout, stage, folder)
    stage.section(check_qlora, stage, folder)
    stage.section(check_deterministic, stage, folder)


def make_batch(stage: Stage, lengths: Sequence[int]) -> Batch:
    """Return random examples end to end, of which two thirds of the tokens are targets."""
    generator = torch.Generator().manual_seed(5)
    boundaries = tuple(accumulate(lengths, initial=0))
    ids = torch.randint(3, 250, (boundaries[-1],), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])
    targets = torch.tensor([n for a, b in pairwise(boundaries) for n in range(a, b - 1) if n % 3])
    return Batch(
        input_ids=ids[None],
        position_ids=positions[None],
        target_positions=targets,
        labels=ids[targets + 1],
        loss_weights=0.5 + (targets % 7) / 7,
        boundaries=boundaries,
    ).to(stage.device)


def the_batch(stage: Stage) -> Batch:
    return make_batch(stage, (1, 7, 31) if stage.is_tiny else (1, 7, 31, 300, 129, 580, 1000))


def set_adapter(model: nn.Module) -> None:
    """Give every way the same matrices, in numbers that bfloat16 has; B is not zero."""
    generator = torch.Generator().manual_seed(9)
    for name, matrix in sorted(model.named_parameters()):
        if "lora_" in name:
            values = torch.randn(matrix.shape, generator=generator) * 0.02
            matrix.data = values.bfloat16().to(matrix.device, matrix.dtype)


def train_in_float32(stage: Stage, folder: Path) -> Found:
    """Return what Transformers and PEFT find, by PEFT's names of the matrices."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", device_map={"": stage.device}
    )
    config = LoraConfig(
        r=RANK, lora_alpha=16, target_modules=resolve_target_modules(model, "all-linear")
    )
    inject_adapter_in_model(config, model, adapter_name="default")
    set_adapter(model)
    batch = the_batch(stage)
    total = torch.zeros((), device=stage.device)
    for start, stop in pairwise(batch.boundaries):
        own = (batch.target_positions >= start) & (batch.target_positions < stop)
        logits = model(batch.input_ids[:, start:stop], use_cache=False).logits[0]
        losses = cross_entropy(
            logits[batch.target_positions[own] - start], batch.labels[own], reduction="none"
        )
        total = total + (losses * batch.loss_weights[own]).sum()
    named = dict(adapter_parameters(model))
    gradients = torch.autograd.grad(total, list(named.values()))
    return float(total), dict(zip(named, (g.cpu() for g in gradients), strict=True))


def adapted(stage: Stage, folder: Path, *, in_4bit: bool = False, dropout: float = 0.0) -> Any:
    """Return the project's own model with the adapter."""
    model = load_base_model(folder, dtype=stage.dtype, device=stage.device, in_4bit=in_4bit)
    attach(model, dropout)
    return model


def attach(model: Any, dropout: float = 0.0) -> None:
    attach_adapter(
        model,
        target_modules=resolve_target_modules(model, "all-linear"),
        rank=RANK,
        alpha=16,
        dropout=dropout,
        seed=1,
    )
    set_adapter(model)
    model.train()


def train(model: Any, batch: Batch, *, is_ours: bool = True, num_recomputed: int = 0) -> Found:
    """Return what our decoder finds, or Transformers' layers with PEFT's."""
    summed = SummedLoss(model)
    if is_ours and (reason := summed.use_decoder()):
        raise RuntimeError(reason)
    summed.recompute(num_recomputed)
    loss = summed(**vars(batch))
    named = dict(adapter_parameters(model))
    gradients = torch.autograd.grad(loss, list(named.values()))
    return float(loss), dict(zip(named, (g.float().cpu() for g in gradients), strict=True))


def compare(stage: Stage, name: str, found: Found, reference: Found, limit: float) -> None:
    """Record how far all gradients together are, and the loss."""
    (loss, gradients), (other_loss, others) = found, reference
    error = relative_error(
        *(torch.cat([g[n].flatten() for n in others]) for g in (gradients, others))
    )
    loss_error = abs(loss / other_loss - 1)
    stage.record(
        f"gradients: {name}",
        error,
        "relative",
        is_right=error < limit and loss_error < 0.01 and gradients.keys() == others.keys(),
        note=f"below {limit}; loss {loss:.5f} against {other_loss:.5f}",
    )


def check_paths(stage: Stage, folder: Path, reference: Found) -> None:
    model, batch = adapted(stage, folder), the_batch(stage)
    plain = train(model, batch, is_ours=False)
    compare(stage, "Transformers and PEFT against float32", plain, reference, BFLOAT16)
    ours = train(model, batch)
    compare(stage, "decoder against float32", ours, reference, BFLOAT16)
    compare(stage, "decoder against Transformers and PEFT", ours, plain, BFLOAT16)
    compare(stage, "decoder twice", train(model, batch), ours, REPEATED)
    for count in (1, 99):
        recomputed = train(model, batch, num_recomputed=count)
        compare(stage, f"{count} layers recomputed", recomputed, ours, REPEATED)


def check_dropout(stage: Stage, folder: Path) -> None:
    model, batch = adapted(stage, folder, dropout=0.3), the_batch(stage)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(train(model, batch))
    compare(stage, "dropout with one seed twice", found[1], found[0], REPEATED)
    name = next(reversed(found[0][1]))
    difference = relative_error(found[2][1][name], found[0][1][name])
    stage.record("dropout with another seed", difference, "relative", is_right=difference > 0.05)


def check_deterministic(stage: Stage, folder: Path) -> None:
    """With `DETERMINISTIC=1` two passes give the same bytes, with dropout too."""
    model, batch, found = adapted(stage, folder, dropout=0.3), the_batch(stage), []
    compute_in_one_order()
    try:
        for _ in range(2):
            torch.manual_seed(3)
            found.append(train(model, batch)[1])
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = found
    num_different = sum(not torch.equal(one[name], other[name]) for name in one)
    stage.record(
        "gradients that differ, DETERMINISTIC=1", num_different, is_right=num_different == 0
    )


def check_qlora(stage: Stage, folder: Path) -> None:
    batch, packed = the_batch(stage), adapted(stage, folder, in_4bit=True)
    plain, ours = train(packed, batch, is_ours=False), train(packed, batch)
    compare(stage, "qlora, decoder against Transformers and PEFT", ours, plain, BFLOAT16)
    del packed
    unpacked = load_base_model(folder, dtype=stage.dtype, device=stage.device, in_4bit=True)
    keep_dequantized(unpacked)
    attach(unpacked)
    compare(stage, "qlora, weights unpacked once", train(unpacked, batch), ours, 2 * REPEATED)
