"""What a run will do and what it will need, known before the base model is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.steps import StepPlan
from src.data.token_file import TokenDataset
from src.errors import UserError
from src.model.shape import ModelShape, read_shape
from src.settings import TrainSettings
from src.training.plan.memory import Workload, estimate_memory, fit

EFFICIENT_TOKENS = 8192
"""Below so many tokens in a pass, unpacking 4-bit weights takes a good part of the time."""

LIBRARIES = 520e6
"""Bytes that the libraries take of a process without a GPU."""
ALLOCATOR_GAPS = 1.3
"""The C library's allocator takes so much for activations of many sizes on a CPU."""
LATER_LIBRARIES = 130e6
"""The part of them that is loaded only with the model."""


@dataclass(frozen=True)
class Resources:
    """What one rank has to work with; bytes."""

    on_gpus: bool
    available: float | None
    """Free memory of a GPU, or of this machine for one of its processes; None if unknown."""
    libraries: float
    """What the libraries take of a process' memory before there is a model; 0 on GPUs."""
    has_bfloat16: bool

    @property
    def kind(self) -> str:
        return "GPU" if self.on_gpus else "CPU process"


@dataclass(frozen=True)
class TrainingPlan:
    """The decisions of a run, and the block that tells them."""

    settings: TrainSettings
    data: TokenDataset
    steps: StepPlan
    machine: Resources
    zero_stage: int
    work: Workload | None
    """None for an architecture whose memory is not estimated."""
    num_recomputed: int
    keeps_dequantized: bool
    max_tokens: int | None
    """Most tokens in one pass, where a micro-batch is split for memory."""

    @property
    def peak(self) -> float | None:
        """Estimated bytes of a rank at its peak."""
        return None if self.work is None else sum(self._parts(self.work).values())

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
        if self._unpacks_often:
            lines.append(
                "warning: qlora unpacks the base model in every pass, which is fast from about "
                f"{EFFICIENT_TOKENS:,} tokens in one: a larger micro_batch_size or pack_sequences "
                "would be faster"
            )
        return [line if line.startswith("warning") else f"plan: {line}" for line in lines]

    def _parts(self, work: Workload) -> dict[str, float]:
        """Return what the memory is for."""
        found = estimate_memory(work)
        gaps = 1.0 if self.machine.on_gpus else ALLOCATOR_GAPS
        parts = {
            "base model": found.base_model,
            "adapter": found.adapter,
            "activations": found.activations * gaps,
            "work space": found.work_space * gaps,
            "libraries": self.machine.libraries,
        }
        return {name: size for name, size in parts.items() if size}

    @property
    def _unpacks_often(self) -> bool:
        is_packed = self.settings.peft_method == "qlora" and not self.keeps_dequantized
        return (
            is_packed
            and self.work is not None
            and self.machine.on_gpus
            and self.work.num_tokens < EFFICIENT_TOKENS
        )

    def _data_line(self) -> str:
        counts, lengths = self.data.counts, self.data.lengths
        longest = int(lengths.argmax())
        line = self.data.source_line(int(self.data.offsets[longest]))
        return (
            f"{counts.examples:,} examples in {len(self.steps.sequences):,} sequences; "
            f"{counts.tokens:,} tokens, {counts.learned_tokens:,} of them learned; the longest "
            f"example has {lengths[longest]:,} ({line})"
        )

    def _steps_line(self) -> str:
        steps, batch = self.steps, self.steps.batch_sizes
        epochs = self.settings.num_train_epochs
        whole = steps.steps_per_epoch * epochs
        shortened = "" if steps.num_steps == whole else f", {whole:,} without max_steps"
        kind = "GPUs" if self.machine.on_gpus else "CPU processes"
        return (
            f"{steps.num_steps:,} steps ({epochs} epochs x {steps.steps_per_epoch:,}"
            f"{shortened}); train_batch_size {batch.global_batch_size} = {batch.world_size} {kind} "
            f"x micro-batch {batch.micro_batch_size} x accumulation "
            f"{batch.gradient_accumulation_steps}"
        )

    def _method_line(self) -> str:
        settings = self.settings
        parts = [f"{settings.peft_method} of rank {settings.lora_rank}"]
        if self.trainable_parameters is not None:
            parts.append(f"{self.trainable_parameters:,} trainable parameters")
        parts += ["bfloat16" if self.machine.has_bfloat16 else "float32"]
        parts.append(f"ZeRO-{self.zero_stage}")
        if self.work is not None:
            parts.append(f"{self.num_recomputed} of {self.work.shape.num_layers} layers recomputed")
        if self.max_tokens is not None:
            parts.append(f"at most {self.max_tokens:,} tokens in a pass")
        if self.keeps_dequantized:
            parts.append("4-bit weights kept unpacked")
        return ", ".join(parts)

    def _memory_line(self) -> str:
        free = "" if self.machine.available is None else f" of {_gb(self.machine.available)} free"
        if self.work is None:
            return f"memory is not estimated for this architecture{free}"
        parts = self._parts(self.work)
        named = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items())
        total = sum(parts.values())
        return f"memory: about {_gb(total)} at the peak of each {self.machine.kind}{free} ({named})"


def peak_line(plan: TrainingPlan, measured: float) -> str:
    """Return what a rank held at most, beside what was planned."""
    planned = "" if plan.peak is None else f", {_gb(plan.peak)} planned"
    return f"memory: {_gb(measured)} at the peak of a {plan.machine.kind}{planned}"


def make_plan(
    settings: TrainSettings,
    data: TokenDataset,
    steps: StepPlan,
    machine: Resources,
    *,
    zero_stage: int | None = None,
) -> TrainingPlan:
    """Decide how a run uses its memory; without a `zero_stage` that is asked for, choose it.

    Raises UserError if the base model alone is larger than the memory of its device.
    """
    folder = Path(settings.base_model_dir)
    shape = read_shape(folder)
    if shape is None:
        stage = zero_stage or _stage_by_size(folder, settings, machine)
        # Without an estimate a GPU gets the careful way; more layers than there are is all.
        recomputed = 2**31 if machine.on_gpus else 0
        return TrainingPlan(settings, data, steps, machine, stage, None, recomputed, False, None)
    work = _workload(shape, settings, data, steps, machine)
    stage = zero_stage or _choose_stage(work, machine)
    work = replace(work, shares_weights=stage == 3)
    max_tokens = None
    if work.shares_weights:
        work = replace(work, num_recomputed=shape.num_layers)
    elif machine.available is not None:
        base_model = estimate_memory(work).base_model
        if base_model > machine.available:
            raise UserError(
                f"the base model takes {_gb(base_model)}, and a {machine.kind} has "
                f"{_gb(machine.available)} of free memory; expected peft_method=qlora, a smaller "
                "base model or more memory"
            )
        whole, work = work, fit(work, machine.available)
        max_tokens = work.num_tokens if work.num_tokens < whole.num_tokens else None
    return TrainingPlan(
        settings,
        data,
        steps,
        machine,
        stage,
        work,
        work.num_recomputed,
        work.keeps_dequantized,
        max_tokens,
    )


def _workload(
    shape: ModelShape,
    settings: TrainSettings,
    data: TokenDataset,
    steps: StepPlan,
    machine: Resources,
) -> Workload:
    spans = [span for sequence in steps.longest_micro_batch() for span in sequence]
    weighs_prompts = settings.prompt_loss_weight > 0
    return Workload(
        shape=shape,
        element_bytes=2 if machine.has_bfloat16 else 4,
        in_4bit=settings.peft_method == "qlora",
        target_modules=settings.lora_target_modules,
        lora_rank=settings.lora_rank,
        has_dropout=settings.lora_dropout > 0,
        num_tokens=sum(map(len, spans)),
        num_target_tokens=sum(
            int(np.count_nonzero(data.target_mask(span, with_prompts=weighs_prompts)))
            for span in spans
        ),
        longest_example=max(map(len, spans)),
        world_size=steps.batch_sizes.world_size,
        on_gpu=machine.on_gpus,
    )


def _choose_stage(work: Workload, machine: Resources) -> int:
    """Return 3 where several GPUs can share what one cannot hold, else 2."""
    if machine.available is None or not machine.on_gpus or work.in_4bit or work.world_size == 1:
        return 2
    least = replace(work, num_recomputed=work.shape.num_layers)
    return 3 if estimate_memory(least).total > machine.available else 2


def _stage_by_size(folder: Path, settings: TrainSettings, machine: Resources) -> int:
    if machine.available is None or not machine.on_gpus or settings.peft_method == "qlora":
        return 2
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return 3 if size > 0.8 * machine.available else 2


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
