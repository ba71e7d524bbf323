"""gpt-oss in MXFP4, as it is published, is unpacked when it is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.errors import UserError
from src.model.base_model import load_base_model
from src.model.core.decoder import Decoder
from src.model.core.proof import open_proven
from src.weights.base_model.check import check_readable
from tests.model.batches import CPU
from tests.model.families import make_family

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
VALUES = torch.cat((VALUES, -VALUES))
BLOCK = 32
"""Numbers that share an exponent."""


def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return blocks and exponents of a weight (experts, in, out), and what they tell."""
    blocks = weight.transpose(1, 2).unflatten(-1, (-1, BLOCK))
    exponents = (blocks.abs().amax(-1) / 6).log2().ceil()
    scale = exponents.exp2()[..., None]
    codes = ((blocks / scale)[..., None] - VALUES).abs().argmin(-1)
    told = (VALUES[codes] * scale).flatten(-2).transpose(1, 2)
    bytes_ = (codes[..., ::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return bytes_, (exponents + 127).to(torch.uint8), told


@pytest.fixture
def packed(tmp_path: Path, base_dir: Path) -> tuple[Path, dict[str, Tensor]]:
    make_family(tmp_path, "gpt_oss")
    for file in base_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors, told = load_file(tmp_path / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        parts = pack(tensors.pop(name))
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"], told[name] = parts
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path, told


def test_experts_are_the_numbers_that_were_packed(packed: tuple[Path, dict[str, Tensor]]):
    folder, told = packed
    check_readable(folder)
    model = load_base_model(folder, dtype=torch.float32, device=CPU)
    assert len(told) == 4
    for name, weight in told.items():
        assert torch.equal(model.get_parameter(name), weight)
    assert isinstance(open_proven(model, Decoder), Decoder)


def test_4_bit_of_another_kind_is_refused(packed: tuple[Path, dict[str, Tensor]]):
    with pytest.raises(UserError, match=r"^base model: expected none of peft_method=qlora"):
        load_base_model(packed[0], dtype=torch.float32, device=CPU, in_4bit=True)
