"""A wrong adapter is refused before the model sees it; a right one is read as PEFT wrote it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from src.errors import UserError
from src.files.tensor_file import read_tensor_infos
from src.weights.adapter.adapter import read_adapter
from tests.measure import measure
from tests.weights.adapters import (
    FIRST,
    HARMLESS,
    KINDS,
    REFUSED_UNREAD,
    SHAPES,
    TARGETS,
    good_tensors,
    write,
)


def test_a_good_adapter_is_read(tmp_path: Path):
    adapter = read_adapter(write(tmp_path, good_tensors()), SHAPES)
    assert list(adapter.modules) == sorted(TARGETS)
    module = adapter.modules[TARGETS[0]]
    assert (module.rank, module.scale) == (4, 2.0)
    assert module.lora_A == FIRST
    assert (load_file(adapter.path)[module.lora_A] == good_tensors()[FIRST]).all()


def test_without_a_manifest_peft_names_the_base_model(tmp_path: Path):
    for manifest, name in (
        (None, "owner/model"),
        ('{"format_version": 1, "base_model": "x"}', "x"),
    ):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        config = {"base_model_name_or_path": "owner/model"}
        write(folder, good_tensors(), config, manifest=manifest)
        assert read_adapter(folder, SHAPES).manifest.base_model == name


def test_other_number_formats_are_read(tmp_path: Path):
    for dtype in ("float16", "uint16"):
        tensors = {name: np.full(t.shape, 0x3C01, "u2") for name, t in good_tensors().items()}
        write(tmp_path, {name: tensor.view(dtype) for name, tensor in tensors.items()})
        adapter = read_adapter(tmp_path, SHAPES)
        assert list(adapter.modules) == sorted(TARGETS)
        assert {t.dtype for t in read_tensor_infos(adapter.path).values()} == {KINDS[dtype]}


def test_patterns_give_ranks_and_scales(tmp_path: Path):
    config = {
        "rank_pattern": {"layers.0.self_attn.v_proj": 2},
        "alpha_pattern": {"v_proj": 6},
        "use_rslora": True,
    }
    small = f"base_model.model.{TARGETS[1]}"
    tensors = good_tensors()
    tensors[f"{small}.lora_A.weight"] = np.ones((2, 16), np.float32)
    tensors[f"{small}.lora_B.weight"] = np.ones((8, 2), np.float32)
    modules = read_adapter(write(tmp_path, tensors, config), SHAPES).modules
    assert TARGETS[1] == "model.layers.0.self_attn.v_proj"
    assert {name: module.rank for name, module in modules.items()} == {
        name: 2 if name == TARGETS[1] else 4 for name in TARGETS
    }
    assert modules[TARGETS[0]].scale == pytest.approx(8 / 4**0.5)
    assert modules[TARGETS[1]].scale == pytest.approx(6 / 2**0.5)
    assert modules[TARGETS[3]].scale == pytest.approx(6 / 4**0.5)


PEFT_CASES = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 8},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3},
    },
    "points": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"q.proj": 64}},
    "regex": {"target_modules": r".*layers\.1\.(self_attn\.q_proj|mlp\.down_proj)"},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
}


@pytest.mark.parametrize("name", PEFT_CASES)
def test_what_peft_saves_is_read(tmp_path: Path, name: str):
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=44, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip
    shapes = {
        path: tuple(module.weight.shape)
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    config = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **PEFT_CASES[name]
    )
    model = get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, shapes)
    tensors = load_file(adapter.path)
    layers = {
        path.removeprefix("base_model.model."): module
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert adapter.modules.keys() == layers.keys()
    for path, layer in layers.items():
        module = adapter.modules[path]
        assert module.rank == layer.r["default"]
        assert module.scale == pytest.approx(layer.scaling["default"])
        for part, linear in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            found, weight = tensors[getattr(module, part)], linear["default"].weight.detach()
            assert found.shape == tuple(weight.shape)
            assert (found == weight.numpy()).all()


@pytest.mark.parametrize("name", REFUSED_UNREAD)
def test_bad_adapters_are_refused(tmp_path: Path, name: str):
    REFUSED_UNREAD[name](tmp_path)
    with pytest.raises(UserError) as caught:
        read_adapter(tmp_path, SHAPES)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


SAVED_OTHERWISE = {
    "base_model.model.lm_head.base_layer.weight": "save_embedding_layers=False",
    "base_model.model.lm_head.weight": "PEFT's merge_and_unload",
    FIRST.replace(".model.model", ".model._orig_mod.model"): "without torch.compile",
    FIRST.replace(".weight", ".default.weight"): "not as a state_dict",
    FIRST.replace(".model.model", ".model.model.language_model"): "a model of images and text",
    FIRST.removeprefix("base_model.model."): "names begin with base_model.model.",
    FIRST.replace("lora_A.weight", "lora_magnitude_vector"): "expected plain LoRA; else merge it",
}


@pytest.mark.parametrize("name", SAVED_OTHERWISE)
def test_a_tensor_of_another_trainer_is_named_with_the_way_out(tmp_path: Path, name: str):
    tensors = good_tensors()
    tensors[name] = tensors.pop(FIRST)
    with pytest.raises(UserError) as caught:
        read_adapter(write(tmp_path, tensors), SHAPES)
    assert name in str(caught.value)
    assert SAVED_OTHERWISE[name] in str(caught.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_only_odd_changes_nothing(tmp_path: Path, name: str):
    HARMLESS[name](tmp_path)
    adapter = read_adapter(tmp_path, SHAPES)
    tensors = load_file(adapter.path)
    assert list(adapter.modules) == sorted(TARGETS)
    for module, update in adapter.modules.items():
        assert (update.scale, update.rank) == (2.0, 4)
        for part in ("lora_A", "lora_B"):
            assert getattr(update, part) == f"base_model.model.{module}.{part}.weight"
            assert (tensors[getattr(update, part)] == good_tensors()[getattr(update, part)]).all()
    assert adapter.manifest.prompt_template is None


def test_no_bad_adapter_costs_much(tmp_path: Path):
    jobs = []
    for number, make in enumerate(REFUSED_UNREAD.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder)
        jobs.append([str(folder), json.dumps(SHAPES)])
    costs = dict(zip(REFUSED_UNREAD, measure("tests.weights.jobs:read_folder", jobs), strict=True))
    assert len(costs) + len(HARMLESS) >= 240
    assert {n: c for n, c in costs.items() if not c.outcome.startswith("refused: ")} == {}
    assert {n: c for n, c in costs.items() if c.seconds > 0.5 or c.peak_mebibytes > 128} == {}
