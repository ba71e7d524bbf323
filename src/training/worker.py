"""One rank of a training run, from settings.json to the saved adapter.

Started by DeepSpeed's launcher; `python -m src.training.worker settings.json` runs one rank alone.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.settings import TrainSettings

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")


def main(settings_path: Path) -> None:
    """Run this rank; a failure is left as a file for the supervisor and ends with exit code 1."""
    _end_with_parent()
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    run_dir = settings_path.parent
    status = _Status(run_dir, rank=int(os.environ["RANK"]))
    try:
        _run(TrainSettings.load(settings_path), run_dir, status)
    except BaseException as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        status.fail(error)
        sys.stdout.flush()
        sys.stderr.flush()
        # Other ranks may wait in a collective; leaving at once lets the launcher end them.
        os._exit(1)


class _Status:
    """Tells the supervisor, through files, which process a rank is and how far it has come."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        self.rank, self.step = rank, 0
        self.folder = run_dir / "ranks"
        self.folder.mkdir(exist_ok=True)
        self.note_step(0)

    def note_step(self, step: int) -> None:
        self.step = step
        path = self.folder / f"{self.rank}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": os.getpid(), "step": step}))
        temporary.rename(path)

    def fail(self, error: BaseException) -> None:
        record = {
            "time": time.time(),
            "step": self.step,
            "is_user_error": isinstance(error, UserError),
            "error": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}",
        }
        temporary = self.folder / f"{self.rank}.error.tmp"
        temporary.write_text(json.dumps(record))
        temporary.rename(self.folder / f"{self.rank}.error.json")


def _end_with_parent() -> None:
    """Have the kernel end this rank when the launcher dies, so that none is left on a GPU."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _run(settings: TrainSettings, run_dir: Path, status: _Status) -> None:
    import torch
    import torch.distributed as dist

    from src.base_models import KNOWN_MODELS
    from src.data.batch_plan import plan_batches
    from src.data.dataset import TokenDataset
    from src.data.prepare import build_sequences, prepare_data
    from src.model.base_model import context_length, load_base_model, training_dtype
    from src.text.formats import build_train_speech
    from src.text.tokenizer import Tokenizer
    from src.training.loop import Run, train, try_longest
    from src.training.progress import Progress

    rank, local_rank = status.rank, int(os.environ["LOCAL_RANK"])
    world_size = int(os.environ["WORLD_SIZE"])
    say = _say if rank == 0 else _say_nothing
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    deepspeed = _start_deepspeed(device)

    # Data: rank 0 prepares it, every rank maps it.
    base_dir = Path(settings.base_model_dir)
    known = KNOWN_MODELS.get(settings.base_model)
    context = context_length(base_dir, known=known.context if known else None)
    tokenizer = Tokenizer(base_dir)
    speech = build_train_speech(
        settings.base_model,
        tokenizer,
        template=settings.prompt_template,
        system_prompt=settings.system_prompt,
    )
    data_dir = run_dir / "data"
    if rank == 0:
        prepare_data(settings, tokenizer, speech, context=context, folder=data_dir, say=say)
    dist.barrier()
    train_data = TokenDataset(data_dir / "train")
    validation_data = TokenDataset(data_dir / "validation")
    sequences = build_sequences(train_data, settings, context=context)
    plan = plan_batches(
        train_batch_size=settings.train_batch_size,
        micro_batch_size=settings.micro_batch_size,
        num_devices=world_size,
    )
    assert plan.world_size == world_size, "the supervisor starts as many ranks as divide the batch"

    # Model: base model, adapter, DeepSpeed's engine.
    dtype = training_dtype(device)
    zero_stage = _zero_stage(settings, base_dir, device)
    deepspeed_config = _deepspeed_config(plan, zero_stage, dtype)
    keep_for_zero3 = _announce_zero3(deepspeed_config) if zero_stage == 3 else None
    model = load_base_model(
        base_dir,
        dtype=dtype,
        device=None if zero_stage == 3 else device,
        in_4bit=settings.peft_method == "qlora",
    )
    del keep_for_zero3
    loss_module, target_modules, num_trainable = _attach(model, settings, device)
    run = Run(
        settings=settings,
        plan=plan,
        train_data=train_data,
        validation_data=validation_data,
        sequences=sequences,
        rank=rank,
        device=device,
        sample=_sampler(settings, speech, tokenizer, model, device),
        note_step=status.note_step,
    )
    say(
        f"plan: {len(train_data):,} examples in {len(sequences):,} sequences, "
        f"{train_data.counts.tokens:,} tokens of which {train_data.counts.learned_tokens:,} are "
        f"learned; {run.num_steps:,} steps over {settings.num_train_epochs} epochs; "
        f"train_batch_size {plan.global_batch_size} = {plan.world_size} "
        f"{'GPUs' if device.type == 'cuda' else 'CPU processes'} x micro-batch "
        f"{plan.micro_batch_size} x accumulation {plan.gradient_accumulation_steps}; "
        f"{settings.peft_method}, {num_trainable:,} trainable parameters, "
        f"{str(dtype).removeprefix('torch.')}, ZeRO-{zero_stage}"
    )
    if zero_stage < 3:
        try_longest(loss_module, run)
    torch.manual_seed(settings.seed + rank)
    model_engine = _build_engine(deepspeed, loss_module, deepspeed_config, settings, device)

    # Training, and what comes back.
    metrics_path = run_dir / "metrics.jsonl" if rank == 0 else None
    progress = Progress(metrics_path, num_steps=run.num_steps)
    losses = train(model_engine, run, progress)
    tensors = _gather_adapter(deepspeed, model, zero_stage)
    if rank == 0:
        _save(
            settings,
            run_dir,
            tensors,
            speech=speech,
            target_modules=target_modules,
            resolved={
                "world_size": plan.world_size,
                "micro_batch_size": plan.micro_batch_size,
                "gradient_accumulation_steps": plan.gradient_accumulation_steps,
                "num_steps": run.num_steps,
                "context": context,
                "zero_stage": zero_stage,
                "dtype": str(dtype).removeprefix("torch."),
            },
            counts={
                "train": asdict(train_data.counts),
                "validation": asdict(validation_data.counts),
                "sequences": len(sequences),
            },
            losses={"train_loss": losses.train, "eval_loss": losses.validation},
        )
    dist.barrier()
    dist.destroy_process_group()


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    pass


def _start_deepspeed(device: Any) -> Any:
    import logging

    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # This op only speeds up collectives on CPU; it needs a compiler and leaks shared memory.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _zero_stage(settings: TrainSettings, base_dir: Path, device: Any) -> int:
    """Return the ZeRO stage, from the environment if it names one (for tests)."""
    import torch

    from src.training.deepspeed_config import choose_zero_stage

    if asked := os.environ.get("ZERO_STAGE"):
        return int(asked)
    return choose_zero_stage(
        base_bytes=sum(path.stat().st_size for path in base_dir.glob("*.safetensors")),
        device_bytes=torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None,
        in_4bit=settings.peft_method == "qlora",
    )


def _deepspeed_config(plan: Any, zero_stage: int, dtype: Any) -> dict[str, Any]:
    import torch

    from src.training.deepspeed_config import build_deepspeed_config

    return build_deepspeed_config(plan, zero_stage=zero_stage, bfloat16=dtype == torch.bfloat16)


def _announce_zero3(config: dict[str, Any]) -> Any:
    """Have transformers load each rank's share of the base model only."""
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def _attach(model: Any, settings: TrainSettings, device: Any) -> tuple[Any, list[str], int]:
    from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
    from src.model.loss import SummedLoss

    target_modules = resolve_target_modules(model, settings.lora_target_modules)
    attach_adapter(
        model,
        target_modules=target_modules,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        seed=settings.seed,
    )
    if device.type == "cuda":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    num_trainable = sum(
        getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in adapter_parameters(model)
    )
    return SummedLoss(model), target_modules, num_trainable


def _build_engine(
    deepspeed: Any, loss_module: Any, config: dict[str, Any], settings: TrainSettings, device: Any
) -> Any:
    import torch

    parameters = [p for p in loss_module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=0.0, fused=device.type == "cuda"
    )
    engine, *_ = deepspeed.initialize(
        model=loss_module, optimizer=optimizer, model_parameters=parameters, config=config
    )
    return engine


def _sampler(
    settings: TrainSettings, speech: Any, tokenizer: Any, model: Any, device: Any
) -> Callable[[], str | None]:
    """Return what generates the reply to the validation prompt, greedily."""
    if settings.validation_prompt is None or not settings.run_validation:
        return lambda: None
    import torch

    prompt = settings.validation_prompt
    ids = tokenizer.encode_pieces(speech.prompt_format.pieces(speech.of_prompt(prompt)))
    input_ids = torch.tensor([ids], device=device)

    def sample() -> str:
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=128,
            use_cache=True,
            eos_token_id=sorted(tokenizer.end_ids),
            pad_token_id=tokenizer.eos_id,
        )[0].tolist()
        reply = tokenizer.decode(output)[len(tokenizer.decode(ids)) :]
        return reply.removeprefix(speech.prompt_format.answer_prefix)

    return sample


def _gather_adapter(deepspeed: Any, model: Any, zero_stage: int) -> dict[str, Any]:
    """Return the whole adapter on the CPU; under ZeRO-3 every rank takes part."""
    from contextlib import nullcontext

    from src.model.adapter import adapter_parameters

    named = list(adapter_parameters(model))
    parameters = [parameter for _, parameter in named]
    gather = deepspeed.zero.GatheredParameters(parameters) if zero_stage == 3 else nullcontext()
    with gather:
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in named}


def _save(
    settings: TrainSettings,
    run_dir: Path,
    tensors: dict[str, Any],
    *,
    speech: Any,
    target_modules: list[str],
    resolved: dict[str, Any],
    counts: dict[str, Any],
    losses: dict[str, Any],
) -> None:
    from src.model.adapter import save_adapter
    from src.training.report import write_report

    base_model = Path(settings.base_model).name if Path(settings.base_model).exists() else settings.base_model
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
    hidden = {"base_model_dir", "train_data", "validation_data", "base_model", "base_model_revision"}
    asked = {name: value for name, value in asdict(settings).items() if name not in hidden}
    manifest = {
        "format_version": 1,
        "base_model": base_model,
        "base_model_revision": settings.base_model_revision,
        "prompt_template": speech.template,
        "system_prompt": speech.system_prompt or settings.system_prompt,
        "settings": {**asked, **resolved, "lora_target_modules": target_modules},
        "data": counts,
        "versions": {name: version(name) for name in LIBRARIES},
        **losses,
    }
    (folder / "training.json").write_text(json.dumps(manifest, indent=2))
    (run_dir / "metrics.jsonl").rename(folder / "metrics.jsonl")
    write_report(folder / "report.html", manifest, folder / "metrics.jsonl")
    folder.rename(run_dir / "output")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
