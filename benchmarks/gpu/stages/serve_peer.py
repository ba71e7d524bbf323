"""Transformers' generate on the same 7B model, and PEFT's with an adapter."""

import random
import statistics
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.gpu.models import large_model
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import seconds_of

DEFAULT = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.15}


def run(stage: Stage) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(
        large_model(stage),
        dtype=stage.dtype,
        attn_implementation="sdpa",
        device_map={"": stage.device},
    ).eval()
    stage.section(measure, stage, model, "1 row", 1)
    stage.section(measure, stage, model, "1 row, default sampling", 1, DEFAULT)
    stage.section(measure, stage, model, "8 rows", 8)
    for length in (4, 12) if stage.is_tiny else (32, 512):
        stage.section(measure_first_token, stage, model, length)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    stage.section(measure, stage, adapted, "1 row, one adapter", 1)


@torch.inference_mode()
def generate(stage: Stage, model: Any, rows: int, length: int, tokens: int, **options: Any) -> None:
    rng = random.Random(length)
    ids = [[rng.randrange(3, 250) for _ in range(length)] for _ in range(rows)]
    prompts = torch.tensor(ids, device=stage.device)
    model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
        **{"do_sample": False, **options},
    )


def measure(
    stage: Stage, model: Any, name: str, rows: int, options: dict[str, Any] | None = None
) -> None:
    """Record tokens a second: a long answer's time less a short one's."""
    length, tokens = (8, 6) if stage.is_tiny else (100, 48)

    def seconds(new_tokens: int) -> float:
        return min(
            seconds_of(lambda: generate(stage, model, rows, length, new_tokens, **(options or {})))
            for _ in range(2)
        )

    seconds(2)
    step = (seconds(tokens) - seconds(2)) / (tokens - 2)
    stage.record(
        f"generate, {name}, context {length}", rows / step, "tokens/s", note=f"{1e3 * step:.1f} ms"
    )


def measure_first_token(stage: Stage, model: Any, length: int) -> None:
    seconds = [seconds_of(lambda: generate(stage, model, 1, length, 1)) for _ in range(10)]
    milliseconds = 1e3 * statistics.median(seconds)
    stage.record(f"generate, first token, {length} tokens", milliseconds, "ms")
