"""What a checked adapter file does in the numbers that the engine computes with."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import UserError
from src.serving.lora.weights import load_adapter
from src.weights.adapter.adapter import read_adapter
from tests.weights.adapters import REFUSED_NUMBERS, SHAPES, good_tensors, write


def load(folder: Path, factor: float, dtype: torch.dtype = torch.float32, **config):
    tensors = {name: np.float32(factor) * tensor for name, tensor in good_tensors().items()}
    return load_adapter(read_adapter(write(folder, tensors, config), SHAPES), dtype=dtype, key="")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_file_with_the_scale_in_b(tmp_path: Path, dtype: torch.dtype):
    loaded = load(tmp_path, 1, dtype)
    for name, module in loaded.modules.items():
        for part, scale in (("lora_A", 1), ("lora_B", 2)):
            numbers = torch.tensor(good_tensors()[f"base_model.model.{name}.{part}.weight"])
            assert getattr(module, part).equal((numbers * scale).to(dtype))


def test_an_adapter_reaches_a_device_in_one_copy(tmp_path: Path):
    loaded = load(tmp_path, 1)
    copies = loaded.on_device(torch.device("meta"))
    tensors = [t for m in copies.values() for t in (m.lora_A, m.lora_B)]
    assert sum(t.nbytes for t in tensors) == tensors[0].untyped_storage().nbytes()
    ends = sorted((t.storage_offset(), t.storage_offset() + t.numel()) for t in tensors)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ends))
    for name, module in loaded.modules.items():
        for own, copy in zip(
            (module.lora_A, module.lora_B), (copies[name].lora_A, copies[name].lora_B), strict=True
        ):
            assert (own.shape, own.stride()) == (copy.shape, copy.stride())


@pytest.mark.parametrize(("factor", "alpha"), [(1e30, 8), (1e36, 1e6), (1, 1e6)])
def test_numbers_that_overflow_are_refused(tmp_path: Path, factor: float, alpha: float):
    with pytest.raises(
        UserError, match="expected finite numbers up to 65,504, scale included, found"
    ):
        load(tmp_path, factor, lora_alpha=alpha)


def test_an_adapter_that_vanishes_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no effect, all its updates are zero in "):
        load(tmp_path, 1e-43, lora_alpha=1e-4)


@pytest.mark.parametrize("name", REFUSED_NUMBERS)
def test_bad_numbers_are_refused(tmp_path: Path, name: str):
    REFUSED_NUMBERS[name](tmp_path)
    file = read_adapter(tmp_path, SHAPES)
    with pytest.raises(UserError, match=r"expected finite numbers|the adapter has no effect"):
        load_adapter(file, dtype=torch.float32, key="")


def test_what_was_loaded_no_longer_needs_its_file(tmp_path: Path):
    """A tensor must not be a view of a file that the cache may remove or another may cut off."""
    loaded = load(tmp_path, 1)
    path = tmp_path / "adapter_model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(
        m.lora_A.isfinite().all() and m.lora_B.isfinite().all() for m in loaded.modules.values()
    )
