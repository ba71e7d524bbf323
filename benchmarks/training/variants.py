"""The ways of training that the benchmark compares: ours and the peers'."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from src.model.precision import choose_dtype


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    name: str
    packed: bool
    peer: str | None = None
    """The peer's program; None is this project."""
    settings: tuple[tuple[str, object], ...] = ()
    liger: bool = False
    bf16: bool = False
    """On a CPU; on a GPU all of them are."""
    compiled: bool = False
    """By torch.compile on a CPU; on a GPU ours is by default."""


QLORA = (("peft_method", "qlora"),)
VARIANTS = (
    Variant("cog-finetune, packed", True),
    Variant("cog-finetune, unpacked", False),
    Variant("cog-finetune, packed, qlora", True, settings=QLORA),
    Variant("cog-finetune, unpacked, qlora", False, settings=QLORA),
    Variant("TRL SFTTrainer, packed", True, peer="trl_sft.py"),
    Variant("TRL SFTTrainer, unpacked", False, peer="trl_sft.py"),
    Variant("Transformers Trainer, unpacked", False, peer="transformers_trainer.py"),
)
BF16 = tuple(replace(variant, name=f"{variant.name}, bf16", bf16=True) for variant in VARIANTS)
"""For CPUs with instructions for it."""
COMPILED = (Variant("cog-finetune, packed, bf16, compiled", True, bf16=True, compiled=True),)
"""Ours compiles by itself in longer runs, on processors where that is faster."""
LIGER = (Variant("TRL SFTTrainer with Liger, packed", True, peer="trl_sft.py", liger=True),)
"""Its kernels run on GPUs only."""


def choose_variants(*, on_gpu: bool, only: str) -> Iterator[Variant]:
    """Yield the variants that this device runs and whose name holds the text `only`."""
    has_bf16 = choose_dtype(torch.device("cpu")) == torch.bfloat16
    more = LIGER if on_gpu else BF16 + COMPILED if has_bf16 else ()
    for variant in (*VARIANTS, *more):
        if only in variant.name:
            yield variant
