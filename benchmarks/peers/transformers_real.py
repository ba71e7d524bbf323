"""Transformers' generate, its continuous batching, or PEFT, on a real model: WORK, and which."""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.serving.trace.timing import print_best
from benchmarks.serving.trace.work import RealWork

work, way = RealWork.load(Path(sys.argv[1])), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(work.base_model, dtype=work.dtype).eval()
options = {}
if work.adapters:
    used = sorted({asked.adapter for asked in work.requests})
    peft = PeftModel.from_pretrained(model, work.adapters[used[0]], adapter_name=str(used[0]))
    for number in used[1:]:
        peft.load_adapter(work.adapters[number], adapter_name=str(number))
    model = peft.to(getattr(torch, work.dtype)).eval()
    if len(used) > 1:
        options["adapter_names"] = [str(asked.adapter) for asked in work.requests]


@torch.inference_mode()
def padded():
    """All in one batch, whose steps go on for the longest answer."""
    longest = max(len(asked.prompt) for asked in work.requests)
    missing = [longest - len(asked.prompt) for asked in work.requests]
    pairs = list(zip(missing, work.requests, strict=True))
    most = max(asked.num_tokens for asked in work.requests)
    model.generate(
        input_ids=torch.tensor([[0] * num + asked.prompt for num, asked in pairs]),
        attention_mask=torch.tensor([[0] * num + [1] * len(a.prompt) for num, a in pairs]),
        max_new_tokens=most,
        min_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
        **options,
    )


def continuous():
    """Continuous batching, with a cache no larger than the work: a CPU reads all of it."""
    num_tokens = sum(len(asked.prompt) + asked.num_tokens for asked in work.requests)
    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=num_tokens // 128 + 2 * len(work.requests),
            page_size=128,
            max_batch_tokens=256,
            max_memory_percent=0.5,
        ),
        warmup=False,
    ) as manager:
        for asked in work.requests:
            manager.add_request(asked.prompt, max_new_tokens=asked.num_tokens)
        num_left = len(work.requests)
        while num_left:
            result = manager.get_result(timeout=1)
            num_left -= result is not None and result.is_finished()


print_best({"padded": padded, "continuous": continuous}[way])
