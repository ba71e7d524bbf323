"""The main job on an embedded default: from a data file to an answering model, on any machine."""

import importlib
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from src.cli.client import main as run_client
from src.cli.follow import stream_answer
from src.cli.server import running_server
from src.cli.tiny_model import make_base_model

MODULES = ("os.path", "shutil", "textwrap", "tempfile", "string", "json", "glob", "fnmatch", "copy")
NUM_EXAMPLES = 40
NUM_QUESTIONS = 3
SETTINGS = (
    "num_train_epochs=16",
    "learning_rate=0.003",
    "lora_dropout=0",
    "num_validation_samples=4",
)
QUESTION = {"temperature": 0, "repetition_penalty": 1, "seed": 0, "max_new_tokens": 48}


def main() -> int:
    """Make a base model and a training file, train, and answer three prompts before and after."""
    started = time.monotonic()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns where there is no GPU
    folder = Path(os.environ.get("BASE_MODEL_CACHE") or "~/.cache/cog-finetune").expanduser()
    folder = folder / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    examples = list(collect_examples())[:NUM_EXAMPLES]
    data = folder / "docstrings.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    print(f"training file: {data}, {len(examples)} functions of the standard library", flush=True)
    inputs: list[str] = []
    if "BASE_MODEL" not in os.environ:
        base_model = folder / "base-model"
        if not base_model.is_dir():
            make_base_model(base_model, tokenizer_texts())
        os.environ["BASE_MODEL"] = str(base_model)
        inputs = [text for setting in SETTINGS for text in ("-i", setting)]
        print(f"base model: {base_model}, Llama-shaped, random weights", flush=True)
    weights = folder / "weights.tar"
    code = run_client(["train", str(data), *inputs, "-o", str(weights)])
    if code:
        return code
    os.environ["WEIGHTS_DIR"] = str(folder)
    with running_server("predict") as address:
        for example in examples[:NUM_QUESTIONS]:
            request = {**QUESTION, "prompt": example["prompt"]}
            trained = {**request, "replicate_weights": weights.name}
            print(f"\nprompt:   {example['prompt']}")
            print(f"before:   {''.join(stream_answer(address, request))!r}")
            print(f"after:    {''.join(stream_answer(address, trained))!r}")
            print(f"expected: {example['completion']!r}", flush=True)
    print(f"\ndone in {time.monotonic() - started:.0f} s; the weights are in {weights}")
    return 0


def collect_examples() -> Iterator[dict[str, str]]:
    """Yield a question about each function of some modules, with its docstring as the answer."""
    for name, text in collect_functions(MODULES):
        summary = " ".join(text.split("\n\n")[0].split())
        yield {"prompt": f"What does {name} do?", "completion": summary}


def collect_functions(module_names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of the functions of some modules."""
    for module_name in module_names:
        module = importlib.import_module(module_name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            text = inspect.getdoc(function)
            if text and not name.startswith("_"):
                yield f"{module_name}.{name}", text


def tokenizer_texts() -> list[str]:
    """Return the texts that the demo's tokenizer learns its words from."""
    return [f"{example['prompt']}\n{example['completion']}" for example in collect_examples()]


if __name__ == "__main__":
    sys.exit(main())
