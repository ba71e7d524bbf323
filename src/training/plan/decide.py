"""How a run uses its memory, decided before the base model is loaded."""

from dataclasses import replace
from pathlib import Path

import torch

from src.data.steps import StepPlan
from src.data.token_file import TokenDataset
from src.model.core.compiled import eager_reason
from src.model.shape import ModelShape
from src.model.sizes import read_shape
from src.settings import TrainSettings
from src.training.plan.fit import fit
from src.training.plan.memory import Workload, attention_bytes, estimate_memory
from src.training.plan.plan import TrainingPlan, is_in_4bit, is_in_float8
from src.training.plan.resources import Resources
from src.training.plan.room import check_float8, check_rank, check_room, check_sharing

PRODUCTS = 17e6
"""Bytes that oneDNN's compiled products of 16 bits take with each new number of tokens."""
NUM_PRODUCTS = 20
"""Numbers of tokens that it keeps them of; what older ones took is not all given back."""
LONG_RUN = 1e13
"""Tokens of a rank times parameters: a CPU gains more by compiled layers than compiling takes."""


def make_plan(
    settings: TrainSettings,
    data: TokenDataset,
    steps: StepPlan,
    resources: Resources,
    *,
    zero_stage: int | None = None,
) -> TrainingPlan:
    """Decide how a run uses its memory; without a `zero_stage` that is asked for, choose it.

    Raises UserError if a device has no room for it, or if the adapter is too wide to be served.
    """
    if not resources.on_gpus and resources.dtype.itemsize == 2:
        products = PRODUCTS * min(steps.num_steps, NUM_PRODUCTS)
        resources = replace(resources, libraries=resources.libraries + products)
    shape = read_shape(Path(settings.base_model_dir))
    work = None if shape is None else _workload(shape, settings, data, steps, resources)
    stage = zero_stage or _choose_stage(work, settings, steps, resources)
    if is_in_float8(settings):
        check_float8(shape, stage, resources.device)
    if work is None:
        return TrainingPlan(settings, data, steps, resources, stage, None)
    if stage == 3:
        check_sharing(work.shape)
        # A layer's weights are there only while transformers runs it.
        work = replace(work, shares_weights=True, num_recomputed=work.shape.num_layers)
        check_room(work, resources)
        return TrainingPlan(settings, data, steps, resources, stage, work)
    check_rank(work, resources)
    fitted = fit(work, resources.room)
    check_room(fitted, resources)
    max_tokens = fitted.num_tokens if fitted.num_tokens < work.num_tokens else None
    asked = settings.environment.compile
    if asked is None and not resources.on_gpus:
        asked = _pays_to_compile(work, data, steps, resources) or None
    reason = eager_reason(asked, on_gpu=resources.on_gpus)
    return TrainingPlan(settings, data, steps, resources, stage, fitted, max_tokens, reason)


def _workload(
    shape: ModelShape,
    settings: TrainSettings,
    data: TokenDataset,
    steps: StepPlan,
    resources: Resources,
) -> Workload:
    spans = [span for sequence in steps.longest_micro_batch() for span in sequence]
    lengths = [len(span) for span in spans]
    weighs_prompts = settings.prompt_loss_weight > 0
    targets = (data.target_mask(span, with_prompts=weighs_prompts) for span in spans)
    work = Workload(
        shape=shape,
        element_bytes=resources.dtype.itemsize,
        in_float16=resources.dtype == torch.float16,
        in_4bit=is_in_4bit(settings),
        target_modules=settings.lora_target_modules,
        lora_rank=settings.lora_rank,
        has_dropout=settings.lora_dropout > 0,
        num_tokens=sum(lengths),
        num_target_tokens=sum(int(mask.sum()) for mask in targets),
        longest_example=max(lengths),
        world_size=steps.batch_sizes.world_size,
        on_gpu=resources.on_gpus,
    )
    return replace(work, attention_bytes=attention_bytes(work, lengths))


def _pays_to_compile(
    work: Workload, data: TokenDataset, steps: StepPlan, resources: Resources
) -> bool:
    """Return whether a long run on a CPU is mostly elementwise steps: tiles are that fast."""
    if resources.dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported():
        return False
    num_tokens = data.counts.tokens * steps.num_steps / steps.steps_per_epoch
    num_parameters = work.shape.linear_parameters + work.shape.other_parameters
    return num_tokens / steps.batch_sizes.world_size * num_parameters >= LONG_RUN


def _choose_stage(
    work: Workload | None, settings: TrainSettings, steps: StepPlan, resources: Resources
) -> int:
    """Return 3 where several GPUs can share what one cannot hold, else 2."""
    if not resources.on_gpus or is_in_4bit(settings) or steps.batch_sizes.world_size == 1:
        return 2
    if work is not None and work.shape.delta is not None:
        return 2
    if work is not None:
        return 3 if estimate_memory(fit(work, resources.room)).total > resources.room else 2
    files = Path(settings.base_model_dir).glob("*.safetensors")
    return 3 if sum(path.stat().st_size for path in files) > 0.8 * resources.room else 2
