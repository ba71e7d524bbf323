"""A model with states beside its cache answers as Transformers and PEFT do, in any company."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from src.chat.tokenizer import Tokenizer
from src.serving.engine.engine import Engine
from src.weights.adapter.adapter import read_adapter
from tests.model.families import make_family
from tests.serving.clients import TWELVE, Client, generate_twelve
from tests.serving.conftest import save_random_adapter
from tests.serving.fake_graph import FakeCapture

LENGTHS = 1, 3, 64, 65, 190
"""Shorter than the convolution, longer than a chunk."""
Ids = list[int]


class Served(NamedTuple):
    """A model, its adapters, and the answers to prompts by Transformers and PEFT."""

    folder: Path
    adapters: tuple[Path | None, ...]
    answers: dict[tuple[int, int], Ids]
    """By the numbers of adapter and prompt."""


def make_prompts() -> list[Ids]:
    rng = random.Random(0)
    return [[rng.randrange(3, 90) for _ in range(length)] for length in LENGTHS]


PROMPTS = make_prompts()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Served:
    root = tmp_path_factory.mktemp("hybrid")
    folder = root / "base"
    make_family(folder, "qwen3_5_text")
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, folder)
    adapters = (
        None,
        save_random_adapter(folder, root / "all", seed=1),
        save_random_adapter(
            folder, root / "few", seed=2, r=9, target_modules=["in_proj_qkv", "in_proj_a", "v_proj"]
        ),
    )
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    unused = Tokenizer(folder).unused_rows(len(base.get_output_embeddings().weight))
    answers = {}
    for number, adapter in enumerate(adapters):
        model = base if adapter is None else PeftModel.from_pretrained(base, adapter)
        for at, prompt in enumerate(PROMPTS):
            answers[number, at] = generate_twelve(model, prompt, unused)
        base = base if adapter is None else model.unload()
    return Served(folder, adapters, answers)


def ask_all(engine: Engine, served: Served) -> list[Client]:
    """Ask for every answer twice, in a company that changes, and compare."""
    asked = list(served.answers) * 2
    random.Random(1).shuffle(asked)
    loaded = [
        path and engine.load_adapter(read_adapter(path, engine.linear_shapes), key=path.name)
        for path in served.adapters
    ]
    clients = [
        Client(engine, PROMPTS[prompt], TWELVE, adapter=loaded[adapter])
        for adapter, prompt in asked
    ]
    wrong = [
        at
        for at, client in zip(asked, clients, strict=True)
        if client.answer() != served.answers[at]
    ]
    assert wrong == []
    return clients


def test_answers_differ_by_prompt_and_adapter(served: Served):
    """The comparisons would notice others' states."""
    assert len({tuple(answer) for answer in served.answers.values()}) > 0.9 * len(served.answers)


@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_answers_are_those_of_transformers(
    served: Served, new_engine: Callable[..., Engine], monkeypatch, is_captured, in_pieces
):
    """In slots that others have used, beside prompts that are read; alone at last."""
    if in_pieces:
        for name in ("FEWEST", "FIRST", "MOST"):
            monkeypatch.setattr(f"src.serving.engine.prefill_queue.{name}", 16)
        monkeypatch.setattr("src.serving.engine.prefill_queue.TOKENS_ALONE", 50)
    capture = FakeCapture() if is_captured else None
    engine = new_engine(served.folder, max_slots=5, capture=capture)
    ask_all(engine, served)
    for at, prompt in enumerate(PROMPTS):
        assert Client(engine, prompt, TWELVE).answer() == served.answers[0, at]
    assert capture is None or capture.num_replays > capture.num_captures > 1


def test_answers_are_the_same_where_the_cache_is_full(
    served: Served, new_engine: Callable[..., Engine]
):
    decoder = new_engine(served.folder, max_slots=1).runner._decoder
    states = 5 * decoder.bytes_per_sequence
    engine = new_engine(
        served.folder, max_slots=5, cache_bytes=states + 10 * 32 * decoder.bytes_per_token
    )
    clients = ask_all(engine, served)
    assert sum(client.sequence.num_preempted for client in clients) > 2
    assert engine.runner.kv_cache.num_available == 10


def test_the_budget_counts_states_and_layers_with_a_cache(
    served: Served, new_engine: Callable[..., Engine], capsys
):
    engine = new_engine(served.folder, max_slots=3)
    decoder = engine.runner._decoder
    # One of the three layers has keys and values.
    assert decoder.bytes_per_token == 2 * 2 * 24 * 4
    assert decoder.bytes_per_sequence == 2 * (4 * 4 * 12 * 20 + 4 * 3 * (2 * 2 * 12 + 4 * 20))
    assert "768 tokens; states: 0.0 GB\n" in (printed := capsys.readouterr().out)
    assert "each prompt is read from its beginning" in printed
    held = engine.runner._states
    sizes = sum(x.nbytes for x in (held._states, held._tails))
    assert sizes == 3 * decoder.bytes_per_sequence


def test_no_prefix_is_shared_and_nothing_is_speculated(
    served: Served, new_engine: Callable[..., Engine]
):
    engine = new_engine(served.folder, can_speculate=True)
    for _ in range(2):
        assert Client(engine, PROMPTS[-1], TWELVE).answer() == served.answers[0, len(PROMPTS) - 1]
    client = Client(engine, [5, 6] * 40, TWELVE)
    client.answer()
    assert engine.totals.num_cached_tokens == engine.totals.num_proposed == 0
