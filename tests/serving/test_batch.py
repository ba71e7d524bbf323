"""Whoever else is served: an answer is the one that the base model and its adapter give alone.

BATCH_REQUESTS, SOAK_REQUESTS and ADAPTER_LOADS make the long runs longer.
"""

import gc
import itertools
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import src.serving.engine.prefill_queue
import src.serving.engine.runners
from src.errors import UserError
from src.serving.engine.batch import Batch
from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Request
from src.serving.lora.slots import LoraSlots
from src.serving.lora.stacked import LoraBatch
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams
from tests.serving.clients import GREEDY, Client, random_prompts
from tests.serving.fake_graph import FakeCapture

NUM_BATCH = int(os.environ.get("BATCH_REQUESTS", "200"))
NUM_SOAK = int(os.environ.get("SOAK_REQUESTS", "400"))
NUM_LOADS = int(os.environ.get("ADAPTER_LOADS", "200"))


class Reference:
    """transformers and PEFT, one request at a time."""

    def __init__(self, base_dir: Path, adapters: dict[str, Path]) -> None:
        names = list(adapters)
        model = AutoModelForCausalLM.from_pretrained(base_dir)
        self.model = PeftModel.from_pretrained(model, adapters[names[0]], adapter_name=names[0])
        for name in names[1:]:
            self.model.load_adapter(adapters[name], adapter_name=name)

    @torch.inference_mode()
    def logits(self, adapter: str | None, ids: list[int]) -> torch.Tensor:
        batch = torch.tensor([list(ids)])
        if adapter is None:
            with self.model.disable_adapter():
                return self.model(batch).logits[0]
        self.model.set_adapter(adapter)
        return self.model(batch).logits[0]

    def check_greedy(self, adapter: str | None, prompt: list[int], answer: list[int]) -> None:
        """Each token is the best one after those before it, hence the answer is the greedy one."""
        scores = self.logits(adapter, [*prompt, *answer[:-1]])[len(prompt) - 1 :]
        assert scores.argmax(-1).tolist() == answer, (adapter, len(prompt))


@pytest.fixture(scope="module")
def reference(base_dir: Path, adapters: dict[str, Path]) -> Reference:
    return Reference(base_dir, adapters)


@pytest.mark.parametrize("is_captured", [False, True])
def test_greedy_answers_in_a_mixed_batch(new_engine, loaded, reference, is_captured):
    """Random prompts, lengths and adapters; cancels and refusals, other sampling params between.

    Captured steps overlap with the handing out of the tokens before.
    """
    engine = new_engine(capture=FakeCapture() if is_captured else None)
    rng = random.Random(is_captured)
    names = [None, *loaded]
    prompts = random_prompts(NUM_BATCH, engine.vocab_size, seed=1 + is_captured)
    clients, others = [], []
    for number, prompt in enumerate(prompts):
        name = rng.choice(names)
        adapter = None if name is None else loaded[name]
        clients.append((name, prompt, Client(engine, prompt, adapter=adapter)))
        if number % 3 == 0:
            sampling = SamplingParams(max_new_tokens=rng.randint(1, 40), seed=number)
            others.append(
                Client(engine, prompt[:9], sampling, adapter=loaded[rng.choice(names[1:])])
            )
        if number % 7 == 0:
            rng.choice(others).cancel()
        if number % 11 == 0:
            with pytest.raises(UserError, match="the context that is served; found"):
                Client(engine, [5] * 256)
    lengths = set()
    for name, prompt, client in clients:
        answer = client.read()
        assert len(answer) == 64 or client.end.reason == "end" or len(prompt) == 190
        reference.check_greedy(name, prompt, answer)
        lengths.add(len(answer))
    assert len(lengths) > 1
    for other in others:
        other.read()
        assert other.end.reason in ("end", "length", "canceled")
    assert any(other.end.reason == "canceled" for other in others)


def soak(engine: Engine, loaded: dict[str, LoadedAdapter]) -> tuple[int, int]:
    """Return how many answers of mixed requests were read, and how many were wrong."""
    rng = random.Random(3)
    prompts = random_prompts(3, engine.vocab_size, seed=4)
    sampling = [
        replace(GREEDY, max_new_tokens=24),
        SamplingParams(max_new_tokens=16, seed=11),
        SamplingParams(max_new_tokens=16, seed=0, temperature=1.4, top_k=12, top_p=0.8),
    ]

    def ask(key: tuple[int, int, str | None]) -> Client:
        adapter = None if key[2] is None else loaded[key[2]]
        return Client(engine, prompts[key[0]][:100], sampling[key[1]], adapter=adapter)

    keys = list(itertools.product(range(3), range(3), [None, *loaded]))
    expected = {key: ask(key).read() for key in keys}
    running: list[tuple[tuple[int, int, str | None], Client]] = []
    num_read = num_wrong = 0
    for number in range(NUM_SOAK):
        key = rng.choice(keys)
        client = ask(key)
        if number % 9 == 0:
            client.read(rng.randint(0, 3))
            client.cancel()
        else:
            running.append((key, client))
        while len(running) > 20:
            done, client = running.pop(0)
            num_read += 1
            num_wrong += client.read() != expected[done]
    return num_read, num_wrong


def test_no_answer_of_a_mixed_soak_is_wrong(engine, loaded):
    num_read, num_wrong = soak(engine, loaded)
    assert num_read > NUM_SOAK // 2
    assert num_wrong == 0


def test_the_soak_notices_when_adapters_are_not_kept_apart(engine, loaded, monkeypatch):
    real = LoraSlots.of_tokens

    def give_all_the_first_ones(self: LoraSlots, slots: Sequence[int | None]) -> LoraBatch | None:
        first = next((slot for slot in slots if slot is not None), None)
        return real(self, [first] * len(slots))

    monkeypatch.setattr(LoraSlots, "of_tokens", give_all_the_first_ones)
    assert soak(engine, loaded)[1] > 0


def test_two_tokens_are_drawn_as_transformers_would(engine, loaded, reference):
    """Chi-square over the pairs of the first two tokens, against transformers' own warpers."""
    prompt, num_draws = [9, 30, 31, 32, 33, 34, 35, 36, 37, 38], 3000
    sampling = {"temperature": 0.7, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.3}

    def probabilities(ids: list[int]) -> torch.Tensor:
        scores = reference.logits("all", ids)[-1:]
        processors = LogitsProcessorList(
            [
                RepetitionPenaltyLogitsProcessor(1.3),
                TemperatureLogitsWarper(0.7),
                TopKLogitsWarper(4),
                TopPLogitsWarper(0.9),
            ]
        )
        return processors(torch.tensor([ids]), scores)[0].softmax(-1)

    first = probabilities(prompt)
    expected = {
        (a, b): float(first[a] * second[b])
        for a in first.nonzero()[:, 0].tolist()
        for second in [probabilities([*prompt, a])]
        for b in second.nonzero()[:, 0].tolist()
    }
    counts = dict.fromkeys(expected, 0)
    clients = [
        Client(
            engine,
            prompt,
            SamplingParams(max_new_tokens=2, seed=seed, **sampling),
            adapter=loaded["all"],
        )
        for seed in range(num_draws)
    ]
    for client in clients:
        counts[tuple(client.read())] += 1
    assert len(expected) >= 6
    chi_square = sum(
        (counts[k] - num_draws * p) ** 2 / (num_draws * p) for k, p in expected.items()
    )
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5
    uniform = num_draws / len(expected)
    assert sum((n - uniform) ** 2 / uniform for n in counts.values()) > 2 * degrees + 40


def test_an_error_in_one_request_fails_that_one_alone(engine, loaded):
    class Broken:
        def __init__(self, after: int) -> None:
            self.left = after

        def fill(self, allowed: torch.Tensor) -> None:
            allowed[:] = True
            if self.left == 0:
                raise UserError("json_schema: broken")
            self.left -= 1

        def push(self, token: int) -> None:
            pass

    expected = Client(engine, [5, 6, 7], adapter=loaded["all"]).read()
    neighbour = Client(engine, [5, 6, 7], adapter=loaded["all"])
    for after in (0, 3):
        broken = Client(engine, [5, 6, 7], grammar=Broken(after))
        assert len(broken.read()) == after
        assert broken.end.reason == "error"
        assert "broken" in str(broken.end.error)
    bad = LoadedAdapter("bad", {"model.layers.0.self_attn.q_proj": loaded["all"].modules[
        "model.layers.0.mlp.down_proj"
    ]})  # fmt: skip
    client = Client(engine, [5, 6, 7], adapter=bad)
    assert client.read() == []
    assert client.end.reason == "error"
    assert neighbour.read() == expected


def test_an_adapter_that_the_device_has_no_room_for_is_refused(new_engine, loaded, monkeypatch):
    """Less than one slot of rank 64 takes, and more than one of rank 16."""
    num_bytes = 2 * loaded["rank-13"].num_bytes
    monkeypatch.setattr(src.serving.engine.runners, "adapter_bytes_that_fit", lambda _: num_bytes)
    engine = new_engine()
    client = Client(engine, [5, 6, 7], adapter=loaded["rank-40"])
    assert client.read() == []
    assert "found rank 40" in str(client.end.error)
    assert Client(engine, [5, 6, 7], adapter=loaded["rank-13"]).answer() != []


@pytest.fixture
def huge(loaded) -> LoadedAdapter:
    """An adapter whose outputs are no numbers."""
    modules = loaded["all"].modules.items()
    return LoadedAdapter(
        "huge",
        {n: replace(m, lora_A=m.lora_A * 1e38, lora_B=m.lora_B * 1e38) for n, m in modules},
    )


def test_another_ones_overflow_stays_with_them(engine, loaded, huge):
    expected = Client(engine, [5, 6, 7], adapter=loaded["few"]).read()
    neighbour = Client(engine, [5, 6, 7], adapter=loaded["few"])
    overflowing = Client(engine, [5, 6, 7], adapter=huge)
    assert neighbour.read() == expected
    overflowing.read()
    assert Client(engine, [5, 6, 7], adapter=loaded["few"]).read() == expected


def test_an_overflow_does_not_stay_in_a_slot(engine, new_engine, loaded, huge):
    """The next ones in its slot are shorter than it was, and than their neighbour."""
    short, long = [5, 6, 7], random_prompts(1, engine.vocab_size, seed=5)[0] * 3 + [9] * 60
    expected = [Client(engine, ids, adapter=loaded["few"]).read() for ids in (short, long)]
    engine = new_engine()
    Client(engine, [8] * 100, adapter=huge).read()
    clients = [Client(engine, ids, adapter=loaded["few"]) for ids in (short, long)]
    assert [client.read() for client in clients] == expected


def test_a_waiting_request_takes_no_neighbours_tokens(new_engine, monkeypatch):
    """Its slot is among the rows of their steps while its prompt is read piece by piece."""
    for name in ("FIRST", "MOST"):
        monkeypatch.setattr(src.serving.engine.prefill_queue, name, 8)
    slots: dict[int, int] = {}

    def add(batch: Batch, sequence: Any, add=Batch.add) -> bool:
        is_added = add(batch, sequence)
        slots[id(sequence)] = sequence.slot
        return is_added

    monkeypatch.setattr(Batch, "add", add)
    for seed in range(4):
        sampling = SamplingParams(
            max_new_tokens=40, temperature=1.0, top_p=1.0, repetition_penalty=9.0, seed=seed
        )
        prompt = [3 + number % 17 for number in range(seed, seed + 150)]
        alone = Client(new_engine(), prompt, sampling).read()
        engine, is_held, is_asked = new_engine(max_slots=2), threading.Event(), threading.Event()
        short, long = (replace(sampling, max_new_tokens=number) for number in (3, 250))

        def hold(_: Event, is_held=is_held, is_asked=is_asked) -> None:
            is_held.set()
            is_asked.wait()

        # The engine goes on when it knows all the others.
        engine.submit(Request([5], replace(sampling, max_new_tokens=1), hold))
        is_held.wait()
        Client(engine, [6, 5], short)
        neighbour = Client(engine, [7, 5], long, ignores_end=True)
        late = Client(engine, prompt, sampling)
        is_asked.set()
        assert late.read() == alone
        assert slots[id(late.sequence)] < slots[id(neighbour.sequence)]
        assert len(neighbour.read()) == 250


def test_known_tokens_are_not_read_again_and_change_nothing(engine, loaded, reference):
    prompt = random_prompts(20, engine.vocab_size, seed=8)
    conversation = [*prompt[0], *range(20, 60)][:100]
    for name in (None, "all"):
        adapter = None if name is None else loaded[name]
        first = Client(engine, conversation, adapter=adapter)
        answer = first.read()
        longer = [*conversation, *answer, 44, 45]
        second = Client(engine, longer, adapter=adapter)
        reference.check_greedy(name, longer, second.read())
        # All but the last token of the answer, which nothing was generated after.
        assert second.sequence.num_cached_tokens >= len(conversation) + len(answer) - 1
    stranger = Client(engine, conversation, adapter=loaded["few"])
    reference.check_greedy("few", conversation, stranger.read())
    assert stranger.sequence.num_cached_tokens == 0


def test_memory_is_flat_over_adapter_loads(engine, loaded):
    """As many adapters as there are loads, far more than there are slots: none of them stays."""
    before = 0
    for number in range(NUM_LOADS):
        name = list(loaded)[number % len(loaded)]
        modules = {n: replace(m, lora_A=m.lora_A.clone()) for n, m in loaded[name].modules.items()}
        adapter = LoadedAdapter(f"{name}-{number}", modules)
        Client(engine, [7, 8], replace(GREEDY, max_new_tokens=2), adapter=adapter).read()
        if number == NUM_LOADS // 4:
            before = tensor_bytes()
    smallest = min(adapter.num_bytes for adapter in loaded.values())
    assert tensor_bytes() - before < NUM_LOADS // 8 * smallest


def tensor_bytes() -> int:
    """Return what all tensors of this process take, those that share memory counted once."""
    gc.collect()
    # A compiler leaves tensors without memory, of a type of their own.
    real = (x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter))
    storages = (x.untyped_storage() for x in real)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
