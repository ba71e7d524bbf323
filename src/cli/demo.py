"""The main job on a real base model: from a data file to an answering model, on any machine.

`python -m src.cli.demo [--tiny]`
"""

import argparse
import json
import logging
import os
import sys
import tarfile
import time
from pathlib import Path

from src.cli.client import main as run_client
from src.cli.docstrings import docstring_pairs, tokenizer_texts
from src.cli.follow import stream_answer
from src.cli.server import running_server
from src.cli.server_http import RequestError
from src.cli.tiny_model import make_base_model
from src.environment import cache_folder

SETTINGS = (
    "max_steps=32",
    "train_batch_size=8",
    "learning_rate=0.001",
    "lora_dropout=0",
    "num_validation_samples=40",
    "validation_batch_size=8",
)
NUM_TINY = 24
"""Examples that the tiny model learns by heart."""
TINY_SETTINGS = (
    "num_train_epochs=16",
    "learning_rate=0.003",
    "lora_dropout=0",
    "num_validation_samples=4",
)
NUM_QUESTIONS = 3
REQUEST = {"temperature": 0, "repetition_penalty": 1, "seed": 0, "max_new_tokens": 48}


def main(arguments: list[str]) -> int:
    """Write a training file, train, and answer three prompts with and without what was learned."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Train, then ask")
    parser.add_argument("--tiny", action="store_true", help="a random model learns a few by heart")
    is_tiny = parser.parse_args(arguments).tiny
    started = time.monotonic()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns where there is no GPU
    folder = cache_folder(os.environ) / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    examples = docstring_pairs()
    # Held out: validation takes the last ones.
    settings, questions = SETTINGS, examples[-NUM_QUESTIONS:]
    if is_tiny:
        examples = examples[:NUM_TINY]
        settings, questions = TINY_SETTINGS, examples[:NUM_QUESTIONS]
        make_base_model(folder / "base-model", tokenizer_texts())
        os.environ["BASE_MODEL"] = str(folder / "base-model")
    os.environ.setdefault("BASE_MODEL", "smollm2-135m-instruct")
    data, weights = folder / "docstrings.jsonl", folder / "weights.tar"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    print(f"base model: {os.environ['BASE_MODEL']}")
    print(f"training file: {data}, {len(examples):,} functions of the standard library", flush=True)
    inputs = [text for setting in settings for text in ("-i", setting)]
    code = run_client(["train", str(data), *inputs, "-o", str(weights)])
    if code:
        return code
    with tarfile.open(weights) as archive:
        report = archive.extractfile("report.html")
        assert report is not None  # each training writes it
        (folder / "report.html").write_bytes(report.read())
    print(f"report: {folder / 'report.html'}\nstarting the server", flush=True)
    try:
        _ask(questions, weights)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\ndone in {time.monotonic() - started:.0f} s; the weights are in {weights}")
    return 0


def _ask(questions: list[dict[str, str]], weights: Path) -> None:
    """Print the answers of the base model and of the weights, and the right ones."""
    os.environ["WEIGHTS_DIR"] = str(weights.parent)
    with running_server("predict") as address:
        for question in questions:
            print(f"\nprompt:   {question['prompt']}")
            for name, chosen in (("before", {}), ("after", {"replicate_weights": weights.name})):
                request = {**REQUEST, **chosen, "prompt": question["prompt"]}
                answer = "".join(stream_answer(address, request))
                print(f"{name + ':':9} {answer!r}", flush=True)
            print(f"expected: {question['completion']!r}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
