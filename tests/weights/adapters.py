"""Folders with adapters, good, bad and only odd, for one small base model."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

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


BAD_NUMBERS = {
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
    "nan-negative": poisoned(-float("nan")),
    "nan-signalling": as_dtype("uint16", 0x7F81),
    "one-nan-in-lora-b": changed(LAST, np.where(np.arange(32).reshape(8, 4) == 31, np.nan, 1.0)
        .astype(np.float32)),
}  # fmt: skip
"""What only one who reads the numbers can tell from a good adapter."""


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
    "modules-to-save": {"modules_to_save": ["lm_head"]},
    "replication": {"layer_replication": [[0, 500]]},
    "tokens": {"trainable_token_indices": [1]},
    "parameters": {"target_parameters": ["a"]},
    "megatron": {"megatron_config": {"a": 1}},
    "loftq": {"loftq_config": {"a": 1}},
    "unknown-field": {"new_trick": True},
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
    "corda": {"corda_config": {"a": 1}},
    "eva": {"eva_config": {"a": 1}},
    "runtime": {"runtime_config": {"ephemeral_gpu_offload": True}},
    "lora-ga": {"lora_ga_config": {"a": 1}},
    "qalora": {"use_qalora": True},
    "tied": {"ensure_weight_tying": True},
    "targets-nested": {"target_modules": [["q_proj"]]},
    "targets-newline": {"target_modules": ["q_proj\n"]},
    "targets-long": {"target_modules": ["q" * 1000]},
    "targets-half": {"target_modules": ["proj"]},
    "log-injection": {"\n\x1b[31mfake": 1},
}


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
    "nan": {"header": lambda e: json.dumps({**e, "a": float("nan")}).encode()},
    "long-number": entry(shape=[int("9" * 4000)]),
    "shape-true": entry(shape=[True, 64]),
    "shape-deep": entry(shape=[1] * 62 + [4, 16]),
    "offset-one": entry(data_offsets=[0]),
    "offset-backwards": entry(data_offsets=[256, 0]),
    "dtype-list": entry(dtype=["F32"]),
    "dtype-half-byte": entry(dtype="F4"),
    "entry-text": {"header": lambda e: json.dumps({**e, FIRST: "F32"}).encode()},
    "aliased": {"header": lambda e: json.dumps({**e, LAST: e[FIRST]}).encode()},
}  # fmt: skip

NOT_SAFETENSORS = {
    "empty": b"",
    "four-bytes": b"\0" * 4,
    "all-ones": b"\xff" * 64,
    "zip": b"PK\x03\x04",
    "pickle": b"\x80\x04.",
    "pickle-protocol-0": b"cos\nsystem\n(S'true'\ntR.",
    "header-beyond": struct.pack("<Q", 1000) + b"{}",
    "header-huge": struct.pack("<Q", 1 << 62) + b"{}",
    "header-negative": struct.pack("<q", -1) + b"{}",
    "header-none": struct.pack("<Q", 0),
    "header-list": struct.pack("<Q", 2) + b"[]",
    "header-null": struct.pack("<Q", 4) + b"null",
    "header-blank": struct.pack("<Q", 64) + b" " * 64,
    "header-zeros": struct.pack("<Q", 64) + b"\0" * 64,
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "html": b"<!DOCTYPE html><html></html>" * 10,
    "gguf": b"GGUF\x03\0\0\0" + b"\0" * 64,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
}
BAD_MANIFESTS = {
    "list": "[]",
    "no-version": "{}",
    "version-two": '{"format_version": 2}',
    "version-text": '{"format_version": "1"}',
    "version-true": '{"format_version": true}',
    "version-float": '{"format_version": 1.0}',
    "template-number": '{"format_version": 1, "prompt_template": 1}',
    "template-object": '{"format_version": 1, "prompt_template": {"a": 1}}',
    "template-placeless": '{"format_version": 1, "prompt_template": "none"}',
    "template-attribute": '{"format_version": 1, "prompt_template": "{prompt.__class__}"}',
    "system-surrogate": '{"format_version": 1, "system_prompt": "\\ud800"}',
    "system-list": '{"format_version": 1, "system_prompt": ["a"]}',
    "base-number": '{"format_version": 1, "base_model": 7}',
    "cut": '{"format_version": 1',
    "deep": '{"a": ' * 100_000,
    "twice": '{"format_version": 1, "format_version": 1}',
    "nan": '{"format_version": 1, "a": NaN}',
    "large": '{"format_version": 1, "a": "' + "x" * (1 << 20) + '"}',
    "utf-16": "\ufeff{}",
    "long-number": '{"format_version": ' + "1" * 5000 + "}",
}
BAD_TENSORS |= {
    "extra-embedding": changed("base_model.model.model.embed_tokens.weight", ONE),
    "extra-lm-head-lora": changed("base_model.model.lm_head.lora_A.weight", ONE),
    "extra-modules-to-save": changed(f"{FIRST}.modules_to_save.weight", ONE),
    "extra-default-adapter": changed(FIRST.replace("lora_A", "lora_A.default"), ONE),
    "extra-embedding-lora": changed(FIRST.replace("lora_A.weight", "lora_embedding_A"), ONE),
    "extra-base-bias": changed(FIRST.replace("lora_A.weight", "base_layer.bias"), ONE),
    "extra-running-mean": changed("base_model.model.model.norm.running_mean", ONE),
    "extra-empty-name": {**good_tensors(), "": ONE},
    "extra-dunder": {**good_tensors(), "__class__": ONE},
    "extra-traversal": {**good_tensors(), "../../model.safetensors": ONE},
    "extra-surrogate": {**good_tensors(), "\ud800": ONE},
    "case-differs": {n.replace("lora_A", "LORA_A"): t for n, t in good_tensors().items()},
    "swapped-halves": {
        n.replace("lora_A", "?").replace("lora_B", "lora_A").replace("?", "lora_B"): t
        for n, t in good_tensors().items()
    },
    "wider-base": {
        n: np.ones((t.shape[0], 32) if "lora_A" in n else (2 * t.shape[0], 4), np.float32)
        for n, t in good_tensors().items()
    },
    "deeper-base": good_tensors() | {
        n.replace("layers.1", "layers.2"): t for n, t in good_tensors().items()
    },
    "rank-one": good_tensors(rank=1),
    "rank-sixteen": good_tensors(rank=16),
    "mixed-ranks": good_tensors() | {
        n: t for n, t in good_tensors(rank=8).items() if "layers.1" in n
    },
    "only-a": {n: t for n, t in good_tensors().items() if "lora_A" in n},
    "only-b": {n: t for n, t in good_tensors().items() if "lora_B" in n},
}  # fmt: skip
BAD_CONFIGS |= {
    **{
        f"type-{kind}": {"peft_type": kind}
        for kind in ("ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "XLORA", "PROMPT_TUNING",
                     "PREFIX_TUNING", "P_TUNING", "LN_TUNING", "FOURIERFT", "OSF", "lora", "Lora ")
    },
    "type-list": {"peft_type": ["LORA"]},
    "type-object": {"peft_type": {"LORA": 1}},
    "arrow": {"arrow_config": {"a": 1}},
    "alora": {"alora_invocation_tokens": [1]},
    "kasa": {"kasa_config": {"a": 1}},
    "virtual-tokens": {"num_virtual_tokens": 10**9},
    "code": {"trust_remote_code": True},
    "tokenizer-code": {"tokenizer_kwargs": {"trust_remote_code": True}},
    "replication-many": {"layer_replication": [[0, 1]] * 50_000},
    "save-many": {"modules_to_save": [f"m{i}" for i in range(20_000)]},
    **{f"init-{value}": {"init_lora_weights": value}
       for value in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "nonsense", 1,
                     "True")},
    "init-list": {"init_lora_weights": ["gaussian"]},
    "alpha-none-left": {"lora_alpha": 5e-324},
    "rank-infinite": json.dumps(CONFIG).replace('"r": 4', '"r": 1e999'),
    "rank-exponent": json.dumps(CONFIG).replace('"r": 4', '"r": 4e0'),
    "rank-list": {"r": [4]},
    "alpha-true": {"lora_alpha": True},
    "alpha-list": {"lora_alpha": [8]},
    "alpha-tiny-negative": {"lora_alpha": -1e-300},
    "targets-traversal": {"target_modules": ["../q_proj"]},
    "targets-null-byte": {"target_modules": ["q_proj\0"]},
    "targets-surrogate": {"target_modules": ["\ud800"]},
    "targets-empty-name": {"target_modules": [""]},
    "targets-object": {"target_modules": {"q_proj": 1}},
    "targets-nothing": {"target_modules": ["embed_tokens"]},
    "wide": "{" + ",".join(f'"k{i}":[]' for i in range(80_000)) + "}",
    "many-lists": '{"a":[' + "[]," * 300_000 + "[]]}",
    "deep-objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "null": "null",
    "text": '"LORA"',
    "two-objects": "{}{}",
    "comment": json.dumps(CONFIG) + " // really",
    "single-quotes": str(CONFIG),
    "yaml": "peft_type: LORA\nr: 4\n",
    "byte-order-mark": "\ufeff" + json.dumps(CONFIG),
}  # fmt: skip
BAD_HEADERS |= {
    "many-tensors": {"header": lambda e: json.dumps({**e, **{
        f"e{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)
    }}).encode()},
    "padding-huge": {"header": lambda e: json.dumps(e).encode() + b" " * (16 << 20)},
    "metadata-odd": {"header": lambda e: json.dumps({**e, "__metadata__": [None]}).encode()},
    "metadata-huge": {"header": lambda e: json.dumps(
        {**e, "__metadata__": {"a": "x" * (16 << 20)}}).encode()},
    # As large as headers may be.
    **{f"full-{name}": {"header": lambda e, unit=unit: b'{"a": [%s 0]}' % (
        unit * ((512 << 10) // len(unit) - 4))}
       for name, unit in {"lists": b"[[[[]]]],", "objects": b'{"":{"":{}}},', "keys": b'{"":0},',
                          "empty": b"[],"}.items()},
    "cut-short": {"header": lambda e: json.dumps(e).encode()[:-5]},
    "two-objects": {"header": lambda e: json.dumps(e).encode() + b"{}"},
    "shape-float": entry(shape=[4.0, 16.0]),
    "shape-null": entry(shape=None),
    "shape-nested": entry(shape=[[4, 16]]),
    "shape-overflow": entry(shape=[2**32, 2**32, 2**32]),
    "offsets-null": entry(data_offsets=None),
    "offsets-three": entry(data_offsets=[0, 100, 256]),
    "offsets-float": entry(data_offsets=[0.0, 256.0]),
    "offsets-huge": entry(data_offsets=[2**63, 2**63 + 256]),
    "dtype-null": entry(dtype=None),
    "dtype-lower": entry(dtype="f32"),
    "dtype-lies": entry(dtype="F16"),
    "dtype-wider": entry(dtype="F64"),
    "data-cut": {"header": lambda e: json.dumps(
        {**e, LAST: {**e[LAST], "shape": [8, 8], "data_offsets": [
            e[LAST]["data_offsets"][0], e[LAST]["data_offsets"][0] + 256]}}).encode()},
    "tail-pickle": {"tail": b"\x80\x04cos\nsystem\n."},
}  # fmt: skip

WEIGHTS = "adapter_model.safetensors"


class Payload:
    """Leaves a mark in the working folder when it is unpickled."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


def without(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder, good_tensors())
        (folder / name).unlink()

    return make


def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    """A good adapter with something else in the place of one of its files."""

    def make(folder: Path) -> None:
        write(folder, good_tensors(), manifest='{"format_version": 1}')
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return make


def pickled_only(folder: Path) -> None:
    without(WEIGHTS)(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))


REFUSED_UNREAD: dict[str, Callable[[Path], object]] = {
    **{f"tensors-{n}": partial(write, tensors=t) for n, t in BAD_TENSORS.items()},
    **{f"config-{n}": partial(write, tensors=good_tensors(), config=c)
       for n, c in BAD_CONFIGS.items()},
    **{f"header-{n}": partial(write, tensors=good_tensors(), **h) for n, h in BAD_HEADERS.items()},
    **{f"manifest-{n}": partial(write, tensors=good_tensors(), manifest=m)
       for n, m in BAD_MANIFESTS.items()},
    **{f"weights-{n}": instead(WEIGHTS, lambda path, data=data: path.write_bytes(data))
       for n, data in NOT_SAFETENSORS.items()},
    "weights-real-pickle": instead(
        WEIGHTS, lambda path: path.write_bytes(pickle.dumps(Payload()) * 20)),
    "weights-folder": instead(WEIGHTS, Path.mkdir),
    "weights-missing": without(WEIGHTS),
    "weights-pickled-only": pickled_only,
    "config-missing": without("adapter_config.json"),
    "config-folder": instead("adapter_config.json", Path.mkdir),
    "config-fifo": instead("adapter_config.json", os.mkfifo),
    "weights-fifo": instead(WEIGHTS, os.mkfifo),
    "weights-link-to-nothing": instead(WEIGHTS, lambda path: path.symlink_to("nothing")),
    "weights-link-to-itself": instead(WEIGHTS, lambda path: path.symlink_to(path)),
    "nothing": lambda folder: None,
}  # fmt: skip
"""Refused before a number is read."""
REFUSED_NUMBERS: dict[str, Callable[[Path], object]] = {
    name: partial(write, tensors=tensors) for name, tensors in BAD_NUMBERS.items()
}
REFUSED = REFUSED_UNREAD | REFUSED_NUMBERS


def beside(name: str, data: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder, good_tensors())
        (folder / name).write_bytes(data)

    return make


EVIL = pickle.dumps(Payload())
CODE = b"open('pwned', 'w')\n"
AUTO_MAP = b'{"auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", null]}}'
HARMLESS: dict[str, Callable[[Path], object]] = {
    **{f"init-{value}": partial(write, tensors=good_tensors(), config={"init_lora_weights": value})
       for value in ("eva", "gaussian", "orthogonal", True, False, None)},
    # The base model's layer itself knows how it holds its weight.
    "fan-in-fan-out": partial(write, tensors=good_tensors(), config={"fan_in_fan_out": True}),
    # The tensors tell which modules were trained; patterns are never run.
    **{f"select-{name}": partial(write, tensors=good_tensors(), config=config)
       for name, config in {
           "regex": {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"},
           "regex-slow": {"target_modules": "(([a-z._0-9])+)+!"},
           "text": {"target_modules": "q_proj"},
           "exclude": {"exclude_modules": ["lm_head"]},
           "exclude-regex": {"exclude_modules": "(([a-z._0-9])+)+!"},
           "layers": {"layers_to_transform": [0, 1]},
           "layer-zero": {"layers_to_transform": 0},
           "layers-all": {"layers_to_transform": list(range(100_000))},
           "layers-pattern": {"layers_pattern": "(.*)*x"},
       }.items()},
    **{f"field-{name}": partial(write, tensors=good_tensors(), config={name: value})
       for name, value in {
           "base_model_name_or_path": "../../../etc/passwd",
           "revision": "refs/pr/1",
           "auto_mapping": {"parent_library": "os", "base_model_class": "system"},
           "megatron_core": "os",
           "inference_mode": False,
           "lora_dropout": 1e300,
           "task_type": "os.system",
           "peft_version": "\x1b[31m",
           "qalora_group_size": -1,
           "modules_to_save": [],
           "layer_replication": None,
       }.items()},
    **{f"file-{name}": beside(name, data) for name, data in {
        "adapter_model.bin": EVIL, "pytorch_model.bin": EVIL, "optimizer.pt": EVIL,
        "training_args.bin": EVIL, "rng_state.pth": EVIL, "scheduler.pt": EVIL,
        "modeling_evil.py": CODE, "evil.py": CODE, "__init__.py": CODE, "conftest.py": CODE,
        "sitecustomize.py": CODE, "tokenizer_config.json": AUTO_MAP, "config.json": AUTO_MAP,
        "tokenizer.json": b"{", "chat_template.jinja": b"{{ ''.__class__.__mro__ }}",
        "generation_config.json": b'{"eos_token_id": 1}', "special_tokens_map.json": b"[",
        "model.safetensors": b"\xff" * 100, "README.md": b"\x1b[2J", ".env": b"HF_TOKEN=x",
        "adapter_model.safetensors.index.json": b"{", "added_tokens.json": b"{",
    }.items()},
    "metadata": partial(write, tensors=good_tensors(), header=lambda e: json.dumps(
        {**e, "__metadata__": {"format": "pt", "code": "import os"}}).encode()),
    "header-leading-space": partial(
        write, tensors=good_tensors(), header=lambda e: b" " + json.dumps(e).encode()),
    "header-field-more": partial(write, tensors=good_tensors(), **entry(code="import os")),
    "header-padded": partial(
        write, tensors=good_tensors(), header=lambda e: json.dumps(e).encode() + b" " * 1000),
    "header-shuffled": partial(write, tensors=good_tensors(), header=lambda e: json.dumps(
        dict(reversed(e.items()))).encode()),
    "manifest-more": partial(write, tensors=good_tensors(), manifest=json.dumps(
        {"format_version": 1, "base_model": "\x1b[31m", "code": "os", "__proto__": {}})),
}  # fmt: skip
