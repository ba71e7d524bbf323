"""What a finished run leaves: the adapter, its manifest, the metrics and a report."""

import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from src.model.adapter import save_adapter
from src.settings import TrainSettings
from src.text.formats import Speech
from src.training.report import write_report

FORMAT_VERSION = 1
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
_NOT_SHOWN = (
    "base_model",
    "base_model_dir",
    "base_model_revision",
    "train_data",
    "validation_data",
)
"""Settings that are paths of this machine, or stand elsewhere in the manifest."""


def save_output(
    run_dir: Path,
    tensors: dict[str, Tensor],
    settings: TrainSettings,
    *,
    speech: Speech,
    target_modules: list[str],
    resolved: dict[str, Any],
    data: dict[str, Any],
    losses: dict[str, float | None],
) -> None:
    """Write everything into `run_dir/output`, which appears only when it is whole."""
    is_folder = Path(settings.base_model).exists()
    base_model = Path(settings.base_model).name if is_folder else settings.base_model
    folder = run_dir / "output.partial"
    folder.mkdir()
    save_adapter(
        folder,
        tensors,
        base_model=base_model,
        target_modules=target_modules,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
    )
    asked = {name: value for name, value in asdict(settings).items() if name not in _NOT_SHOWN}
    manifest = {
        "format_version": FORMAT_VERSION,
        "base_model": base_model,
        "base_model_revision": settings.base_model_revision,
        "prompt_template": speech.template,
        "system_prompt": speech.system_prompt or settings.system_prompt,
        "settings": {**asked, **resolved, "lora_target_modules": target_modules},
        "data": data,
        "versions": {name: version(name) for name in LIBRARIES},
        **losses,
    }
    (folder / "training.json").write_text(json.dumps(manifest, indent=2))
    shutil.copyfile(run_dir / "metrics.jsonl", folder / "metrics.jsonl")
    write_report(folder / "report.html", manifest, folder / "metrics.jsonl")
    folder.rename(run_dir / "output")
