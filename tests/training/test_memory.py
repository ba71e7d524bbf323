"""The memory that a plan estimates is the memory that a pass takes."""

import gc
import re
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.model.adapter import (
    FlatAdapter,
    adapter_parameters,
    attach_adapter,
    resolve_target_modules,
)
from src.model.base_model import keep_dequantized, load_base_model
from src.model.loss import SummedLoss
from src.model.shape import ModelShape
from src.model.sizes import read_shape
from src.training.deepspeed_engine import build_deepspeed_config, build_engine, join_ranks
from src.training.plan.fit import FILL, fit
from src.training.plan.memory import Workload, attention_bytes, estimate_memory
from tests.model.families import make_family
from tests.training.ranks import call_in_ranks

BASE = {"num_tokens": 1024, "num_target_tokens": 1024, "spans": 4}
IN_TRANSFORMERS = {"num_recomputed": 6, "shares_weights": True}
"""As under ZeRO-3."""
LARGE_HEAD = {"vocab_size": 40_000, "num_target_tokens": 700}
CASES = {
    "plain": {},
    "few learned": {"num_target_tokens": 30},
    "no dropout": {"dropout": 0.0},
    "some recomputed": {"num_recomputed": 3},
    "all recomputed": {"num_recomputed": 6},
    "in transformers": IN_TRANSFORMERS,
    "in transformers, no dropout": {**IN_TRANSFORMERS, "dropout": 0.0},
    "in transformers, bfloat16": {**IN_TRANSFORMERS, "dtype": torch.bfloat16},
    "in transformers, large vocabulary": {**IN_TRANSFORMERS, **LARGE_HEAD},
    "one long example": {"num_tokens": 2048, "num_target_tokens": 2048, "spans": 1},
    "large vocabulary": LARGE_HEAD,
    "large vocabulary, bfloat16": {**LARGE_HEAD, "dtype": torch.bfloat16},
    "large vocabulary, capped scores": {**LARGE_HEAD, "model_type": "gemma2", "spans": 8},
    "two layers adapted": {"targets": "q_proj,v_proj"},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, some recomputed": {"dtype": torch.bfloat16, "num_recomputed": 3},
    "4-bit": {"in_4bit": True},
    "4-bit, unpacked": {"in_4bit": True, "keeps_dequantized": True},
    "bfloat16, one long example": {"dtype": torch.bfloat16, "spans": 1},
    "windows": {"model_type": "mistral", "spans": 1},
    "one layer for query, key and value": {"model_type": "phi3"},
    "norms after every part": {"model_type": "olmo2"},
    "norms after every part, fused gate": {"model_type": "glm4"},
    "norms of heads": {"model_type": "qwen3"},
    "norms in float32": {"model_type": "gemma3_text", "spans": 8},
    "capped scores": {"model_type": "gemma2", "spans": 8},
    "experts": {"model_type": "mixtral"},
    "experts, all recomputed": {"model_type": "qwen3_moe", "num_recomputed": 6},
    "experts and sinks": {"model_type": "gpt_oss", "spans": 8},
    "experts and sinks, bfloat16": {"model_type": "gpt_oss", "dtype": torch.bfloat16},
    "experts in transformers": {**IN_TRANSFORMERS, "model_type": "mixtral"},
    "experts, 4-bit": {"model_type": "mixtral", "in_4bit": True},
    "experts and a shared one": {"model_type": "qwen3_5_moe_text"},
    "experts and a shared one, recomputed": {"model_type": "qwen3_5_moe_text", "num_recomputed": 6},
    "gated deltas, bfloat16": {"model_type": "qwen3_5_text", "dtype": torch.bfloat16},
    "gated deltas, all recomputed": {"model_type": "qwen3_5_text", "num_recomputed": 6},
    "norms in float32 beside bfloat16": {"model_type": "gemma3_text", "dtype": torch.bfloat16},
}


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still alive, and their peak."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return output

    def see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def make_shape(folder: Path, model_type: str, vocab_size: int) -> ModelShape:
    make_family(
        folder, model_type, vocab_size=vocab_size, hidden_size=192, intermediate_size=512,
        num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=3, head_dim=32,
        max_position_embeddings=4096, sliding_window=256, layer_types=None,
        linear_num_value_heads=6, linear_num_key_heads=3, linear_key_head_dim=32,
        linear_value_head_dim=32, shared_expert_intermediate_size=512,
    )  # fmt: skip
    shape = read_shape(folder)
    assert shape is not None
    return shape


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_the_measured_peak(tmp_path: Path, case: str):
    options = {**BASE, **CASES[case]}
    model_type = options.get("model_type", "llama")
    dtype = options.get("dtype", torch.float32)
    shape = make_shape(tmp_path, model_type, options.get("vocab_size", 1000))
    num_tokens = options["num_tokens"]
    bounds = tuple(torch.linspace(0, num_tokens, options["spans"] + 1).int().tolist())
    lengths = [b - a for a, b in pairwise(bounds)]
    targets, dropout = options.get("targets", "all-linear"), options.get("dropout", 0.05)
    work = Workload(
        shape=shape,
        element_bytes=dtype.itemsize,
        in_4bit=options.get("in_4bit", False),
        target_modules=targets,
        lora_rank=8,
        has_dropout=dropout > 0,
        num_tokens=num_tokens,
        num_target_tokens=options["num_target_tokens"],
        longest_example=max(lengths),
        world_size=1,
        on_gpu=False,
        num_recomputed=options.get("num_recomputed", 0),
        keeps_dequantized=options.get("keeps_dequantized", False),
        shares_weights=options.get("shares_weights", False),
    )
    work = replace(work, attention_bytes=attention_bytes(work, lengths))
    cpu = torch.device("cpu")
    model = load_base_model(tmp_path, dtype=dtype, device=cpu, in_4bit=work.in_4bit)
    if work.keeps_dequantized:
        keep_dequantized(model)
    attach_adapter(
        model, target_modules=resolve_target_modules(model, targets),
        rank=8, alpha=16, dropout=dropout, seed=0,
    )  # fmt: skip
    loss = SummedLoss(model)
    if not work.shares_weights:
        assert loss.use_decoder() is None
    loss.recompute(work.num_recomputed)
    model.train()
    parameters = [parameter for _, parameter in adapter_parameters(model)]
    num_parameters = sum(parameter.numel() for parameter in parameters)
    assert num_parameters == shape.adapter_parameters(targets, 8)

    positions = torch.cat([torch.arange(length) for length in lengths])
    batch = (
        torch.randint(shape.vocab_size, (1, work.num_tokens)),
        positions[None],
        torch.randperm(work.num_tokens)[: work.num_target_tokens].sort().values,
        torch.randint(shape.vocab_size, (work.num_target_tokens,)),
        torch.ones(work.num_target_tokens),
        bounds,
    )
    held = [*model.parameters(), *model.buffers()]
    with LiveTensors([t for t in held if t is not None]) as tensors:
        torch.autograd.grad(loss(*batch), parameters)
    found = estimate_memory(work)
    estimated = found.activations + found.work_space + dtype.itemsize * num_parameters
    assert 0.95 * tensors.peak < estimated < 1.15 * tensors.peak


def hold_adapter(dtype: torch.dtype, sizes: Path) -> None:
    """Write what an adapter and its optimizer hold after a step, and how many parameters it has."""
    join_ranks(torch.device("cpu"))
    matrices = [(str(n), torch.nn.Parameter(torch.ones(500, 200).to(dtype))) for n in range(4)]
    batches = SimpleNamespace(global_batch_size=1, world_size=1, gradient_accumulation_steps=1)
    plan: Any = SimpleNamespace(
        steps=SimpleNamespace(batch_sizes=batches),
        zero_stage=2,
        resources=SimpleNamespace(dtype=dtype, on_gpus=False),
    )
    with LiveTensors([]) as tensors:
        adapter = FlatAdapter(matrices)
        engine = build_engine(
            adapter, [adapter.flat], build_deepspeed_config(plan, bucket_size=400_000)
        )
        adapter.tie()
        engine.backward(engine(torch.ones(400_000)), scale_wrt_gas=False)
        engine.step()
        gc.collect()
        sizes.write_text(f"{tensors.live} 400000")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_adapter_takes_what_the_plan_counts(tmp_path: Path, dtype: torch.dtype):
    """Beside its gradient, and the sum of it."""
    call_in_ranks(hold_adapter, dtype, tmp_path / "sizes", log=tmp_path / "log")
    held, num_parameters = map(int, (tmp_path / "sizes").read_text().split())
    work = build_workload(LLAMA_7B, element_bytes=dtype.itemsize, in_float16=dtype == torch.float16)
    adapter = estimate_memory(work).adapter / LLAMA_7B.adapter_parameters("all-linear", 8)
    assert held / num_parameters == pytest.approx(adapter - dtype.itemsize - 4, rel=0.01)


LLAMA_7B = ModelShape(4096, 11008, 32, 32, 32, 128, 32000, is_tied=False)
LLAMA_13B = ModelShape(5120, 13824, 40, 40, 40, 128, 32000, is_tied=False)
LLAMA_70B = ModelShape(8192, 28672, 80, 64, 8, 128, 32000, is_tied=False)


def build_workload(shape: ModelShape, **options) -> Workload:
    defaults = {
        "element_bytes": 2, "in_4bit": False, "target_modules": "all-linear", "lora_rank": 8,
        "has_dropout": True, "num_tokens": 2048, "num_target_tokens": 2048, "world_size": 1,
        "on_gpu": True, "longest_example": 2048,
    }  # fmt: skip
    return Workload(shape=shape, **{**defaults, **options})


def test_sizes_are_those_of_the_published_models():
    assert LLAMA_7B.linear_parameters + LLAMA_7B.other_parameters == 6_738_415_616
    assert LLAMA_70B.linear_parameters + LLAMA_70B.other_parameters == 68_976_648_192
    assert LLAMA_7B.adapter_parameters("all-linear", 16) == 39_976_960
    assert LLAMA_7B.adapter_parameters("q_proj, v_proj", 8) == 4_194_304


def test_a_pass_is_split_before_layers_are_recomputed():
    work = build_workload(LLAMA_7B, num_tokens=16384, num_target_tokens=16384)
    found = [fit(work, gigabytes * 1e9) for gigabytes in (120, 60, 40, 30, 25, 22, 18, 5)]
    tokens, recomputed = (
        [w.num_tokens for w in found],
        [w.num_recomputed for w in found],
    )
    assert (tokens[0], recomputed[0]) == (16384, 0)
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) > 2
    assert recomputed == sorted(recomputed)
    assert 0 < recomputed[-3] < recomputed[-2] < 32
    assert recomputed[-1] == 32
    for w, more in zip(found, recomputed, strict=True):
        assert w.num_tokens == 2048 or more == 0
    for gigabytes in (22, 18):
        fitted = fit(work, gigabytes * 1e9)
        assert estimate_memory(fitted).total <= 0.92 * gigabytes * 1e9
        fewer = replace(fitted, num_recomputed=fitted.num_recomputed - 1)
        assert estimate_memory(fewer).total > 0.92 * gigabytes * 1e9


def test_4_bit_weights_stay_unpacked_where_there_is_room():
    work = build_workload(LLAMA_7B, in_4bit=True)
    assert fit(work, 80e9).keeps_dequantized
    tight = fit(work, 16e9)
    assert not tight.keeps_dequantized
    assert estimate_memory(tight).base_model < 4.1e9


def test_70b_in_4_bit_fits_on_one_80_gb_gpu_at_2048_tokens():
    fitted = fit(build_workload(LLAMA_70B, in_4bit=True), 84e9)
    assert estimate_memory(fitted).total <= 0.92 * 84e9
    assert fitted.num_recomputed < 40


def test_the_page_tells_what_the_plan_plans():
    """The table of docs/memory.md, number by number."""
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    rows = re.findall(r"^\| (\d+B) \| `(q?lora)`(.*?) \| (\d+) GB \| (.*) \|$", page, re.M)
    assert len(rows) == 6
    shapes = {"7B": LLAMA_7B, "13B": LLAMA_13B, "70B": LLAMA_70B}
    for size, method, where, gigabytes, told in rows:
        work = build_workload(shapes[size], in_4bit=method == "qlora")
        free, num_layers, least = int(gigabytes) * 1e9, work.shape.num_layers, ""
        if where:
            work = replace(work, world_size=8, shares_weights=True, num_recomputed=num_layers)
        else:
            least = f"{estimate_memory(work).total / 1e9:.1f} GB"
            work = fit(work, free)
        peak = estimate_memory(work).total
        assert peak <= FILL * free
        expected = f"{peak / 1e9:.1f} GB | {work.num_recomputed} of {num_layers} | {least}"
        assert told == expected.strip(), (size, method)
