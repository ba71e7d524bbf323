"""Random models and adapters, made where the stages run, and what is trained on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.shapes import SHAPES, flops_per_token
from src.cli.tiny_model import make_base_model
from src.model.shape import ModelShape
from src.model.sizes import read_shape
from src.serving.lora.weights import LoadedAdapter, LoadedModule

TEXTS = [f"What is the colour of number {n}? Red, green or {n * 7}." for n in range(100)]
TINY = ModelShape(64, 176, 2, 4, 2, 16, 1200, is_tied=False)
SMALL = ModelShape(2048, 8192, 4, 32, 8, 64, 8000, is_tied=False)
"""Large enough for the errors of bfloat16, small enough for float32 beside it."""
LONG, MIDDLE, SHORT = "8,192 tokens", "2,048 tokens", "4 short examples"
LENGTHS = {LONG: (2048,) * 4, MIDDLE: (2048,), SHORT: (150, 120, 175, 157)}
"""Tokens of the examples of a step; the short ones are what the default settings make of pairs."""
DROPOUTS = (0.0, 0.05)
RANK = 8


def large_model(stage: Stage) -> Path:
    """Return the folder of a model of the shape of Llama 2 7B, which the first stage makes."""
    return _make(stage, "7b", SHAPES["7b"], max_seq_len=4096)


def small_model(stage: Stage) -> Path:
    """Return the folder of this stage's own small model."""
    return _make(stage, stage.name, SMALL, max_seq_len=2048)


def _make(stage: Stage, name: str, shape: ModelShape, *, max_seq_len: int) -> Path:
    folder = stage.work / f"model-{name}"
    if folder.is_dir():
        return folder
    if stage.is_tiny:
        shape, max_seq_len = TINY, 128
    make_base_model(
        folder,
        TEXTS,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_seq_len=max_seq_len,
        device=stage.device.type,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.is_tied,
        # Rows that no token has are never drawn, which transformers does not know.
        model_vocab_size=shape.vocab_size if name == "7b" else None,
        initializer_range=0.02,
    )
    stage.release_memory()
    return folder


def training_share(stage: Stage, rate: float, lengths: Sequence[int]) -> str:
    """Return tokens a second of a 7B model's training as a share of the fastest products."""
    shape = read_shape(large_model(stage))
    assert shape is not None
    mean_length = sum(n * n for n in lengths) / sum(lengths)
    flops = flops_per_token(shape, lora_rank=RANK, max_seq_len=mean_length)
    return stage.share(rate * flops, "matmul")


def random_adapter(
    shapes: Mapping[str, tuple[int, int]], *, rank: int, seed: int, dtype: torch.dtype
) -> LoadedAdapter:
    """Return an adapter of all linear layers but the head, as the engine takes it."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).to(dtype)

    modules = {
        name: LoadedModule(matrix(rank, in_features), matrix(out_features, rank))
        for name, (out_features, in_features) in shapes.items()
        if name != "lm_head"
    }
    return LoadedAdapter(f"adapter-{seed}", modules)
