"""What a finished run leaves: the adapter, its manifest, the metrics and a report."""

import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.chat.chat_format import ChatFormat
from src.chat.prompt_encoder import PromptEncoder
from src.data.prepare import read_report
from src.data.report import DataReport
from src.model.adapter import save_adapter
from src.model.precision import dtype_name
from src.settings import TrainSettings
from src.training.context import Run
from src.training.plan.plan import TrainingPlan
from src.training.results.report import write_report
from src.training.supervise.run_folder import RunFolder
from src.weights.adapter.manifest import FORMAT_VERSION
from src.weights.base_model.fingerprint import fingerprint_weights

VERSIONED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
_NOT_SHOWN = (
    "base_model",
    "base_model_dir",
    "base_model_revision",
    "train_data",
    "validation_data",
    "checkpoint_folder",
    "resume_from",
    "environment",
)
"""Settings that are paths of this machine, or stand elsewhere in the manifest."""


@dataclass(frozen=True)
class OutputWriter:
    """Writes the adapter of a run with all that belongs to it."""

    settings: TrainSettings
    chat_format: ChatFormat
    target_modules: list[str]
    resolved: dict[str, Any]
    data: dict[str, Any]
    data_report: DataReport
    metrics_path: Path

    def write(
        self,
        folder: Path,
        tensors: dict[str, Tensor],
        *,
        losses: dict[str, float | None],
        stopped_after: int | None = None,
    ) -> None:
        """Write into an empty folder; `stopped_after` is the last step of a run that was ended."""
        settings = self.settings
        is_folder = Path(settings.base_model).exists()
        base_model = Path(settings.base_model).name if is_folder else settings.base_model
        save_adapter(
            folder,
            tensors,
            base_model=base_model,
            target_modules=self.target_modules,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
        )
        asked = {name: value for name, value in asdict(settings).items() if name not in _NOT_SHOWN}
        manifest = {
            "format_version": FORMAT_VERSION,
            "base_model": base_model,
            "base_model_revision": settings.base_model_revision,
            "base_model_fingerprint": fingerprint_weights(Path(settings.base_model_dir)),
            "prompt_template": self.chat_format.template,
            "system_prompt": self.chat_format.system_prompt or settings.system_prompt,
            "stopped_early": stopped_after is not None,
            "settings": {**asked, **self.resolved, "lora_target_modules": self.target_modules},
            "data": self.data,
            "versions": {name: version(name) for name in VERSIONED_PACKAGES},
            **losses,
        }
        if stopped_after is not None:
            manifest["step"] = stopped_after
        (folder / "training.json").write_text(json.dumps(manifest, indent=2, allow_nan=False))
        shutil.copyfile(self.metrics_path, folder / "metrics.jsonl")
        write_report(folder / "report.html", manifest, folder / "metrics.jsonl", self.data_report)


def output_writer(
    plan: TrainingPlan,
    encoder: PromptEncoder,
    run: Run,
    target_modules: list[str],
    folder: RunFolder,
) -> OutputWriter:
    """Return what writes the adapter of this run, with the settings as they were resolved."""
    step_plan = run.step_plan
    return OutputWriter(
        run.settings,
        chat_format=encoder.chat_format,
        target_modules=target_modules,
        resolved={
            **asdict(step_plan.batch_sizes),
            "num_steps": step_plan.num_steps,
            "zero_stage": plan.zero_stage,
            "context": encoder.max_seq_len,
            "dtype": dtype_name(plan.resources.dtype),
            "base_weights": plan.base_weights,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        data={
            "train": asdict(run.train_data.counts),
            "validation": asdict(run.validation_data.counts),
            "sequences": len(step_plan.sequences),
        },
        data_report=read_report(folder.data),
        metrics_path=folder.metrics,
    )
