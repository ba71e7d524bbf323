"""A base model that an installed Python package brings as a GGUF file.

`python -m src.weights.base_model.package PACKAGE FOLDER` writes it in Hugging Face layout.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from src.errors import UserError
from src.files.atomic import replacing_folder
from src.files.printable import printable

ROOT = Path(__file__).resolve().parents[3]


def convert_package(package: str, folder: Path) -> None:
    """Write the base model of a package into a folder, in a process of its own.

    The caller stays without torch and its memory. Raises UserError when the package is not
    installed or cannot be converted.
    """
    _gguf_file(package)
    converted = subprocess.run(
        [sys.executable, "-m", __name__, package, str(folder)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if converted.returncode:
        reason = printable(converted.stderr.strip().rpartition("\n")[2], 200)
        raise UserError(f"the base model of {package} could not be converted: {reason}")


def _gguf_file(package: str) -> Path:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError(
        f"this base model comes with the package {package}, which is not installed: "
        "run scripts/install"
    )


def _convert(file: Path, folder: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # The weights are plain now, whatever the configuration says.
    vars(model.config).pop("quantization_config", None)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, model_max_length=model.config.max_position_embeddings
    )
    # Transformers does not read the file's `tokenizer.ggml.pre`: smollm parts digits first.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    with replacing_folder(folder) as partial:  # this process may outlive who waits for it
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


if __name__ == "__main__":
    _convert(_gguf_file(sys.argv[1]), Path(sys.argv[2]))
