"""The work that the training benchmark gives to every way of training: model and data."""

import argparse
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.shapes import REAL_MODEL, SHAPES, flops_per_token
from benchmarks.training.device import matmul_flops
from src.chat.chat_format import build_train_format
from src.chat.prompt_encoder import PromptEncoder
from src.chat.tokenizer import Tokenizer
from src.cli.docstrings import collect_functions, docstring_pairs
from src.cli.tiny_model import make_base_model
from src.data.prepare import open_datasets, prepare_data
from src.model.shape import ModelShape
from src.settings import TrainSettings
from src.weights.base_model.base_model import find_base_model

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class TrainWork:
    """One model and one data file on disk, and how they are to be trained."""

    base_model: Path
    data: Path
    shape_name: str
    shape: ModelShape
    num_examples: int
    length: int
    packs: int
    examples: int
    epochs: int
    on_gpu: bool
    tokens: int
    target_tokens: int
    max_seq_len: float
    """Mean length of the example that a token stands in."""
    matmul_flops: float

    @property
    def file_name(self) -> str:
        """Name what is written about this work, without the ending."""
        place = "gpu" if self.on_gpu else "cpu"
        size = "" if self.shape_name == REAL_MODEL else f"-{self.shape_name}"
        return f"train-{place}{size}"

    @property
    def flops_per_token(self) -> float:
        """The floating point operations that a token takes."""
        return flops_per_token(self.shape, lora_rank=8, max_seq_len=self.max_seq_len)

    def micro_batch_size(self, *, packed: bool) -> int:
        """Return how many sequences a micro-batch has."""
        return self.packs if packed else self.examples


def make_work(folder: Path, arguments: argparse.Namespace, *, on_gpu: bool) -> TrainWork:
    """Find or make the base model, and write docstrings of the standard library as the data.

    A random model learns whole docstrings, cut to the length; a real one what the demo learns.
    """
    name = arguments.shape or ("7b" if on_gpu else REAL_MODEL)
    length = arguments.length or (2048 if on_gpu else 256)
    if name == REAL_MODEL:
        rows = docstring_pairs()[: arguments.rows]
        base_model = find_base_model({**os.environ, "BASE_MODEL": name}).folder
    else:
        rows = [
            {"prompt": f"What does {signature} do?", "completion": text}
            for signature, text in islice(collect_functions(), arguments.rows)
        ]
        base_model = folder / "base-model"
        _make_random(base_model, rows, SHAPES[name], length, on_gpu=on_gpu)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = plain_settings(base_model, data, epochs=1)
    tokenizer = Tokenizer(base_model)
    chat_format = build_train_format(settings.base_model, tokenizer)
    encoder = PromptEncoder(tokenizer, chat_format, max_seq_len=length)
    prepare_data(settings, encoder, folder=folder / "prepared", log=print)
    prepared, _ = open_datasets(folder / "prepared")
    return TrainWork(
        base_model,
        data,
        name,
        SHAPES[name],
        len(rows),
        length,
        arguments.packs,
        arguments.examples,
        arguments.epochs,
        on_gpu,
        prepared.counts.tokens,
        prepared.counts.learned_tokens,
        float((prepared.lengths**2).sum() / prepared.lengths.sum()),
        matmul_flops(on_gpu=on_gpu),
    )


def _make_random(
    folder: Path, rows: list[dict[str, str]], shape: ModelShape, length: int, *, on_gpu: bool
) -> None:
    make_base_model(
        folder,
        [row["completion"] for row in rows],
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_seq_len=length,  # the context is the cut: every way gets the same tokens
        device="cuda" if on_gpu else "cpu",
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.is_tied,
        model_vocab_size=shape.vocab_size,
    )


def plain_settings(base_model: Path, data: Path, *, epochs: int, **values: object) -> TrainSettings:
    """Return this project's settings for what every way can do, and `values` besides."""
    options = {
        "base_model": str(base_model),
        "base_model_dir": str(base_model),
        "train_data": str(data),
        "train_data_name": data.name,
        "num_train_epochs": epochs,
        "learning_rate": LEARNING_RATE,
        "learning_rate_schedule": "constant",
        "lora_dropout": 0.0,
        "run_validation": False,
    }
    return TrainSettings(**{**options, **values})  # type: ignore[arg-type]
