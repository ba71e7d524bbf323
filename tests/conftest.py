"""The tiny base model and the real runs that tests share."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Triton, which torch imports where it is installed, reads this once: no test needs a GPU.
os.environ["TRITON_INTERPRET"] = "1"
# Parity is tested in float32; what is tested in other precisions says so.
os.environ["DTYPE"] = "float32"

import pytest
from xdist.scheduler import LoadScopeScheduling

from src.chat.tokenizer import Tokenizer
from src.cli.tiny_model import make_base_model
from src.environment import read_train_environment
from src.settings import TrainSettings
from src.weights.base_model.base_model import find_base_model

TESTS = Path(__file__).resolve().parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"

ROWS = [
    {"prompt": f"What is the colour of number {number}?", "completion": f"It is {colour}{mark}"}
    for number, (colour, mark) in enumerate(
        zip(
            ["red", "green", "blue", "grey", "pink", "black", "white", "brown"] * 3,
            ["", ".", "!", " or so", ", I think", "\nsurely"] * 4,
            strict=True,
        )
    )
]


SERVERS = [
    "test_end_to_end.py",
    "cli/test_demo.py",
    "training/test_machines.py",
    "training/test_plan.py",
]
"""Files of tests that start Cog's server: they share the schema that lies in the checkout."""
CLIENTS = ["service/clients/test_clients.py", "service/clients/test_moving.py"]
"""Files of tests that run clients against one service."""
FIRST = [
    *(*CLIENTS, "service/openai/test_jobs.py", "service/page/test_page.py"),
    *(*SERVERS, "training/test_faults.py", "training/test_checkpoints.py"),
    "training/test_real_model.py",
]
"""Files of long runs: one of them at the end would be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {TESTS / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: names.get(item.path, len(names)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give files to the workers, those that share a server to one, in the order of collection."""
    shared = {f"tests/{name}": names[0] for names in (SERVERS, CLIENTS) for name in names}

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return shared.get(file, file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Start and end a test with nothing compiled, and nothing counted."""
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama small enough to train on a CPU in seconds, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    texts = [f"{row['prompt']}\n{row['completion']}" for row in ROWS] * 4
    make_base_model(
        folder, texts, vocab_size=400, hidden_size=64, num_layers=2, num_heads=4,
        num_key_value_heads=2, max_seq_len=256,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def smollm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, a real base model, made once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    environ = {"BASE_MODEL": "smollm2-135m-instruct", "BASE_MODEL_CACHE": str(folder)}
    return find_base_model(environ).folder


@pytest.fixture(scope="session")
def tokenizer(base_dir: Path) -> Tokenizer:
    return Tokenizer(base_dir)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama 2's own tokenizer, where it lies beside the project."""
    folder = tmp_path_factory.mktemp("llama-2")
    shutil.copy(SHARED_DATA / "llama-2-tokenizer" / "tokenizer.model", folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return Tokenizer(folder)


@pytest.fixture
def write_rows(tmp_path: Path):
    """Return a function that writes rows as a JSONL file."""

    def write(rows: list[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def make_settings(base_dir: Path, write_rows):
    """Return a function that builds the settings of a run on the tiny base model."""

    def make(rows: list[object] | None = None, **values) -> TrainSettings:
        return TrainSettings(
            **{
                "base_model": str(base_dir),
                "base_model_dir": str(base_dir),
                "train_data": str(write_rows(ROWS if rows is None else rows)),
                "train_data_name": "data.jsonl",
                "lora_dropout": 0.0,
                "environment": read_train_environment(os.environ),
                **values,
            }
        )

    return make


@pytest.fixture(scope="session", autouse=True)
def _own_servers_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ALLOW_PRIVATE_URLS"] = "1"
    os.environ["WEIGHTS_CACHE"] = str(tmp_path_factory.mktemp("weights-cache"))


@pytest.fixture(autouse=True)
def _no_leftover_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
