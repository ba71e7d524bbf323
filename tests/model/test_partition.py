"""The parts of a base model that ranks hold add up to the whole one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from src.errors import UserError
from src.model.base_model import load_base_model
from src.model.core.attention import Spans
from src.model.core.decoder import Decoder
from src.model.core.families.table import FAMILIES
from src.model.core.proof import open_proven
from src.model.partition import Partition
from tests.model.families import make_family

CPU = torch.device("cpu")
LENGTH = 12
REFUSED = {"olmo2", "olmo3", "helium", "gpt_oss", "qwen3_5_text", "qwen3_5_moe_text"}
"""Norms of all heads together, an output of a fixed size, attention sinks, gated delta layers."""


def open_part(folder: Path, partition: Partition | None) -> Decoder:
    model = load_base_model(folder, dtype=torch.float32, device=CPU, partition=partition)
    decoder = open_proven(model, Decoder)
    assert not isinstance(decoder, str), decoder
    if partition is not None:
        decoder.layers = [replace(layer, is_part=True) for layer in decoder.layers]
    return decoder


@torch.no_grad()
def scores(decoder: Decoder) -> torch.Tensor:
    decoder.grow(LENGTH)
    ids, positions = torch.arange(3, 3 + LENGTH), torch.arange(LENGTH)
    spans = Spans.between((0, LENGTH), CPU)
    return decoder.scores(decoder.hidden(ids, positions, spans))


def run_ranks(rank: int, root: Path) -> dict[str, torch.Tensor]:
    """Return what two ranks compute together of each family."""
    dist.init_process_group("gloo", init_method=(root / "meet").as_uri(), rank=rank, world_size=2)
    found = {}
    for family in FAMILIES:
        if family not in REFUSED:
            partition = Partition.of(root / family, rank=rank, num_ranks=2)
            found[family] = scores(open_part(root / family, partition))
    dist.destroy_process_group()
    return found


def test_two_ranks_compute_what_one_does_in_every_family(tmp_path: Path):
    for family in FAMILIES:
        make_family(tmp_path / family, family)
    code = "import sys; from pathlib import Path; from tests.model.test_partition import run_ranks"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; run_ranks(1, Path(sys.argv[1]))", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = run_ranks(0, tmp_path)
    assert other.wait() == 0
    for family, ours in found.items():
        whole = scores(open_part(tmp_path / family, None))
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4, msg=lambda m, f=family: f + m)
    assert len(found) == len(FAMILIES) - len(REFUSED)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_cannot_be_split_is_refused(family: str, tmp_path: Path):
    make_family(tmp_path, family)
    with pytest.raises(UserError, match=f"^TENSOR_PARALLEL: expected 1 for this {family}, whose"):
        Partition.of(tmp_path, rank=0, num_ranks=2)


def test_a_number_that_does_not_divide_the_heads_is_refused(base_dir: Path):
    with pytest.raises(
        UserError,
        match=r"^TENSOR_PARALLEL: expected a number that divides what a layer has, 4 heads, "
        r"2 key/value heads, \d+ inner features; found 4$",
    ):
        Partition.of(base_dir, rank=0, num_ranks=4)


def test_a_rank_holds_its_share_of_the_layers(base_dir: Path):
    def size(partition: Partition | None) -> int:
        model = load_base_model(base_dir, dtype=torch.float32, device=CPU, partition=partition)
        layers = model.get_decoder().layers
        return sum(p.numel() for name, p in layers.named_parameters() if "norm" not in name)

    parts = [size(Partition.of(base_dir, rank=rank, num_ranks=2)) for rank in range(2)]
    assert parts == [size(None) // 2] * 2


@pytest.mark.parametrize("module", ["self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"])
def test_an_update_is_cut_as_the_weight_that_it_is_added_to(module: str):
    lora_A, lora_B = torch.randn(4, 32), torch.randn(32, 4)
    for part in Partition(0, 2, qkv_sizes=(16, 8, 8)).all_ranks():
        own_A, own_B = part.cut_update(f"layers.0.{module}", lora_A, lora_B)
        expected = part.cut(f"layers.0.{module}.weight", lora_B @ lora_A, (32, 32))
        torch.testing.assert_close(own_B @ own_A, expected)
