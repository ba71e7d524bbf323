"""vLLM's build for CPUs on a real model: WORK."""

import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.serving.trace.timing import print_best
from benchmarks.serving.trace.work import RealWork

if __name__ == "__main__":
    work = RealWork.load(Path(sys.argv[1]))
    options = {}
    if work.adapters:
        options = {"enable_lora": True, "max_loras": len(work.adapters), "max_lora_rank": 8}
    llm = LLM(
        work.base_model,
        dtype=work.dtype,
        max_model_len=2048,
        max_num_seqs=len(work.requests),
        enable_prefix_caching=False,
        **options,
    )
    prompts = [TokensPrompt(prompt_token_ids=asked.prompt) for asked in work.requests]
    settings = [
        SamplingParams(temperature=0, max_tokens=asked.num_tokens, ignore_eos=True)
        for asked in work.requests
    ]
    adapters = None
    if work.adapters:
        adapters = [
            LoRARequest(str(asked.adapter), asked.adapter + 1, work.adapters[asked.adapter])
            for asked in work.requests
        ]
    print_best(lambda: llm.generate(prompts, settings, lora_request=adapters, use_tqdm=False))
