"""Small batches, and what a model with an adapter learns of them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from src.data.collate import Batch
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import load_base_model
from src.model.loss import SummedLoss

CPU = torch.device("cpu")


def build_model(base_dir: Path, *, in_4bit: bool = False) -> SummedLoss:
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU, in_4bit=in_4bit)
    names = resolve_target_modules(model, "all-linear")
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.0, seed=0)
    torch.manual_seed(1)
    for name, parameter in adapter_parameters(model):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return SummedLoss(model)


def make_batch(*lengths: int) -> Batch:
    torch.manual_seed(2)
    num_tokens = sum(lengths)
    ids = torch.randint(3, 250, (num_tokens + 1,))
    target_positions = torch.tensor([i for i in range(num_tokens) if i % 3])
    weights = torch.where(target_positions % 3 == 1, 0.5, 1.0)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    boundaries = (0, *torch.tensor(lengths).cumsum(0).tolist())
    return Batch(
        ids[None, :-1], positions, target_positions, ids[1:][target_positions], weights, boundaries
    )


def cut(batch: Batch) -> list[Batch]:
    parts = []
    for start, stop in pairwise(batch.boundaries):
        rows = (batch.target_positions >= start) & (batch.target_positions < stop)
        parts.append(
            Batch(
                batch.input_ids[:, start:stop],
                batch.position_ids[:, start:stop],
                batch.target_positions[rows] - start,
                batch.labels[rows],
                batch.loss_weights[rows],
                (0, stop - start),
            )
        )
    return parts


def gradients(module: SummedLoss, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    module.zero_grad()
    total = 0.0
    for batch in batches:
        summed = run(module, batch)
        summed.backward()
        total += float(summed.detach())
    named = adapter_parameters(module.model)
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def run(module: SummedLoss, batch: Batch) -> torch.Tensor:
    return module(*vars(batch).values())


def bytes_kept(module: SummedLoss, batch: Batch) -> int:
    """Return what a pass keeps for its backward pass, each tensor once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(module, batch)
    return sum(kept.values())


def assert_same(one: tuple, other: tuple) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-5, msg=name)
