"""Random models and adapters, made where the stages run."""

from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.shapes import SHAPES
from src.cli.tiny_model import make_base_model
from src.model.shape import ModelShape
from src.serving.lora.weights import LoadedAdapter, LoadedModule

TINY = ModelShape(64, 176, 2, 4, 2, 16, 1200, is_tied=False)
SMALL = ModelShape(2048, 8192, 4, 32, 8, 64, 8000, is_tied=False)
"""Large enough for the errors of bfloat16, small enough for float32 beside it."""


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
    texts = [f"What is the colour of number {n}? Red, green or {n * 7}." for n in range(100)]
    make_base_model(
        folder,
        texts,
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
