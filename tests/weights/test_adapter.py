"""A wrong adapter is refused before the model sees it; a right one is read as PEFT wrote it."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from src.errors import UserError
from src.weights.adapter import read_adapter

SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (16, 16),
        "self_attn.v_proj": (8, 16),
        "mlp.up_proj": (32, 16),
    }.items()
} | {"lm_head": (40, 16)}
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "task_type": "CAUSAL_LM",
}
TARGETS = [name for name in SHAPES if name.endswith(("q_proj", "v_proj"))]
KINDS = {
    "float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32",
    "uint8": "U8", "bool": "BOOL", "uint16": "BF16",
}  # fmt: skip
"""numpy knows no bfloat16: its bits travel as uint16."""
FIRST = f"base_model.model.{TARGETS[0]}.lora_A.weight"


def good_tensors(rank: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for name in TARGETS:
        out_features, in_features = SHAPES[name]
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = rng.normal(size=(rank, in_features))
        tensors[f"{prefix}.lora_B.weight"] = rng.normal(size=(out_features, rank))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def write(folder: Path, tensors, config=None, *, header=None, tail=b"", manifest=None) -> Path:
    body, entries = b"", {}
    for name, tensor in tensors.items():
        data = tensor.tobytes()
        kind = KINDS[tensor.dtype.name]
        span = [len(body), len(body) + len(data)]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": span}
        body += data
    text = json.dumps(entries).encode() if header is None else header(entries)
    content = struct.pack("<Q", len(text)) + text + body + tail
    (folder / "adapter_model.safetensors").write_bytes(content)
    config = json.dumps({**CONFIG, **(config or {})}) if not isinstance(config, str) else config
    (folder / "adapter_config.json").write_text(config)
    if manifest is not None:
        (folder / "training.json").write_text(manifest)
    return folder


def test_a_good_adapter_is_read(tmp_path: Path):
    adapter = read_adapter(write(tmp_path, good_tensors()), SHAPES)
    assert list(adapter.modules) == sorted(TARGETS)
    module = adapter.modules[TARGETS[0]]
    assert (module.rank, module.scale) == (4, 2.0)
    assert module.lora_A.shape == (4, 16)
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    read = np.frombuffer(data[module.lora_A.start : module.lora_A.end], np.float32)
    assert (read == good_tensors()[FIRST].ravel()).all()


def changed(name: str = FIRST, value=None, **more) -> dict[str, np.ndarray]:
    tensors = good_tensors()
    if value is None:
        tensors.pop(name)
    else:
        tensors[name] = value
    return {**tensors, **more}


def poisoned(value: float) -> dict[str, np.ndarray]:
    tensors = good_tensors()
    tensors[FIRST][1, 2] = value
    return tensors


def zero_b() -> dict[str, np.ndarray]:
    return {n: t * ("lora_A" in n) for n, t in good_tensors().items()}


def as_dtype(dtype: str, bits: int | None = None) -> dict[str, np.ndarray]:
    """All tensors in another dtype, with one number replaced."""
    tensors = {name: (tensor * 9).astype(dtype) for name, tensor in good_tensors().items()}
    if bits is not None:
        tensors[FIRST].view(f"u{tensors[FIRST].itemsize}")[0, 0] = bits
    return tensors


def transposed() -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor.T) for name, tensor in good_tensors().items()}


LAST = f"base_model.model.{TARGETS[-1]}.lora_B.weight"
ONE = np.ones((4, 16), np.float32)
EXTRA = {
    "base-head": "base_model.model.lm_head.weight",
    "base-layer": "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
    "base-norm": "base_model.model.model.norm.weight",
    "other-adapter": "base_model.model.model.layers.0.self_attn.q_proj.lora_A.tenant.weight",
    "not-targeted": "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
    "no-prefix": "model.layers.0.self_attn.q_proj.lora_A.weight",
    "dora": "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "bias": "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
    "unknown": "payload",
}
BAD_TENSORS = {
    **{f"extra-{kind}": changed("x", ONE) | {name: ONE} for kind, name in EXTRA.items()},
    "missing-half": changed(),
    "missing-module": {n: t for n, t in good_tensors().items() if ".1." not in n},
    "empty": {},
    "shape-in": changed(value=np.ones((4, 15), np.float32)),
    "shape-rank": changed(value=np.ones((5, 16), np.float32)),
    "shape-1d": changed(value=np.ones(64, np.float32)),
    "shape-empty": changed(value=np.ones((0, 16), np.float32)),
    "other-rank": good_tensors(rank=2),
    "int64": changed(value=np.ones((4, 16), np.int64)),
    "nan": poisoned(float("nan")),
    "inf": poisoned(float("inf")),
    "minus-inf": poisoned(float("-inf")),
    "no-effect": zero_b(),
    "no-effect-minus-zero": {n: t * (1 if "lora_A" in n else -0.0) for n, t in zero_b().items()},
    "no-effect-a": {n: t * np.float32("lora_B" in n) for n, t in good_tensors().items()},
    "nan-half": as_dtype("float16", 0x7E01),
    "inf-half": as_dtype("float16", 0xFC00),
    "nan-bfloat16": as_dtype("uint16", 0x7F81),
    "inf-bfloat16": as_dtype("uint16", 0xFF80),
    "nan-last": changed(LAST, np.full((8, 4), np.nan, np.float32)),
    "float64": as_dtype("float64"),
    "int32": as_dtype("int32"),
    "uint8": as_dtype("uint8"),
    "bool": as_dtype("bool"),
    "transposed": transposed(),
    "shape-3d": changed(value=np.ones((1, 4, 16), np.float32)),
    "shape-scalar": changed(value=np.ones((), np.float32)),
    "missing-last": changed(LAST),
    "layer-beyond": changed("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", ONE),
    "other-model": {n.replace("model.layers", "transformer.h"): t for n, t in zero_b().items()},
    "prefix-twice": {f"base_model.model.{n}": t for n, t in good_tensors().items()},
    "log-injection": changed("\n\x1b[31mfake", ONE),
    "long-name": changed("x" * 100_000, ONE),
    "many-empty": changed() | {f"e{i}": np.ones(0, np.float32) for i in range(20_000)},
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError) as caught:
        read_adapter(write(tmp_path, BAD_TENSORS[name]), SHAPES)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


BAD_CONFIGS = {
    "type": {"peft_type": "IA3"},
    "no-type": {"peft_type": None},
    "rank-zero": {"r": 0},
    "rank-huge": {"r": 10**6},
    "rank-text": {"r": "4"},
    "rank-true": {"r": True},
    "rank-float": {"r": 4.5},
    "alpha-zero": {"lora_alpha": 0},
    "alpha-negative": {"lora_alpha": -1},
    "alpha-text": {"lora_alpha": "8"},
    "alpha-huge": {"lora_alpha": 1e300},
    "rslora-text": {"use_rslora": "yes"},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora-bias": {"lora_bias": True},
    "fan": {"fan_in_fan_out": True},
    "modules-to-save": {"modules_to_save": ["lm_head"]},
    "layers": {"layers_to_transform": [0]},
    "replication": {"layer_replication": [[0, 500]]},
    "exclude": {"exclude_modules": "(.*)*x"},
    "tokens": {"trainable_token_indices": [1]},
    "parameters": {"target_parameters": ["a"]},
    "megatron": {"megatron_config": {"a": 1}},
    "loftq": {"loftq_config": {"a": 1}},
    "unknown-field": {"new_trick": True},
    "targets-regex": {"target_modules": "(([a-z._0-9])+)+!"},
    "targets-regex-name": {"target_modules": ["(.*)*"]},
    "targets-many": {"target_modules": [f"m{i}" for i in range(100_000)]},
    "targets-number": {"target_modules": [1]},
    "targets-empty": {"target_modules": []},
    "targets-none": {"target_modules": None},
    "targets-unknown": {"target_modules": ["nope"]},
    "targets-more": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rank-pattern": {"rank_pattern": {"q_proj": 2}},
    "rank-pattern-regex": {"rank_pattern": {"(.*)*": 4}},
    "rank-pattern-list": {"rank_pattern": [1]},
    "alpha-pattern-nan": {"alpha_pattern": {"q_proj": float("nan")}},
    "not-json": "{",
    "not-object": "[]",
    "deep": "[" * 100_000,
    "nan": '{"peft_type": "LORA", "r": NaN}',
    "empty-file": "",
    "large": '{"a": "' + "x" * 2_000_000 + '"}',
    "duplicate": '{"peft_type": "LORA", "peft_type": "LORA"}',
    "number-long": '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}",
    "rank-many-digits": {"r": 10**300},
    "rank-negative": {"r": -4},
    "rank-missing": '{"peft_type": "LORA", "lora_alpha": 8, "target_modules": ["q_proj"]}',
    "alpha-infinite": json.dumps(CONFIG).replace('"lora_alpha": 8', '"lora_alpha": 1e999'),
    "alpha-none": {"lora_alpha": None},
    "alpha-pattern-zero": {"alpha_pattern": {"q_proj": 0}},
    "alpha-pattern-text": {"alpha_pattern": "q_proj"},
    "rank-pattern-zero": {"rank_pattern": {"q_proj": 0}},
    "rank-pattern-many": {"rank_pattern": {f"m{i}": 4 for i in range(100_000)}},
    "rslora-number": {"use_rslora": 1},
    "layer-zero": {"layers_to_transform": 0},
    "layers-pattern": {"layers_pattern": "(.*)*x"},
    "corda": {"corda_config": {"a": 1}},
    "eva": {"eva_config": {"a": 1}},
    "runtime": {"runtime_config": {"ephemeral_gpu_offload": True}},
    "lora-ga": {"lora_ga_config": {"a": 1}},
    "qalora": {"use_qalora": True},
    "tied": {"ensure_weight_tying": True},
    "targets-text": {"target_modules": "q_proj"},
    "targets-nested": {"target_modules": [["q_proj"]]},
    "targets-newline": {"target_modules": ["q_proj\n"]},
    "targets-long": {"target_modules": ["q" * 1000]},
    "targets-half": {"target_modules": ["proj"]},
    "log-injection": {"\n\x1b[31mfake": 1},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs_are_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError) as caught:
        read_adapter(write(tmp_path, good_tensors(), BAD_CONFIGS[name]), SHAPES)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_other_number_formats_are_read(tmp_path: Path):
    for dtype in ("float16", "uint16"):
        tensors = {name: np.full(t.shape, 0x3C01, "u2") for name, t in good_tensors().items()}
        write(tmp_path, {name: tensor.view(dtype) for name, tensor in tensors.items()})
        module = read_adapter(tmp_path, SHAPES).modules[TARGETS[0]]
        assert module.lora_B.dtype == KINDS[dtype]
        assert module.lora_B.end - module.lora_B.start == 16 * 4 * 2


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
    data = adapter.path.read_bytes()
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
            found, weight = getattr(module, part), linear["default"].weight.detach()
            assert (found.dtype, found.shape) == ("F32", tuple(weight.shape))
            numbers = np.frombuffer(data[found.start : found.end], np.float32)
            assert (numbers == weight.numpy().ravel()).all()


def entry(**values):
    def header(entries) -> bytes:
        return json.dumps({**entries, FIRST: {**entries[FIRST], **values}}).encode()

    return {"header": header}


TWICE = f', "{FIRST}": {{}}}}'.encode()
BAD_HEADERS = {
    "not-json": {"header": lambda entries: b"{x"},
    "not-object": {"header": lambda entries: b"[1]"},
    "deep": {"header": lambda entries: b"[" * 100_000},
    "not-utf-8": {"header": lambda entries: b"\xff\xfe"},
    "duplicate-key": {"header": lambda e: json.dumps(e).encode()[:-1] + TWICE},
    "overlap": entry(data_offsets=[0, 1]),
    "beyond": entry(data_offsets=[0, 10**9]),
    "negative": entry(data_offsets=[-1, 10]),
    "offset-text": entry(data_offsets=["0", "256"]),
    "dtype": entry(dtype="OBJ"),
    "shape-text": entry(shape="4x16"),
    "shape-negative": entry(shape=[-4, -16]),
    "shape-huge": entry(shape=[2**40, 2**40]),
    "hole": {"tail": b"\0" * 8},
    "utf-16": {"header": lambda e: json.dumps(e).encode("utf-16")},
    "leading-space": {"header": lambda e: b" " + json.dumps(e).encode()},
    "nan": {"header": lambda e: json.dumps({**e, "a": float("nan")}).encode()},
    "long-number": entry(shape=[int("9" * 4000)]),
    "shape-true": entry(shape=[True, 64]),
    "shape-deep": entry(shape=[1] * 62 + [4, 16]),
    "offset-one": entry(data_offsets=[0]),
    "offset-backwards": entry(data_offsets=[256, 0]),
    "dtype-list": entry(dtype=["F32"]),
    "dtype-half-byte": entry(dtype="F4"),
    "field-more": entry(code="import os"),
    "entry-text": {"header": lambda e: json.dumps({**e, FIRST: "F32"}).encode()},
    "aliased": {"header": lambda e: json.dumps({**e, LAST: e[FIRST]}).encode()},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_are_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError):
        read_adapter(write(tmp_path, good_tensors(), **BAD_HEADERS[name]), SHAPES)


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\xff" * 64, b"PK\x03\x04", b"\x80\x04."])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes):
    write(tmp_path, good_tensors())
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        read_adapter(tmp_path, SHAPES)


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", '{"format_version": 2}', '{"format_version": 1, "prompt_template": 1}',
     '{"format_version": 1, "prompt_template": "none"}',
     '{"format_version": 1, "system_prompt": "\\ud800"}'],
)  # fmt: skip
def test_bad_manifests_are_refused(tmp_path: Path, manifest: str):
    with pytest.raises(UserError, match=r"training\.json"):
        read_adapter(write(tmp_path, good_tensors(), manifest=manifest), SHAPES)
