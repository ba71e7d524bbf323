"""Models of which some layers have a window answer as Transformers and PEFT do, in any company.

Their windowed layers hold what they see, and no more of a text.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from src.chat.tokenizer import Tokenizer
from src.serving.cache.block_tables import BlockTables
from src.serving.cache.kv_cache import num_blocks_of
from src.serving.engine.engine import Engine
from src.weights.adapter.adapter import read_adapter
from tests.model.families import make_family
from tests.serving.clients import TWELVE, Client, generate_twelve
from tests.serving.conftest import save_random_adapter
from tests.serving.fake_graph import FakeCapture

WINDOW, CONTEXT, MOST_READ = 24, 512, 50
LENGTHS = 3, 60, 190, 310
"""Up to many windows long."""
FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = {
    # Blocks of one page and of six; of one each; of one and of three.
    "gemma3_text": [*[SLIDING] * 5, FULL, SLIDING],
    "gpt_oss": [SLIDING, FULL] * 2,
    "ministral": [SLIDING, FULL, SLIDING, SLIDING],
}
LONG = replace(TWELVE, max_new_tokens=300, min_new_tokens=300)
END = 2
Ids = list[int]


class Served(NamedTuple):
    """A model, its adapter, and the answers to prompts by Transformers and PEFT."""

    model_type: str
    folder: Path
    adapter: Path
    answers: dict[tuple[bool, int], Ids]
    """By whether the adapter answers, and the number of the prompt."""

    def check_greedy(self, client: Client) -> None:
        """Each token of an answer is the best one after those before it."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        unused = unused_ids(self.folder, model)
        request, answer = client.sequence.request, client.answer()
        if request.adapter is not None:
            model = PeftModel.from_pretrained(model, self.adapter)
        with torch.no_grad():
            scores = model(torch.tensor([[*request.prompt_ids, *answer[:-1]]])).logits[0]
        scores = scores[len(request.prompt_ids) - 1 :]
        scores[:, [*unused, END]] = -torch.inf  # which the request does not let through
        assert scores.argmax(-1).tolist() == answer


def unused_ids(folder: Path, base: Any) -> Ids:
    return Tokenizer(folder).unused_rows(len(base.get_output_embeddings().weight))


def make_prompts() -> list[Ids]:
    rng = random.Random(0)
    return [[rng.randrange(3, 90) for _ in range(length)] for length in LENGTHS]


PROMPTS = make_prompts()


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_dir: Path
) -> Served:
    root = tmp_path_factory.mktemp(request.param)
    folder, types = root / "base", KINDS[request.param]
    make_family(
        folder, request.param, sliding_window=WINDOW, layer_types=types,
        num_hidden_layers=len(types), max_position_embeddings=CONTEXT,
    )  # fmt: skip
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, folder)
    names = ["q_proj", "v_proj", "o_proj"]
    adapter = save_random_adapter(folder, root / "adapter", seed=1, target_modules=names)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    unused, answers = unused_ids(folder, base), {}
    for is_adapted in (False, True):
        model = PeftModel.from_pretrained(base, adapter) if is_adapted else base
        for at, prompt in enumerate(PROMPTS):
            answers[is_adapted, at] = generate_twelve(model, prompt, unused)
    return Served(request.param, folder, adapter, answers)


def ask_all(engine: Engine, served: Served) -> list[Client]:
    """Ask for every answer twice, in a company that changes, and compare."""
    adapter = engine.load_adapter(read_adapter(served.adapter, engine.linear_shapes), key="one")
    asked = list(served.answers) * 2
    random.Random(1).shuffle(asked)
    clients = [
        Client(engine, PROMPTS[prompt], TWELVE, adapter=adapter if is_adapted else None)
        for is_adapted, prompt in asked
    ]
    wrong = [
        at
        for at, client in zip(asked, clients, strict=True)
        if client.answer() != served.answers[at]
    ]
    assert wrong == []
    return clients


def cache_of(engine: Engine) -> BlockTables:
    """Return the cache of an engine that has nothing to do."""
    Client(engine, [5, 6], replace(TWELVE, max_new_tokens=1, min_new_tokens=1)).answer()
    return engine.runner.kv_cache


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in pieces of 16 tokens beside answers, and of 50 alone."""
    for name in ("FEWEST", "FIRST", "MOST"):
        monkeypatch.setattr(f"src.serving.engine.prefill_queue.{name}", 16)
    monkeypatch.setattr("src.serving.engine.prefill_queue.TOKENS_ALONE", MOST_READ)
    monkeypatch.setattr("src.serving.engine.runners.TOKENS_ALONE", MOST_READ)


@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_are_those_of_transformers(
    served: Served, new_engine: Callable[..., Engine], is_captured: bool
):
    """Beside others, after others whose blocks they take and share, and alone."""
    capture = FakeCapture() if is_captured else None
    engine = new_engine(served.folder, max_slots=5, capture=capture)
    ask_all(engine, served)
    for at, prompt in enumerate(PROMPTS):
        assert Client(engine, prompt, TWELVE).answer() == served.answers[False, at]
    assert engine.totals.num_cached_tokens > sum(LENGTHS)
    assert capture is None or capture.num_replays > capture.num_captures > 1
    cache = cache_of(engine)
    assert cache.num_available == cache.tensors.num_pages


def test_plain_steps_answer_the_same(served: Served, new_engine: Callable[..., Engine]):
    """Where a CPU has no compiled step, which knows one of the models."""
    compiled, plain = (
        new_engine(served.folder, max_slots=5, compile=compile) for compile in (None, False)
    )
    assert (compiled.runner._few_rows is not None) == (served.model_type == "ministral")
    assert plain.runner._few_rows is None
    ask_all(plain, served)


def test_ranks_answer_the_same(served: Served, new_engine: Callable[..., Engine]):
    if served.model_type == "gpt_oss":
        pytest.skip("its sinks cannot be split")
    ask_all(new_engine(served.folder, max_slots=5, tensor_parallel=2), served)


@pytest.mark.usefixtures("in_pieces")
def test_answers_are_the_same_where_the_cache_is_full(
    served: Served, new_engine: Callable[..., Engine]
):
    """In pieces; there is room for one text of the whole context, and little more."""
    tensors = new_engine(served.folder, max_slots=1).runner.kv_cache.tensors
    num_pages = 2 + sum(
        group.num_pages * group.most_blocks(CONTEXT, MOST_READ) for group in tensors.groups
    )
    num_bytes = num_pages * tensors.page_bytes
    engine = new_engine(served.folder, max_slots=5, cache_bytes=num_bytes)
    assert engine.max_seq_len == CONTEXT
    ask_all(engine, served)
    adapter = engine.load_adapter(read_adapter(served.adapter, engine.linear_shapes), key="two")
    clients = [
        Client(engine, prompt[:40], LONG, adapter=one)
        for prompt in PROMPTS[1:]
        for one in (None, adapter)
    ]
    for client in clients:
        served.check_greedy(client)
    assert sum(client.sequence.num_preempted for client in clients) > 2
    assert cache_of(engine).num_available == num_pages


@pytest.mark.usefixtures("in_pieces")
def test_a_window_holds_no_more_than_it_sees(
    served: Served, new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    most: dict[int | None, int] = {}
    grow = BlockTables.grow

    def watch(tables: BlockTables, slot: int, *tokens: Any) -> bool:
        has_room = grow(tables, slot, *tokens)
        for group, held in zip(tables.tensors.groups, tables.tensors.held, strict=True):
            found = sum(bool(block) for block in held[slot])
            most[group.window] = max(found, most.get(group.window, 0))
        return has_room

    monkeypatch.setattr(BlockTables, "grow", watch)
    ask_all(new_engine(served.folder, max_slots=5), served)
    assert most[WINDOW] <= num_blocks_of(WINDOW + MOST_READ) + 1
    assert most[None] == num_blocks_of(max(LENGTHS) + TWELVE.max_new_tokens)


@pytest.mark.usefixtures("in_pieces")
def test_a_dialogue_goes_on_from_its_end(served: Served, new_engine: Callable[..., Engine]):
    """Where windowed layers know the last tokens alone, as others took what was before them."""
    prompt = PROMPTS[-1]
    tensors = new_engine(served.folder, max_slots=1).runner.kv_cache.tensors
    # Of the second text there is room for one block less than it needs.
    num_blocks = num_blocks_of(len(prompt) + TWELVE.max_new_tokens) + num_blocks_of(LENGTHS[1]) - 1
    num_bytes = num_blocks * len(tensors.tables) * tensors.page_bytes
    engine = new_engine(served.folder, max_slots=2, cache_bytes=num_bytes, can_speculate=False)
    first = Client(engine, prompt, TWELVE).answer()
    Client(engine, PROMPTS[1], TWELVE).answer()
    index = engine.runner.kv_cache._index
    known = [link.blocks for link in index._of_block.values()]
    assert not all(map(all, known))
    client = Client(engine, [*prompt, *first, 7, 8, 9], TWELVE)
    served.check_greedy(client)
    assert client.sequence.num_cached_tokens == len(prompt) + len(first) - 1
