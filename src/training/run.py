"""One training from its inputs to the weights archive."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.data.examples import ExampleFile
from src.data.steps import choose_batch_sizes
from src.errors import UserError
from src.files.printable import printable
from src.files.scratch import LastFolder, remove_abandoned, scratch_folder
from src.settings import TrainSettings
from src.training.checkpoint.run_identity import check_same_run, describe_run, run_folder
from src.training.checkpoint.store import newest_checkpoint, read_checkpoint
from src.training.plan.resources import count_devices, foresee_resources
from src.training.supervise.hosts import Hosts, find_hosts
from src.training.supervise.supervisor import run_workers
from src.training.switches import Switches, read_switches
from src.weights.archive.archive import write_archive
from src.weights.base_model.base_model import find_base_model

RUN_PREFIX = "training-"
ARCHIVE_PREFIX = "weights-"
RecordMetric = Callable[..., None]
_archive_folder = LastFolder(ARCHIVE_PREFIX)


def run_training(inputs: Mapping[str, Any], *, record_metric: RecordMetric) -> Path:
    """Check everything that can be checked, train, and return the archive of the adapter.

    The archive stays until the next training of this process.
    """
    for prefix in (RUN_PREFIX, ARCHIVE_PREFIX):
        remove_abandoned(prefix)
    switches = read_switches(os.environ)
    settings = _with_checkpoints(_gather_settings(inputs), os.environ)
    hosts = find_hosts(os.environ)
    num_processes, on_gpus = _count_processes(settings, hosts, switches)
    shared_folder = None if hosts is None else hosts.shared_folder
    with scratch_folder(RUN_PREFIX, shared_folder) as run_dir:
        output = run_workers(
            settings,
            run_dir,
            num_processes=num_processes,
            on_gpus=on_gpus,
            on_metric=lambda record: _record(record, record_metric),
            hosts=hosts,
        )
        # The archive outlives the run's folder: Cog reads it after this function has returned.
        archive = _archive_folder.renew() / "weights.tar"
        write_archive(output, archive)
    return archive


def _count_processes(
    settings: TrainSettings, hosts: Hosts | None, switches: Switches
) -> tuple[int, bool]:
    """Return how many processes train together, and whether on GPUs."""
    num_devices, on_gpus = count_devices(switches.num_processes)
    if hosts is not None:
        num_devices = hosts.num_processes
    plan = choose_batch_sizes(
        train_batch_size=settings.train_batch_size,
        micro_batch_size=settings.micro_batch_size,
        num_devices=num_devices,
    )
    kind = "GPUs" if on_gpus else "CPU processes"
    if plan.world_size < num_devices and hosts is not None:
        raise UserError(
            f"train_batch_size: expected a multiple of {num_devices}, the {kind} in the hostfile; "
            f"found {settings.train_batch_size}"
        )
    if plan.world_size < num_devices:
        print(
            f"train_batch_size {settings.train_batch_size} cannot be split over {num_devices} "
            f"{kind}: {plan.world_size} are used",
            flush=True,
        )
    return plan.world_size, on_gpus


def plan_training(inputs: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell what `run_training` would do; nothing is trained."""
    from src.chat.prompt_encoder import open_prompt_encoder
    from src.data.prepare import build_step_plan, open_datasets, prepare_data
    from src.training.plan.disk import check_disks
    from src.training.plan.plan import make_plan

    switches = read_switches(os.environ)
    settings = _with_checkpoints(_gather_settings(inputs, with_weights=False), os.environ)
    hosts = find_hosts(os.environ)
    num_devices, on_gpus = _count_processes(settings, hosts, switches)
    num_local = num_devices if hosts is None else hosts.num_local
    encoder = open_prompt_encoder(settings)
    tokenizer, chat_format, max_seq_len = (
        encoder.tokenizer,
        encoder.chat_format,
        encoder.max_seq_len,
    )
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        prepare_data(
            settings,
            tokenizer,
            chat_format,
            max_seq_len=max_seq_len,
            folder=Path(folder),
            log=lines.append,
        )
        data, _ = open_datasets(Path(folder))
        step_plan = build_step_plan(
            data, settings, max_seq_len=max_seq_len, num_devices=num_devices
        )
        resources = foresee_resources(
            on_gpus=on_gpus, num_processes=num_local, limit=switches.device_memory
        )
        plan = make_plan(settings, data, step_plan, resources, zero_stage=switches.zero_stage)
        return [*lines, *plan.lines(), check_disks(plan, Path(folder))]


def _with_checkpoints(settings: TrainSettings, environ: Mapping[str, str]) -> TrainSettings:
    """Return the settings with the places of checkpoints, as `CHECKPOINT_DIR` gives them.

    Raises UserError for a folder that cannot be written to, and for a checkpoint that is not there,
    corrupt, or of another run.
    """
    name = environ.get("CHECKPOINT_DIR", "").strip()
    if not name:
        if settings.resume_from or settings.save_on_cancel:
            asked = "resume_from" if settings.resume_from else "save_on_cancel"
            raise UserError(f"{asked}: the server has no CHECKPOINT_DIR to keep checkpoints in")
        return settings
    root, run = Path(name).resolve(), describe_run(settings)
    _check_writable(root)
    folder = run_folder(root, run)
    checkpoint = None
    if settings.resume_from == "auto":
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            print("resume_from: there is no checkpoint of this run; it starts anew", flush=True)
    elif settings.resume_from:
        asked_folder = (root / settings.resume_from).resolve()
        if not asked_folder.is_relative_to(root):
            raise UserError("resume_from: expected auto or a folder below CHECKPOINT_DIR")
        checkpoint = read_checkpoint(asked_folder)
        check_same_run(checkpoint, run)
    return replace(
        settings,
        checkpoint_folder=str(folder),
        resume_from=None if checkpoint is None else str(checkpoint.folder),
    )


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"CHECKPOINT_DIR: expected a folder that can be written to, found {str(root)!r} "
            f"({error.strerror})"
        ) from None


def _gather_settings(inputs: Mapping[str, Any], *, with_weights: bool = True) -> TrainSettings:
    """Check everything that can be checked without the model, and return the settings."""
    files = {
        name: _local_file(inputs.get(name), name) for name in ("train_data", "validation_data")
    }
    assert files["train_data"] is not None
    for path in files.values():
        if path is not None:
            ExampleFile(path, _shown_name(path)).check()
    base_model = find_base_model(os.environ, with_weights=with_weights)
    options = {name: value for name, value in inputs.items() if name not in files}
    return TrainSettings(
        base_model=base_model.name,
        base_model_dir=str(base_model.folder),
        base_model_revision=base_model.revision,
        train_data=str(files["train_data"]),
        train_data_name=_shown_name(files["train_data"]),
        validation_data=None if files["validation_data"] is None else str(files["validation_data"]),
        validation_data_name=files["validation_data"] and _shown_name(files["validation_data"]),
        **_as_declared(options),
    )


def _local_file(value: Any, name: str) -> Path | None:
    if value is None:
        return None
    # Cog turns a URL into a file; any other text would name a file of the server.
    if isinstance(value, str):
        raise UserError(
            f"{name}: expected a file or an http(s) address, found the text {value[:80]!r}"
        )
    if not Path(value).is_file():
        raise UserError(f"{name}: there is no file {Path(value).name}")
    return Path(value)


def _shown_name(path: Path) -> str:
    """Return the name that the user gave the file: Cog's copy has a random beginning."""
    return printable(re.sub(r"^tmp[a-z0-9_]{8}(?=.)", "", path.name))


def _as_declared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in the types of the settings: Cog lets 3.0 pass for an integer."""
    annotations = TrainSettings.__annotations__
    return {
        name: int(value)
        if isinstance(value, float) and annotations[name] in (int, int | None)
        else value
        for name, value in options.items()
    }


def _record(record: Mapping[str, Any], record_metric: RecordMetric) -> None:
    for name, value in record.items():
        if isinstance(value, int | float) and name != "step":
            record_metric(f"train.{name}", value, mode="append")
    record_metric("train.step", record["step"], mode="replace")
