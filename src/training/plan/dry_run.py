"""What a training would do, without doing it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from src.data.report import DataReport
from src.errors import UserError
from src.training.inputs import resolve_settings
from src.training.plan.resources import expected_resources


def plan_training(inputs: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell what `run_training` would do; nothing is trained."""
    return look_ahead(inputs)[0]


def look_ahead(
    inputs: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[str], DataReport]:
    """Return these lines and the report of the data.

    `names` has what the user calls a file, where its path does not say.
    """
    from src.chat.prompt_encoder import open_prompt_encoder
    from src.data.prepare import build_step_plan, open_datasets, prepare_data, read_report
    from src.training.plan.decide import make_plan
    from src.training.plan.disk import check_disks

    settings = resolve_settings(inputs, names=names, with_weights=False)
    environment = settings.environment
    if not settings.train_data:
        raise UserError("train_data: a plan is made on the machine with the file")
    assert environment.num_processes is not None
    encoder = open_prompt_encoder(settings)
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        prepare_data(settings, encoder, folder=Path(folder), log=lines.append)
        data, _ = open_datasets(Path(folder))
        step_plan = build_step_plan(
            data,
            settings,
            max_seq_len=encoder.max_seq_len,
            num_devices=environment.num_processes * environment.num_nodes,
        )
        resources = expected_resources(environment)
        plan = make_plan(settings, data, step_plan, resources, zero_stage=environment.zero_stage)
        lines += [*plan.lines(), check_disks(plan, Path(folder))]
        return lines, read_report(Path(folder))
