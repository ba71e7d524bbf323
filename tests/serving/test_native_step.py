"""The compiled decoding step of a CPU computes what plain steps compute, and is done without."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from src.cli.tiny_model import make_base_model
from src.model.base_model import linear_modules
from src.serving.model.chunk import Chunk
from src.serving.native import library
from src.serving.native.library import find_library
from src.serving.sampling import SamplingParams
from src.weights.adapter.adapter import read_adapter
from tests.serving.clients import Client

GREEDY = SamplingParams(max_new_tokens=24, temperature=0, repetition_penalty=1.0)
WITHOUT_TILES = "-U__AMX_TILE__"


@pytest.fixture(params=["tiles", "vectors"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What multiplies 16 bits: tiles, where the processor has them, or what others have."""
    if request.param == "vectors":
        monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, WITHOUT_TILES))


def scores_of(engine: Any, lengths: list[int], lora_slots: Sequence[int | None]) -> torch.Tensor:
    """Return the scores of a step over rows of these lengths, of those that are not idle."""
    runner = engine.runner
    compiled, runner._few_rows = runner._few_rows, None
    for slot, length in enumerate(lengths):
        if length > 1:
            ids = [3 + (slot + position) % 90 for position in range(length - 1)]
            runner.kv_cache.grow(slot, length)
            runner.prefill([Chunk(slot, ids, 0, lora_slots[slot], 0)])
    runner._few_rows = compiled
    tokens = torch.tensor([3 + (slot + length - 1) % 90 for slot, length in enumerate(lengths)])
    positions = torch.tensor([length - 1 if length else 0 for length in lengths])
    scores = runner.decode(tokens, positions, lengths, runner.lora.batch(lora_slots))
    for slot in range(len(lengths)):
        runner.kv_cache.release(slot, is_valid=False)
    return scores[torch.tensor(lengths) > 0].float()


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("with_adapters", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_plain_steps(new_engine, adapters, dtype, with_adapters):
    """Rows of unequal lengths, more than are computed at a time, some of them idle.

    Their adapters have several ranks, and change some layers or all, and the head.
    """
    engine = new_engine(dtype=dtype, max_slots=16, max_adapters=8, can_speculate=False)
    runner, lora_slots = engine.runner, [None] * 11
    if with_adapters:
        slots = [
            runner.lora.acquire(
                engine.load_adapter(read_adapter(path, engine.linear_shapes), key=name)
            )
            for name, path in adapters.items()
        ]
        lora_slots = [None, *slots, slots[1], slots[-1]]
    compiled, found = runner._few_rows, []
    assert compiled is not None
    lengths = [1 + 3 * row if row % 5 else 0 for row in range(11)]
    with torch.inference_mode():
        for runner._few_rows in (None, compiled):
            found.append(scores_of(engine, lengths, lora_slots))
    plain, ours = found
    assert (ours - plain).norm() <= (1e-5 if dtype == "float32" else 0.05) * plain.norm()


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scores_of_a_row_do_not_depend_on_the_others(new_engine, dtype):
    """Not by a bit, so that an answer is the same whoever is served beside it."""
    engine = new_engine(dtype=dtype, max_slots=64, can_speculate=False)
    lengths, none = [5 + row for row in range(64)], [None] * 64
    with torch.inference_mode():
        together = scores_of(engine, lengths, none)
        for row in (0, 3, 10, 16, 40, 63):
            alone = scores_of(
                engine, [length * (n == row) for n, length in enumerate(lengths)], none
            )
            assert alone[0].equal(together[row])
            few = scores_of(engine, lengths[: row + 1], none[: row + 1])
            assert few[row].equal(together[row])


@pytest.mark.parametrize("num_rows", [1, 16, 17, 64, 200])
def test_tiles_compute_what_vectors_compute(new_engine, tmp_path, monkeypatch, num_rows):
    """Of whole tiles and of those that end within one, at both sides of a matrix."""
    make_base_model(
        tmp_path / "wide", ["a b c"], vocab_size=300, hidden_size=168, num_layers=2, num_heads=6,
        num_key_value_heads=2, head_dim=28, attention_bias=True,
    )  # fmt: skip
    found, options = [], {"dtype": "bfloat16", "max_slots": 200, "can_speculate": False}
    lengths, none = [2 + row % 7 for row in range(num_rows)], [None] * num_rows
    with torch.inference_mode():
        tiles = new_engine(tmp_path / "wide", **options)
        monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, WITHOUT_TILES))
        vectors = new_engine(tmp_path / "wide", **options)
        for engine in (tiles, vectors):
            found.append(scores_of(engine, lengths, none))
    assert (found[0] - found[1]).norm() <= 0.02 * found[1].norm()
    has_tiles = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    assert found[0].equal(found[1]) != has_tiles  # the order of the sums tells them apart


def test_answers_are_those_of_plain_steps(engine, new_engine):
    """Short prompts, which are read in one step, and long ones; alone."""
    plain = new_engine(compile=False)
    assert plain.runner._few_rows is None
    assert engine.runner._few_rows is not None
    rng = random.Random(0)
    for length in (1, 5, 16, 17, 120):
        ids = [rng.randrange(3, engine.vocab_size) for _ in range(length)]
        assert Client(engine, ids, GREEDY).answer() == Client(plain, ids, GREEDY).answer()


@pytest.mark.parametrize("head_size", [16, 48])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_share_a_long_text(new_engine, tmp_path, dtype, head_size):
    """Next to a short one, in rows that read its keys together and in one that is alone."""
    make_base_model(
        tmp_path / "long", ["a b c"], vocab_size=300, hidden_size=6 * head_size, num_layers=2,
        num_heads=6, num_key_value_heads=2,
    )  # fmt: skip
    runner = new_engine(tmp_path / "long", dtype=dtype, max_slots=4).runner
    compiled, length = runner._few_rows, 1000
    assert compiled is not None
    assert length > 3 * 256  # so that three threads have a share
    ids = [3 + position * 7 % 250 for position in range(length + 10)]
    found, num_threads = [], torch.get_num_threads()
    torch.set_num_threads(3)
    with torch.inference_mode():
        for layer in runner._decoder.layers:
            for module in layer.qkv.modules:
                module.weight.mul_(2)  # so that each query prefers some keys
        for slot, num_tokens in enumerate((length + 10, 40, length + 10)):
            runner.kv_cache.grow(slot, num_tokens)
        runner._few_rows = None
        runner.prefill([Chunk(0, ids[:length], 0, None, 0), Chunk(1, ids[:30], 0, None, 0)])
        runner.prefill([Chunk(2, ids[:length], 0, None, 0)])
        for runner._few_rows in (None, compiled):
            chunks = [
                Chunk(0, ids[length:], length, None, 10),
                Chunk(1, ids[30:34], 30, None, 4),
                Chunk(2, ids[length : length + 1], length, None, 1),
            ]
            found.append(runner.prefill(chunks).float())
    torch.set_num_threads(num_threads)
    plain, ours = found
    assert (ours - plain).norm() <= (1e-5 if dtype == "float32" else 0.05) * plain.norm()


def test_weights_in_16_bits_stay_in_their_file(base_dir, new_engine, tmp_path):
    """So that processes of one base model share its memory."""
    folder = shutil.copytree(base_dir, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16).save_pretrained(folder)
    model = new_engine(folder, dtype="bfloat16").model
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [line[0].split("-") for line in mapped if line[-1].startswith(str(folder))]
    for weight in linear_modules(model).values():
        address = weight.weight.data_ptr()
        assert any(int(begin, 16) <= address < int(end, 16) for begin, end in places)


def test_a_machine_without_a_compiler_is_told(monkeypatch, capsys):
    """It serves all the same, by plain steps."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    assert find_library(torch.device("cpu"), None) is None
    assert "there is no C++ compiler" in capsys.readouterr().out


def test_adapters_come_and_go_beside_who_decodes(engine, new_engine, adapters, loaded):
    """A wide one takes the pages of those that ended, and new layers are adapted in between."""
    plain = new_engine(compile=False)
    prompt = [5, 20, 33, 60, 7]
    long = replace(GREEDY, max_new_tokens=120, min_new_tokens=120)
    running = Client(engine, prompt, long, adapter=loaded["few"])
    running.read(2)
    for names in (["rank-1", "rank-13"], ["head", "rank-40", "rank-1"], ["all", "patterns"]):
        clients = [Client(engine, prompt, GREEDY, adapter=loaded[name]) for name in names]
        for name, client in zip(names, clients, strict=True):
            expected = Client(plain, prompt, GREEDY, adapter=loaded[name]).answer()
            assert client.answer() == expected
    assert engine.runner.lora.use.misses > 4
    assert running.answer() == Client(plain, prompt, long, adapter=loaded["few"]).answer()
