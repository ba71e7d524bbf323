"""The doors that strangers' input comes through, each as one function of a random generator."""

import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from src.data.reading.example_file import ExampleFile
from src.errors import UserError
from src.serving.lora.weights import load_adapter
from src.weights.adapter.adapter import read_adapter
from src.weights.archive.archive import read_archive
from src.weights.archive.members import MEMBERS
from tests.fuzzing.mutation import NUMBERS, as_json, mutate_bytes, mutate_value, random_text
from tests.weights.adapters import BAD_CONFIGS, CONFIG, SHAPES, good_tensors
from tests.weights.archives import GOOD, HOSTILE, patched

Target = Callable[[Random, Path], bool]
"""Try one input in an empty folder; return whether it was taken. Only UserError is a refusal."""

ARCHIVES = [data for data in (*GOOD.values(), *HOSTILE.values()) if len(data) < 20_000]
TARS = [data for data in ARCHIVES if data[257:262] == b"ustar"]
HEADER_PLACES = [(0, 100), (124, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155)]


def archives(rng: Random, folder: Path) -> bool:
    """Unpack a damaged archive; only whole known members may ever appear, and only inside."""
    out, archive = folder / "inner" / "out", folder / "archive"
    data = _tar(rng) if rng.random() < 0.5 else mutate_bytes(rng, rng.choice(ARCHIVES), ARCHIVES)
    if not archive.exists():
        out.mkdir(parents=True)
    archive.write_bytes(data)
    try:
        read_archive(archive, out, max_bytes=100_000)
        is_taken = True
    except UserError:
        is_taken = False
    left = os.listdir(out)
    assert set(left) <= MEMBERS.keys(), left
    assert bool(left) == is_taken, left
    for name in left:
        assert not (out / name).is_symlink()
        (out / name).unlink()
    assert sorted(os.listdir(folder)) == ["archive", "inner"], os.listdir(folder)
    assert os.listdir(folder / "inner") == ["out"]
    return is_taken


def _tar(rng: Random) -> bytes:
    """Return a tar with odd header fields under right checksums, packed or not."""
    data = rng.choice(TARS)
    for _ in range(rng.randrange(1, 3)):
        start, size = rng.choice(HEADER_PLACES)
        field = mutate_bytes(rng, data[start : start + size], TARS)[:size].ljust(size, b"\0")
        data = patched(data, start, field, fix_checksum=rng.random() < 0.9)
    return gzip.compress(data, 1) if rng.random() < 0.3 else data


TENSORS = {name: tensor.tobytes() for name, tensor in good_tensors().items()}
ENTRIES: dict[str, dict] = {}
_position = 0
for _name, _tensor in good_tensors().items():
    _end = _position + _tensor.nbytes
    ENTRIES[_name] = {
        "dtype": "F32", "shape": list(_tensor.shape), "data_offsets": [_position, _end],
    }  # fmt: skip
    _position = _end
BODY = b"".join(TENSORS.values())
CONFIGS = [CONFIG, *(c for c in BAD_CONFIGS.values() if isinstance(c, dict) and len(str(c)) < 1000)]
MANIFEST = {"format_version": 1, "prompt_template": "{prompt}", "system_prompt": "a"}


def adapters(rng: Random, folder: Path) -> bool:
    """Read a damaged adapter; one that is taken has the right modules and finite numbers only."""
    config, entries, body, manifest = CONFIG, ENTRIES, BODY, MANIFEST
    match rng.randrange(5):
        case 0:
            config = mutate_value(rng, {**CONFIG, **rng.choice(CONFIGS)})
        case 1 | 2:
            entries = mutate_value(rng, ENTRIES)
        case 3:
            body = mutate_bytes(rng, BODY, [BODY])
        case 4:
            manifest = mutate_value(rng, MANIFEST)
    header = as_json(rng, entries, [b"{}"])
    weights = struct.pack("<Q", len(header)) + header + body
    if rng.random() < 0.1:
        weights = mutate_bytes(rng, weights, [weights])
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(as_json(rng, config, [b"{}"]))
    (folder / "training.json").write_bytes(as_json(rng, manifest, [b"{}"]))
    try:
        adapter = read_adapter(folder, SHAPES)
        loaded = load_adapter(adapter, dtype=torch.float32, key="")
    except UserError:
        return False
    for name, module in adapter.modules.items():
        out_features, in_features = SHAPES[name]
        lora_A, lora_B = loaded.modules[name].lora_A, loaded.modules[name].lora_B
        assert lora_A.shape == (module.rank, in_features)
        assert lora_B.shape == (out_features, module.rank)
        assert lora_A.isfinite().all()
        assert lora_B.isfinite().all()
        assert 0 < module.scale < 1e7
    return True


ROWS = [
    {"text": "a"},
    {"prompt": "a", "completion": "b"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "ä 🍎"},
        {"role": "assistant", "content": "b\n"}, {"role": "user", "content": ""},
        {"role": "assistant", "content": "c"},
    ]},
    {"instruction": "a", "input": "", "output": "b"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": [{"role": "user", "content": "a"}],
     "completion": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
    {"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "weight": 0,
         "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "b"},
        {"role": "assistant", "content": "c", "reasoning": "d"},
    ], "tools": [{"name": "f", "parameters": {}}]},
]  # fmt: skip
LINES = [json.dumps(row).encode() for row in ROWS]


def lines(rng: Random, folder: Path) -> bool:
    """Check a file of ten lines, half of them damaged; what is taken is text all through."""
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(_line(rng) for _ in range(10)))
    file = ExampleFile(path)
    try:
        num_examples = file.check()
    except UserError as error:
        message = str(error)
        assert all(part.isprintable() for part in message.split("\n")), message
        assert len(message) < 6000
        return False
    assert num_examples == sum(1 for _ in file)
    return True


def _line(rng: Random) -> bytes:
    if rng.random() < 0.5:
        return rng.choice(LINES)
    if rng.random() < 0.5:
        return as_json(rng, mutate_value(rng, rng.choice(ROWS)), LINES)
    return mutate_bytes(rng, rng.choice(LINES), LINES)


def _requests() -> Target:
    import tempfile

    from src.chat.chat_format import build_chat_format
    from src.chat.template import with_template
    from src.chat.tokenizer import Tokenizer
    from src.cli.tiny_model import make_base_model
    from src.serving.output.stopping import StopBuffer, parse_stop_sequences
    from src.serving.sampling import SamplingParams
    from src.weights.cache.local_path import find_local
    from src.weights.download.url import check_url, printable_url

    with tempfile.TemporaryDirectory() as made:
        base = Path(made) / "base"
        make_base_model(
            base, ["What is it?"] * 9, vocab_size=300, hidden_size=16, num_layers=1, num_heads=2,
            num_key_value_heads=1, max_seq_len=64,
        )  # fmt: skip
        tokenizer = Tokenizer(base)
    chat_formats = [
        build_chat_format(n, tokenizer) for n in ("llama-2-7b", "llama-2-7b-chat", "mistral-7b")
    ]
    fields = [name for name in SamplingParams.__annotations__ if name != "seed"]

    def requests(rng: Random, folder: Path) -> bool:
        """Take a request's values to where each is first used."""
        prompt, system, template, stop = (random_text(rng) for _ in range(4))
        assert printable_url(prompt).isprintable()
        num_taken = 0
        for check in (
            lambda: SamplingParams(**{rng.choice(fields): rng.choice(NUMBERS)}),
            lambda: StopBuffer(parse_stop_sequences(stop)).push(prompt),
            lambda: parse_stop_sequences(as_json(rng, [stop], LINES).decode("utf-8", "replace")),
            lambda: check_url(prompt),
            lambda: find_local(prompt, folder),
            lambda: with_template(chat_formats[0].prompt_format, template),
        ):
            try:
                check()
                num_taken += 1
            except UserError:
                continue
        if any("\ud800" <= c <= "\udfff" for c in prompt + system + template):
            return False  # refused before it gets here
        chat_format = rng.choice(chat_formats)
        if "{prompt}" in template and rng.random() < 0.5:
            own = with_template(chat_format.prompt_format, template)
            chat_format = replace(chat_format, prompt_format=own)
        try:
            ids = chat_format.prompt_ids(chat_format.of_prompt(prompt, rng.choice((system, None))))
        except UserError:
            return False
        assert tokenizer.eos_id not in ids or "[INST]" in prompt or "</s>" in template
        return num_taken > 3

    return requests


def load(name: str) -> Target:
    """Return the target of this name, ready to run."""
    if name == "requests":
        return _requests()
    return {"archives": archives, "adapters": adapters, "lines": lines}[name]


TARGETS = ("archives", "adapters", "lines", "requests")
INPUTS_A_RUN = {"lines": 10}
"""How many inputs one call of a target tries, where it is more than one."""
