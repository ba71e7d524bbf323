"""Weights are served on the base model that they were trained on, or it is said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from src.errors import UserError
from src.weights.adapter.manifest import Manifest
from src.weights.base_model.base_model import BaseModelFiles
from src.weights.base_model.fingerprint import fingerprint_weights
from src.weights.base_model.same_model import ServedModel


def test_a_fingerprint_is_of_the_weights_and_of_nothing_else(base_dir: Path, tmp_path: Path):
    folder = shutil.copytree(base_dir, tmp_path / "copy")
    known = fingerprint_weights(base_dir)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"another form of the same")
    assert fingerprint_weights(folder) == known
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for number, some in enumerate((names[:3], names[3:])):
        save_file({name: tensors[name] for name in some}, folder / f"{number}.safetensors")
    index = {name: f"{int(name not in names[:3])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert fingerprint_weights(folder) == known
    some = {name: tensors[name] for name in names[:3]}
    some[names[0]] = some[names[0]] + np.float32(0.001)
    save_file(some, folder / "0.safetensors")
    assert fingerprint_weights(folder) != known


@pytest.mark.parametrize(
    ("trained_on", "served"),
    [
        (None, "anything"),
        ("llama-2-7b", "llama-2-7b"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("Qwen2.5-7B", "/models/Qwen2.5-7B"),
        ("Qwen/Qwen2.5-7B", "/models/qwen2.5-7b/"),
    ],
)
def test_one_base_model_goes_by_several_names(trained_on: str | None, served: str):
    assert ServedModel(served, "f").check(Manifest(base_model=trained_on)) is None


def test_another_name_is_warned_about_and_other_weights_are_refused(base_dir: Path):
    served = ServedModel.of(BaseModelFiles(str(base_dir), base_dir, None))
    warning = served.check(Manifest(base_model="llama-2-7b"))
    assert warning == (
        "warning: the weights were trained on 'llama-2-7b', and 'tiny-llama' is served here"
    )
    known = fingerprint_weights(base_dir)
    for name in ("llama-2-7b", "tiny-llama"):
        assert served.check(Manifest(base_model=name, base_model_fingerprint=known)) in (
            warning,
            None,
        )
        with pytest.raises(UserError, match=f"trained on '{name}', whose own weights are not"):
            served.check(Manifest(base_model=name, base_model_fingerprint="other"))
