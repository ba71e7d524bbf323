"""Serving with CUDA graphs against plain calls, step by step, and against Transformers."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.client import GREEDY
from benchmarks.gpu.models import random_adapter, small_model
from benchmarks.gpu.stage import Stage
from src.model.precision import dtype_name
from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Finished, Request, Sequence, Token
from src.serving.grammar.json_grammar import JsonGrammars
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams

PROPERTIES = {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": PROPERTIES,
        "required": ["name"],
        "additionalProperties": False,
    }
)
SAMPLING = (
    GREEDY,
    {**GREEDY, "repetition_penalty": 1.15},
    {"seed": 3},
    {"seed": 4, "top_k": 40},
    {**GREEDY, "min_new_tokens": 20},
    {"seed": 5, "top_p": 0.8, "temperature": 1.0, "repetition_penalty": 1.0},
    {**GREEDY, "top_k": 5},
)
TOLERANCE = 0.15
"""Log-probability of a drawn token below the best one's: that of bfloat16 is about 0.06."""
MAX_STEPS = 2000


@dataclass
class Case:
    """A request that joins the others at a step, and what came of it."""

    step: int
    cancel_step: int | None
    sequence: Sequence
    events: list[Event] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, Token)]


Change = Callable[[Engine], None]


def run(stage: Stage) -> None:
    folder = small_model(stage)
    captured = stage.section(serve, stage, folder, "with graphs")
    if captured is None:
        return
    for name, change in (
        ("with plain calls", call_plainly),
        ("with graphs again", None),
        ("after a capture that failed", fail_one_capture),
    ):
        cases = stage.section(serve, stage, folder, name, change)
        if cases:
            compare(stage, name, captured, cases)
    stage.section(compare_with_transformers, stage, folder, captured)


def serve(stage: Stage, folder: Path, name: str, change: Change | None = None) -> list[Case]:
    """Serve all requests on this thread, so that every run takes the same steps."""
    engine = Engine(folder, dtype=dtype_name(stage.dtype), max_slots=8, max_adapters=4)
    try:
        if change is not None:
            change(engine)
        cases = make_cases(stage, engine)
        num_steps = take_steps(engine, cases)
        graphs = engine.scheduler._batch._graphs
        found = list(graphs._graphs.values()) if graphs else []
        captured = sum(not isinstance(graph, str) for graph in found)
        has_failure = change is fail_one_capture and stage.device.type == "cuda"
        stage.record(
            f"{name}: shapes captured",
            captured,
            f"of {len(found)}",
            is_right=found.count("refused") == has_failure and (captured > 0 or not has_failure),
            note=f"{num_steps} steps",
        )
        ends = [case.events[-1] for case in cases if case.events]
        errors = [end.error for end in ends if isinstance(end, Finished) and end.error]
        is_right = len(ends) == len(cases) and not errors
        stage.record(f"{name}: errors", len(errors), is_right=is_right, note=str(errors[:3]))
        return cases
    finally:
        engine.close()


def make_cases(stage: Stage, engine: Engine) -> list[Case]:
    """Return requests of many kinds, with long and short prompts, some of which are canceled."""
    rng, adapters = random.Random(7), [None, *make_adapters(engine)]
    grammars = JsonGrammars(engine.tokenizer, vocab_size=engine.vocab_size)
    new_tokens, lengths = (12, (1, 3, 8, 20)) if stage.is_tiny else (60, (1, 3, 17, 64, 130, 240))
    cases = []
    for number in range(10 if stage.is_tiny else 24):
        options: dict[str, Any] = {"ignores_end": number % 4 != 3}
        if number in (6, 17):
            options = {"grammar": grammars.start(SCHEMA)}
        elif number % 8 == 2:
            options["num_logprobs"] = 2
        sampling = {**SAMPLING[number % len(SAMPLING)], "max_new_tokens": new_tokens + number}
        adapter = adapters[number % 6 if number % 6 < 4 else 1]
        canceled = 6 * number + 25 if number % 7 == 5 else None
        cases.append((6 * number, canceled, rng.choice(lengths), sampling, adapter, options))
    last = cases[-1][0]
    for number, adapter in enumerate(adapters):
        options = {"ignores_end": True, "num_logprobs": 1}
        sampling = {**GREEDY, "max_new_tokens": new_tokens}
        cases.append(
            (last + 3 * number, None, 8 if stage.is_tiny else 40, sampling, adapter, options)
        )
    return [make_case(engine, rng, *case) for case in cases]


def make_adapters(engine: Engine) -> list[LoadedAdapter]:
    ranks = (8, 8, 32)
    return [
        random_adapter(engine.linear_shapes, rank=rank, seed=seed, dtype=engine.dtype)
        for seed, rank in enumerate(ranks, 1)
    ]


def make_case(
    engine: Engine,
    rng: random.Random,
    step: int,
    cancel_step: int | None,
    length: int,
    sampling: dict[str, Any],
    adapter: LoadedAdapter | None,
    options: dict[str, Any],
) -> Case:
    prompt_ids = [rng.randrange(3, engine.vocab_size) for _ in range(length)]
    events: list[Event] = []
    request = Request(
        prompt_ids, SamplingParams(**sampling), events.append, adapter=adapter, **options
    )
    room = engine.max_seq_len - length
    sequence = Sequence(request, max_tokens=min(sampling["max_new_tokens"], room))
    return Case(step, cancel_step, sequence, events)


@torch.inference_mode()
def take_steps(engine: Engine, cases: list[Case]) -> int:
    """Add and cancel requests at their steps, until all have ended; return the number of steps."""
    waiting = sorted(cases, key=lambda case: case.step)
    for step in range(MAX_STEPS):
        while waiting and waiting[0].step <= step:
            engine.scheduler.add(waiting.pop(0).sequence)
        for case in cases:
            if case.cancel_step is not None and step >= case.cancel_step:
                case.sequence.is_canceled = True
        if not waiting and engine.scheduler.is_idle:
            return step
        engine.scheduler.step()
    raise RuntimeError(f"requests have not ended after {MAX_STEPS} steps")


def call_plainly(engine: Engine) -> None:
    """Run every step without its graph, at the same shapes."""
    if graphs := engine.scheduler._batch._graphs:
        graphs.run = lambda shape, step: step()  # type: ignore[method-assign]


def fail_one_capture(engine: Engine) -> None:
    """Do in the first capture what cannot be captured."""
    batch = engine.scheduler._batch
    plain_step, failed = batch._step, []

    def step(num_rows: int, lengths: list[int]) -> torch.Tensor:
        logits = plain_step(num_rows, lengths)
        if logits.is_cuda and torch.cuda.is_current_stream_capturing() and not failed:
            failed.append(num_rows)
            logits.sum().item()
        return logits

    batch._step = step  # type: ignore[method-assign]


def compare(stage: Stage, name: str, cases: list[Case], others: list[Case]) -> None:
    """Record how many answers are the same tokens."""
    pairs = enumerate(zip(cases, others, strict=True))
    different = [number for number, (case, other) in pairs if case.ids != other.ids]
    stage.record(
        f"tokens {name}, equal answers",
        len(cases) - len(different),
        f"of {len(cases)}",
        is_right=not different,
        note=f"{sum(len(case.ids) for case in cases)} tokens; different: {different}",
    )


def compare_with_transformers(stage: Stage, folder: Path, cases: list[Case]) -> None:
    """Compare greedy tokens and log-probabilities with a model that the adapter is merged into."""
    for adapter in dict.fromkeys(case.sequence.request.adapter for case in cases):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", device_map={"": stage.device}
        )
        for name, module in adapter.modules.items() if adapter else ():
            update = module.lora_B.float() @ module.lora_A.float()
            model.get_submodule(name).weight.data += update.to(stage.device)
        asked = [case for case in cases if case.sequence.request.num_logprobs == 1]
        behind, difference = 0.0, 0.0
        for case in (case for case in asked if case.sequence.request.adapter is adapter):
            prompt, ids = case.sequence.request.prompt_ids, case.ids
            with torch.inference_mode():
                row = torch.tensor([[*prompt, *ids[:-1]]], device=stage.device)
                scores = model(row, use_cache=False).logits[0, len(prompt) - 1 :].log_softmax(-1)
            own = scores.gather(1, torch.tensor(ids, device=stage.device)[:, None])[:, 0]
            behind = max(behind, float((scores.max(-1).values - own).max()))
            told = torch.tensor([e.logprob for e in case.events if isinstance(e, Token)])
            difference = max(difference, float((told - own.cpu()).abs().max()))
        stage.record(
            f"greedy tokens against float32 Transformers, {adapter.key if adapter else 'bare'}",
            behind,
            "log-probability below the best",
            is_right=max(behind, difference) < TOLERANCE,
            note=f"log-probabilities differ by at most {difference:.4f}",
        )
        del model
        stage.release_memory()
