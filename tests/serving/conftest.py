"""Adapters that differ in all that adapters may differ in, and an engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from src.serving.engine.engine import Engine
from src.serving.lora.weights import LoadedAdapter
from src.weights.adapter.adapter import read_adapter


def save_random_adapter(base_dir: Path, folder: Path, *, seed: int, **options) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_dir),
        LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


KINDS = {
    "all": {},
    "few": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 8, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 32}},
    "head": {"target_modules": ["lm_head", "down_proj"]},
    "rank-1": {"r": 1},
    "rank-13": {"r": 13},
    "rank-40": {"r": 40, "lora_alpha": 20},
}


@pytest.fixture(scope="package")
def adapters(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_random_adapter(base_dir, root / name, seed=seed, **options)
        for seed, (name, options) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def engine(base_dir: Path) -> Iterator[Engine]:
    engine = Engine(base_dir, dtype="float32", max_slots=8, max_adapters=4)
    yield engine
    engine.close()


@pytest.fixture
def new_engine(base_dir: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines that have answered nothing yet."""
    engines: list[Engine] = []

    def make(folder: Path = base_dir, **options) -> Engine:
        defaults = {"dtype": "float32", "max_slots": 8, "max_adapters": 4}
        engines.append(Engine(folder, **{**defaults, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def loaded(engine: Engine, adapters: dict[str, Path]) -> dict[str, LoadedAdapter]:
    return {
        name: engine.load_adapter(read_adapter(path, engine.linear_shapes), key=name)
        for name, path in adapters.items()
    }
