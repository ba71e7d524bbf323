"""The settings of a training from its inputs and the environment, with all that can be checked."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from src.data.reading.example_file import ExampleFile
from src.data.steps import choose_batch_sizes
from src.environment import TrainEnvironment, read_train_environment
from src.errors import UserError
from src.files.printable import printable
from src.settings import TrainSettings
from src.training.checkpoint.locate import check_checkpoints, locate_checkpoints
from src.training.plan.resources import check_processes, count_devices
from src.weights.base_model.base_model import find_base_model

FILES = ("train_data", "validation_data")


def resolve_settings(
    inputs: Mapping[str, Any],
    *,
    with_weights: bool = True,
    names: Mapping[str, str] = MappingProxyType({}),
) -> TrainSettings:
    """Return what is to be done; the base model is fetched once all else has been checked.

    `names` has what the user calls a file, where its path does not say. Of several machines those
    without the data have no `train_data`. Raises UserError.
    """
    environment = read_train_environment(os.environ)
    files = {name: _local_file(inputs.get(name), name, environment) for name in FILES}
    options = {name: value for name, value in inputs.items() if name not in FILES}
    settings = TrainSettings(
        base_model="",
        base_model_dir="",
        environment=environment,
        **_describe(files, names),
        **_as_declared(options),
    )
    if settings.train_data:
        for name, path in files.items():
            if path is not None:
                ExampleFile(path, getattr(settings, f"{name}_name")).check()
        check_checkpoints(settings)
    base_model = find_base_model(os.environ, with_weights=with_weights)
    settings = replace(
        settings,
        base_model=base_model.name,
        base_model_dir=str(base_model.folder),
        base_model_revision=base_model.revision,
        environment=_count_processes(settings),
    )
    return locate_checkpoints(settings) if settings.train_data else settings


def _count_processes(settings: TrainSettings) -> TrainEnvironment:
    """Return the environment with how many processes train on this machine, and whether on GPUs."""
    environment = settings.environment
    num_devices, on_gpus = count_devices(environment.num_processes)
    num_used = num_devices
    if environment.num_nodes == 1:  # the agents count those of all machines
        num_used = choose_batch_sizes(
            train_batch_size=settings.train_batch_size,
            micro_batch_size=settings.micro_batch_size,
            num_devices=num_devices,
        ).world_size
    if num_used < num_devices:
        print(
            f"train_batch_size {settings.train_batch_size} cannot be split over {num_devices} "
            f"{'GPUs' if on_gpus else 'CPU processes'}: {num_used} are used",
            flush=True,
        )
    if not on_gpus:
        check_processes(num_used, environment.device_memory)
    return replace(environment, num_processes=num_used, on_gpus=on_gpus)


def _local_file(value: Any, name: str, environment: TrainEnvironment) -> Path | None:
    """Return a file of the request; None for one that is not given, or lies on another machine."""
    if value is None:
        return None
    # Cog turns a URL into a file; any other text would name a file of the server.
    is_here = not isinstance(value, str) and Path(value).is_file()
    if is_here or environment.num_nodes > 1:
        return Path(value) if is_here else None
    if isinstance(value, str):
        raise UserError(
            f"{name}: expected a file or an http(s) address, found the text {value[:80]!r}"
        )
    raise UserError(f"{name}: there is no file {Path(value).name}")


def _describe(files: Mapping[str, Path | None], names: Mapping[str, str]) -> dict[str, str | None]:
    described: dict[str, str | None] = {"train_data": "", "train_data_name": ""}
    for name, path in files.items():
        if path is not None:
            shown = printable(names[name]) if name in names else _shown_name(path, name)
            described |= {name: str(path), f"{name}_name": shown}
    return described


def _shown_name(path: Path, name: str) -> str:
    """Return what the user called the file, or the input's name where Cog has lost that."""
    # Cog's copy has a random beginning; of a data: URL it knows no more than the kind.
    shown = re.sub(r"^tmp[a-z0-9_]{8}(?=.)", "", path.name)
    return name if re.fullmatch(r"file(\.(?!jsonl)\w+)?", shown) else printable(shown)


def _as_declared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the settings have them: Cog lets 3.0 pass for an integer.

    An empty text is none where there may be none.
    """
    kinds = TrainSettings.__annotations__
    whole = {
        n: int(v)
        for n, v in options.items()
        if isinstance(v, float) and kinds[n] in (int, int | None)
    }
    empty = {n: None for n, v in options.items() if v == "" and kinds[n] == str | None}
    return {**options, **whole, **empty}
