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

from benchmarks.gpu.models import RANK, small_model
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import relative_error
from benchmarks.gpu.training import Training, leave
from src.data.collate import Batch
from src.deterministic import compute_in_one_order
from src.model.adapter import adapter_parameters, resolve_target_modules
from src.model.core.float8 import MAX_ERROR, product_error
from src.model.loss import SummedLoss

BFLOAT16 = 0.05
"""Relative error of a gradient; plain bfloat16 layers have 0.022."""
FLOAT8 = 0.2
"""0.05 was seen after two layers."""
REPEATED = 0.01
"""Between runs of one kind: a backward pass of attention adds in any order, which makes 0.005."""
DROPOUT = 0.3

Gradients = dict[str, Tensor]
Found = tuple[float, Gradients]


def run(stage: Stage) -> None:
    folder = small_model(stage)
    reference = stage.section(train_in_float32, stage, folder)
    if reference is None:
        return
    stage.section(check_eager, stage, folder, reference)
    stage.section(check_compiled, stage, folder, reference)
    stage.section(check_float8, stage, folder, reference)
    stage.section(check_qlora, stage, folder)
    stage.section(check_deterministic, stage, folder)
    leave()


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


class Trained:
    """A model of the project's, as a training loads it, and what it finds for the batch."""

    def __init__(
        self, stage: Stage, folder: Path, name: str, *, dropout: float = 0.0, **options: Any
    ) -> None:
        training = Training(stage, folder, name, length=32, lora_dropout=dropout, **options)
        self.loss, self._batch = training.model.loss, the_batch(stage)
        if self.loss.decoder is None:
            raise RuntimeError("the decoder refuses this model")
        set_adapter(self.loss.model)

    def find(self, *, num_recomputed: int = 0, seed: int = 0) -> Found:
        """Return loss and gradients of the decoder."""
        torch.manual_seed(seed)
        self.loss.recompute(num_recomputed)
        return self._gradients(self.loss)

    def find_with_peft(self) -> Found:
        """Return those of Transformers' layers with PEFT's."""
        return self._gradients(SummedLoss(self.loss.model))

    def _gradients(self, summed: SummedLoss) -> Found:
        loss = summed(**vars(self._batch))
        named = dict(adapter_parameters(self.loss.model))
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


def check_eager(stage: Stage, folder: Path, reference: Found) -> None:
    trained = Trained(stage, folder, "eager", variables={"COMPILE": "0"})
    plain, ours = trained.find_with_peft(), trained.find()
    compare(stage, "Transformers and PEFT against float32", plain, reference, BFLOAT16)
    compare(stage, "decoder against float32", ours, reference, BFLOAT16)
    compare(stage, "decoder against Transformers and PEFT", ours, plain, BFLOAT16)
    compare(stage, "decoder twice", trained.find(), ours, REPEATED)
    for count in (1, 99):
        recomputed = trained.find(num_recomputed=count)
        compare(stage, f"{count} layers recomputed", recomputed, ours, REPEATED)


def check_compiled(stage: Stage, folder: Path, reference: Found) -> None:
    """Compile also where the default is not to, and where dropout is not the default's."""
    trained = Trained(stage, folder, "compiled", variables={"COMPILE": "1"}, dropout=DROPOUT)
    found = [trained.find(seed=seed) for seed in (3, 3, 4)]
    compare(stage, "dropout with one seed twice", found[1], found[0], REPEATED)
    compare(
        stage,
        "dropout, all recomputed",
        trained.find(seed=3, num_recomputed=99),
        found[0],
        REPEATED,
    )
    name = next(reversed(found[0][1]))
    difference = relative_error(found[2][1][name], found[0][1][name])
    stage.record("dropout with another seed", difference, "relative", is_right=difference > 0.05)
    trained.loss.model.eval()
    compare(stage, "compiled against float32", trained.find(), reference, BFLOAT16)


def check_float8(stage: Stage, folder: Path, reference: Found) -> None:
    if stage.float8_refused:
        return
    for num_tokens in (1, 17, 2048):
        error = product_error(stage.device, num_tokens)
        name = f"float8 product and gradient, {num_tokens:,} tokens"
        stage.record(name, error, "relative", is_right=error < MAX_ERROR)
    trained = Trained(stage, folder, "float8", variables={"BASE_WEIGHTS": "fp8"})
    compare(stage, "float8 against float32", trained.find(), reference, FLOAT8)


def check_qlora(stage: Stage, folder: Path) -> None:
    packed = Trained(stage, folder, "qlora", peft_method="qlora", keeps_dequantized=False)
    plain, ours = packed.find_with_peft(), packed.find()
    compare(stage, "qlora, decoder against Transformers and PEFT", ours, plain, BFLOAT16)
    del packed
    unpacked = Trained(stage, folder, "qlora, weights unpacked once", peft_method="qlora")
    compare(stage, "qlora, weights unpacked once", unpacked.find(), ours, 2 * REPEATED)


def check_deterministic(stage: Stage, folder: Path) -> None:
    """With `DETERMINISTIC=1` two passes give the same bytes; it holds for the rest of a process."""
    compute_in_one_order()
    options: dict[str, Any] = {"variables": {"DETERMINISTIC": "1"}, "dropout": DROPOUT}
    trained = Trained(stage, folder, "deterministic", **options)
    one, other = (trained.find(seed=3)[1] for _ in range(2))
    count = sum(not torch.equal(one[name], other[name]) for name in one)
    stage.record("gradients that differ, DETERMINISTIC=1", count, is_right=count == 0)
