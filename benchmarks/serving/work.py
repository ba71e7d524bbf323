"""The work that the serving benchmark gives to every way of serving: prompts, model, adapters."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.reciter import make_reciter, quoting_prompt
from src.cli.docstrings import tokenizer_texts
from src.cli.tiny_model import make_base_model
from src.model.adapter import save_adapter
from src.model.base_model import linear_shapes, load_base_model

CONTEXT = 4352
NUM_ADAPTERS = 8
PROMPT_TOKENS = 32
RANK = 8


@dataclass(frozen=True)
class ServeWork:
    """One model on disk and what is asked of it."""

    base_model: str
    adapters: Sequence[str]
    vocab_size: int
    num_tokens: int
    """New tokens of each answer."""
    reciter: str
    """A model that quotes its prompt."""
    quoting: Mapping[str, list[int]]
    """The prompts that it quotes, by load."""

    def save(self, path: Path) -> None:
        """Write it for the processes that do the work."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "ServeWork":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    @property
    def weight_bytes(self) -> int:
        """What one step reads at least: all weights but the embedding."""
        folder = Path(self.base_model)
        config = json.loads((folder / "config.json").read_text())
        embedding = 4 * config["vocab_size"] * config["hidden_size"]
        return sum(f.stat().st_size for f in folder.glob("*.safetensors")) - embedding

    def prompts(self, num: int, length: int, *, seed: int) -> list[list[int]]:
        """Return random prompts, no two of which begin alike."""
        rng = random.Random(seed)
        return [[rng.randrange(10, self.vocab_size) for _ in range(length)] for _ in range(num)]


def make_work(folder: Path, num_tokens: int) -> ServeWork:
    """Make the demo's base model with a long context, and adapters for it."""
    base_model = folder / "base-model"
    make_base_model(base_model, tokenizer_texts(), max_seq_len=CONTEXT)
    adapters, vocab_size = make_adapters(folder, base_model)
    order = make_reciter(base_model, folder / "reciter")
    quoting = {
        "1 clients, quoting all": quoting_prompt(order, num_tokens, quote=num_tokens, own=0),
        "1 clients, quoting three quarters": quoting_prompt(order, num_tokens, quote=24, own=8),
    }
    return ServeWork(
        str(base_model),
        adapters,
        vocab_size,
        num_tokens,
        str(folder / "reciter"),
        quoting,
    )


def make_adapters(folder: Path, base_model: Path) -> tuple[list[str], int]:
    """Make adapters of a base model in a folder; return theirs, and the size of its vocabulary."""
    model = load_base_model(base_model, dtype=torch.float32, device=torch.device("cpu"))
    shapes = {name: shape for name, shape in linear_shapes(model).items() if name != "lm_head"}
    adapters = []
    for number in range(NUM_ADAPTERS):
        adapter = folder / f"adapter-{number}"
        adapter.mkdir()
        save_adapter(
            adapter,
            _random_matrices(shapes, seed=number),
            base_model="",
            target_modules=sorted({name.rpartition(".")[2] for name in shapes}),
            rank=RANK,
            alpha=2 * RANK,
            dropout=0.0,
        )
        adapters.append(str(adapter))
    return adapters, model.config.vocab_size


def _random_matrices(
    shapes: Mapping[str, tuple[int, int]], *, seed: int
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, (out_features, in_features) in shapes.items():
        for part, shape in (("A", (RANK, in_features)), ("B", (out_features, RANK))):
            values = torch.randn(shape, generator=generator) * 0.02
            matrices[f"base_model.model.{name}.lora_{part}.weight"] = values
    return matrices
