"""Bad training files, bad weights and values without measure, made on the spot."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping

TRAINING_FILES: Mapping[str, bytes] = {
    "empty": b"",
    "null": b"null\n",
    "csv": b"prompt,completion\na,b\n",
    "deep": b"[" * 50_000 + b"\n",
    "number": b'{"prompt": 1, "completion": "b"}\n',
    "half": b'{"prompt": "a", "comple',
    "no-completion": b'{"prompt": "a"}\n',
    "nan": b'{"prompt": NaN, "completion": "b"}\n',
    "utf-16": '{"prompt": "a", "completion": "b"}\n'.encode("utf-16"),
    "binary": bytes(range(256)) * 100,
    "gzip-cut": gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:40],
    "long-line": b'{"prompt": "' + b"a" * (9 << 20),
    "html": b"<html>no</html>",
}

TRAINING_VALUES: tuple[Mapping[str, object], ...] = (
    {"lora_rank": 10**9},
    {"lora_rank": 0},
    {"max_steps": 10**30},
    {"chunk_size": 10**15},
    {"train_batch_size": 10**12},
    {"learning_rate": 0},
    {"learning_rate": 10**400},
    {"seed": -1},
    {"seed": 10**40},
    {"prompt_template": "{prompt}" + "x" * 2_000_000},
    {"prompt_template": "no place"},
    {"lora_target_modules": "q_proj," * 200_000},
    {"lora_target_modules": "(([a-z])+)+!"},
    {"lora_dropout": 1},
    {"peft_method": "x" * 100_000},
    {"resume_from": "../../etc"},
    {"resume_from": "x" * 100_000},
    {"resume_from": "a\0b"},
    {"checkpoint_seconds": 10**400},
    {"warmup_ratio": 7},
)

PREDICTION_VALUES: tuple[Mapping[str, object], ...] = (
    {"stop_sequences": "a," * 500_000},
    {"stop_sequences": "[" * 100_000},
    {"prompt": "number " * 300_000},
    {"system_prompt": "number " * 300_000},
    {"prompt_template": "{prompt}" * 100_000},
    {"prompt_template": "{prompt.__class__}"},
    {"messages": "[" * 100_000, "prompt": ""},
    {"messages": json.dumps([{"role": "user", "content": "x"}] * 20_000), "prompt": ""},
    {"json_schema": '{"not":' * 20_000},
    {"json_schema": "[1]"},
    {"replicate_weights": "a" * 1_000_000},
    {"replicate_weights": "../../etc/passwd"},
    {"replicate_weights": "a\0b"},
    {"replicate_weights": "data:;base64,%%%"},
    {"top_k": -7},
    {"logprobs": 10**9},
    {"num_outputs": 10**9},
    {"temperature": 10**400},
    {"max_new_tokens": 0},
)


def bad_weights(good: bytes) -> dict[str, bytes]:
    """Return archives made from a good one that are to be refused."""
    with tarfile.open(fileobj=io.BytesIO(good)) as tar:
        members = {
            info.name: file.read() for info in tar if (file := tar.extractfile(info)) is not None
        }
    config, tensors = members["adapter_config.json"], members["adapter_model.safetensors"]
    start = 8 + int.from_bytes(tensors[:8], "little")
    not_numbers = tensors[:start] + b"\xff" * (len(tensors) - start)
    other_rank = json.dumps({**json.loads(config), "r": 1000}).encode()
    link = tarfile.TarInfo("adapter_config.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    outside = tarfile.TarInfo("../adapter_config.json")
    return {
        "empty": b"",
        "html": b"<html>no</html>",
        "cut": good[: len(good) // 2],
        "bomb": gzip.compress(bytes(256 << 20)),
        "link": _pack({"adapter_model.safetensors": tensors}, link),
        "outside": _pack({"adapter_model.safetensors": tensors}, outside),
        "no-tensors": _pack({"adapter_config.json": config}),
        "pickle": _pack({"adapter_config.json": config, "adapter_model.bin": tensors}),
        "no-numbers": _pack(
            {"adapter_config.json": config, "adapter_model.safetensors": not_numbers}
        ),
        "other-rank": _pack(
            {"adapter_config.json": other_rank, "adapter_model.safetensors": tensors}
        ),
        "torn-tensors": _pack(
            {"adapter_config.json": config, "adapter_model.safetensors": tensors[:-100]}
        ),
    }


def tensors_of(archive: bytes) -> bytes:
    """Return the file of tensors in an archive of weights."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile("adapter_model.safetensors")
        assert file is not None
        return file.read()


def _pack(members: Mapping[str, bytes], *odd: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info in odd:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
