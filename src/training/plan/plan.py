"""What a run will do and what it will need, known before the base model is loaded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.steps import StepPlan
from src.data.token_file import TokenDataset
from src.files.printable import show_bytes
from src.model.precision import dtype_name
from src.model.shape import read_config
from src.settings import TrainSettings
from src.training.plan.advice import idle_gpu_warning
from src.training.plan.fit import FILL
from src.training.plan.memory import Workload, estimate_memory
from src.training.plan.resources import Resources
from src.weights.base_model.check import is_bitsandbytes_4bit


@dataclass(frozen=True)
class TrainingPlan:
    """The decisions of a run, and the block that tells them."""

    settings: TrainSettings
    data: TokenDataset
    steps: StepPlan
    resources: Resources
    zero_stage: int
    work: Workload | None
    """None for an architecture whose memory is not estimated."""
    max_tokens: int | None = None
    """Most tokens in one pass, where a micro-batch is split for memory."""
    eager_reason: str | None = ""
    """Why the layers are not compiled, empty where nobody expects it; None where they are."""

    @property
    def num_recomputed(self) -> int:
        """Layers whose activations are computed again for the backward pass."""
        if self.work is not None:
            return self.work.num_recomputed
        # Without an estimate a GPU gets the careful way; more layers than there are is all.
        return 2**31 if self.resources.on_gpus else 0

    @property
    def keeps_dequantized(self) -> bool:
        """Whether 4-bit weights are dequantized once, for speed."""
        return self.work is not None and self.work.keeps_dequantized

    @property
    def base_weights(self) -> str:
        """What the frozen weights are held in."""
        if is_in_4bit(self.settings):
            return "4-bit"
        return "float8" if is_in_float8(self.settings) else dtype_name(self.resources.dtype)

    @property
    def peak(self) -> float | None:
        """Estimated bytes of a rank at its peak."""
        return sum(self._parts().values()) or None

    @property
    def _can_capture(self) -> bool:
        """Whether short passes run as CUDA graphs."""
        has_few_steps = self.work is not None and not self.work.shape.has_score_cap
        return has_few_steps and self.zero_stage != 3 and not self.num_recomputed

    @property
    def trainable_parameters(self) -> int | None:
        """Parameters of the adapter, where the architecture tells them."""
        if self.work is None:
            return None
        settings = self.settings
        return self.work.shape.adapter_parameters(settings.lora_target_modules, settings.lora_rank)

    def lines(self) -> list[str]:
        """Return the block for the log."""
        lines = [self._data_line(), self._steps_line(), self._method_line(), self._memory_line()]
        lines = [f"plan: {line}" for line in lines]
        if self.resources.on_gpus and self.max_tokens is None:
            warning = idle_gpu_warning(
                self.settings,
                self.steps,
                self.work,
                num_tokens=self.data.counts.tokens,
                can_capture=self._can_capture,
            )
            lines += [warning] if warning else []
        return lines

    def _data_line(self) -> str:
        counts, lengths = self.data.counts, self.data.lengths
        longest = int(lengths.argmax())
        return (
            f"{counts.examples:,} examples in {len(self.steps.sequences):,} sequences; "
            f"{counts.tokens:,} tokens, {counts.learned_tokens:,} of them learned "
            f"({counts.learned_tokens / counts.tokens:.0%}); the median example has "
            f"{np.median(lengths):,.0f}, the longest {lengths[longest]:,} "
            f"({self.data.source_line(int(self.data.offsets[longest]))})"
        )

    def _steps_line(self) -> str:
        steps, batch, kind = self.steps, self.steps.batch_sizes, self.resources.kinds
        epochs, per_epoch = self.settings.num_train_epochs, self.steps.steps_per_epoch
        all_steps = epochs * per_epoch
        shortened = "" if steps.num_steps == all_steps else f", {all_steps:,} without max_steps"
        return (
            f"{steps.num_steps:,} steps ({epochs} epochs x {per_epoch:,}{shortened}); "
            f"train_batch_size {batch.global_batch_size} = {batch.world_size} {kind} x "
            f"micro-batch {batch.micro_batch_size} x accumulation "
            f"{batch.gradient_accumulation_steps}"
        )

    def _method_line(self) -> str:
        parts = [f"{self.settings.peft_method} of rank {self.settings.lora_rank}"]
        if is_in_4bit(self.settings) and self.settings.peft_method != "qlora":
            parts.append("on a base model that is 4-bit already, as with qlora")
        if self.trainable_parameters is not None:
            parts.append(f"{self.trainable_parameters:,} trainable parameters")
        parts.append(dtype_name(self.resources.dtype))
        if self.settings.environment.in_float8:
            parts.append(self._float8_part())
        if self.settings.environment.deterministic:
            parts.append("deterministic")
        elif self.resources.on_gpus:
            parts.append("not deterministic")
        parts.append(f"ZeRO-{self.zero_stage}")
        if self.work is not None:
            parts.append(f"{self.num_recomputed} of {self.work.shape.num_layers} layers recomputed")
        if self.eager_reason is None:
            seconds = 15 if self.resources.on_gpus else 40
            parts.append(f"compiling the layer: about {seconds} s, kept for later runs")
        elif self.eager_reason:
            parts.append(f"layers not compiled: {self.eager_reason}")
        if self.max_tokens is not None:
            parts.append(f"at most {self.max_tokens:,} tokens in a pass")
        if self.keeps_dequantized:
            parts.append("4-bit weights kept unpacked")
        return ", ".join(parts)

    def _float8_part(self) -> str:
        if not is_in_float8(self.settings):
            return "BASE_WEIGHTS=fp8 without effect on 4-bit weights"
        emulated = "" if self.resources.on_gpus else " (emulated: slow, to try what it learns)"
        return f"frozen weights in float8{emulated}"

    def _memory_line(self) -> str:
        kind, available = self.resources.kind, self.resources.available
        free = f"of {show_bytes(available)} free"
        if self.resources.on_gpus:
            free += f", {show_bytes((1 - FILL) * available)} of it for the allocator's gaps"
        if self.peak is None:
            return f"memory is not estimated for this architecture {free}"
        parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in self._parts().items())
        return f"memory: about {show_bytes(self.peak)} at the peak of each {kind} {free} ({parts})"

    def _parts(self) -> dict[str, float]:
        """Return what the memory is for; nothing where it is not estimated."""
        if self.work is None:
            return {}
        found = estimate_memory(self.work)
        parts = {
            f"{'4-bit ' if self.work.in_4bit else ''}base model": found.base_model,
            "adapter": found.adapter,
            "activations": found.activations,
            "work space": found.work_space,
            "allocator's gaps": found.gaps,
            "libraries": self.resources.libraries,
        }
        return {name: size for name, size in parts.items() if size}


def is_in_4bit(settings: TrainSettings) -> bool:
    """Return whether the base model is held in 4-bit, as asked or because its files are."""
    config = read_config(Path(settings.base_model_dir))
    return settings.peft_method == "qlora" or is_bitsandbytes_4bit(config)


def is_in_float8(settings: TrainSettings) -> bool:
    """Return whether its linear layers are held in float8; those in 4-bit are left as they are."""
    return settings.environment.in_float8 and not is_in_4bit(settings)
