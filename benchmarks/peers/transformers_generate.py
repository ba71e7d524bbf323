"""Peers of the serving benchmark: Transformers alone, its continuous batching, and PEFT."""

import json
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.serving.ours import FIRST_TOKEN_LENGTHS, NUM_FIRST_TOKENS, measure
from benchmarks.serving.work import PROMPT_TOKENS, ServeWork

work, result = ServeWork.load(Path(sys.argv[1])), Path(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(work.base_model, dtype=torch.float32).eval()
exact = {
    "max_new_tokens": work.num_tokens,
    "min_new_tokens": work.num_tokens,
    "do_sample": False,
    "pad_token_id": 0,
}
record = {}


@torch.inference_mode()
def generate(model, prompts, **options):
    output = model.generate(input_ids=torch.tensor(prompts), **{**exact, **options})
    return output[:, len(prompts[0]) :].tolist()


def one_by_one(model, prompts):
    return [generate(model, [prompt])[0] for prompt in prompts]


def continuous(prompts):
    # It has no min_new_tokens: an end that never comes does the same.
    config = GenerationConfig(
        max_new_tokens=work.num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    outputs = model.generate_batch(
        inputs=prompts,
        generation_config=config,
        # A cache no larger than the work: on a CPU it reads all of it in every step.
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=2 * len(prompts), page_size=128, max_batch_tokens=256, max_memory_percent=0.5
        ),
        warmup=False,
    )
    by_id = sorted(outputs.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
    return [list(output.generated_tokens) for _, output in by_id]


def add(way, num_clients, num_adapters, run):
    prompts = work.prompts(num_clients, PROMPT_TOKENS, seed=num_clients)
    name = f"{num_clients} clients, {num_adapters} adapters"
    try:
        record.setdefault(way, {})[name] = measure(
            lambda: run(prompts), num_clients * work.num_tokens
        )
    except Exception as error:
        print(f"{way}, {name}: {error}", file=sys.stderr)


add("transformers.generate", 1, 0, lambda prompts: one_by_one(model, prompts))
add("transformers.generate", 8, 0, lambda prompts: one_by_one(model, prompts))
for num_clients in (8, 32):
    add(
        "transformers.generate, one batch", num_clients, 0, lambda prompts: generate(model, prompts)
    )
reciter = AutoModelForCausalLM.from_pretrained(work.reciter, dtype=torch.float32).eval()
for way, options in (
    ("transformers.generate", {}),
    ("transformers.generate, prompt lookup", {"prompt_lookup_num_tokens": 10}),
):
    for load, prompt in work.quoting.items():
        record.setdefault(way, {})[load] = measure(
            lambda prompt=prompt, options=options: generate(reciter, [prompt], **options),
            work.num_tokens,
        )
record["first token"] = {}
for length in FIRST_TOKEN_LENGTHS:
    seconds = []
    for prompt in work.prompts(NUM_FIRST_TOKENS, length, seed=length):
        started = time.monotonic()
        generate(model, [prompt], max_new_tokens=1, min_new_tokens=1)
        seconds.append(time.monotonic() - started)
    record["first token"][length] = seconds
for num_clients in (1, 8, 32):
    add("transformers, continuous batching", num_clients, 0, continuous)

names = [f"adapter-{number}" for number in range(len(work.adapters))]
model = AutoModelForCausalLM.from_pretrained(work.base_model, dtype=torch.float32).eval()
peft = PeftModel.from_pretrained(model, work.adapters[0], adapter_name=names[0]).eval()
switches = []
for name, path in zip(names[1:], work.adapters[1:], strict=True):
    started = time.monotonic()
    peft.load_adapter(path, adapter_name=name)
    peft.set_adapter(name)
    generate(peft, work.prompts(1, PROMPT_TOKENS, seed=1), max_new_tokens=1, min_new_tokens=1)
    switches.append(time.monotonic() - started)
record["adapter"] = {"PEFT, on disk": switches}
peft.set_adapter(names[0])
add("PEFT", 1, 1, lambda prompts: generate(peft, prompts))


def each_its_own(prompts):
    found = []
    for prompt, name in zip(prompts, names * len(prompts), strict=False):
        peft.set_adapter(name)
        found += generate(peft, [prompt])
    return found


add("PEFT", 8, 8, each_its_own)
for num_clients in (8, 32):
    add(
        "PEFT, mixed batch", num_clients, 8,
        lambda prompts: generate(peft, prompts, adapter_names=(names * 4)[: len(prompts)]),
    )  # fmt: skip
result.write_text(json.dumps(record))
