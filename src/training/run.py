"""One training from its inputs to the weights archive."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from src.files.scratch import LastFolder, remove_abandoned, scratch_folder
from src.training.inputs import resolve_settings
from src.training.supervise.cog_train_log import shown_by_cog_train
from src.training.supervise.server_watch import Server
from src.training.supervise.supervisor import run_workers
from src.weights.archive.archive import write_archive

RUN_PREFIX = "training-"
ARCHIVE_PREFIX = "weights-"
RecordMetric = Callable[..., None]
_archive_folder = LastFolder(ARCHIVE_PREFIX)


@shown_by_cog_train()
def run_training(
    inputs: Mapping[str, Any],
    *,
    record_metric: RecordMetric,
    on_record: Callable[[dict[str, Any]], object] = lambda record: None,
    names: Mapping[str, str] = MappingProxyType({}),
    server: Server | None = None,
) -> Path | None:
    """Check everything that can be checked, train, and return the archive of the adapter.

    `on_record` is called with each line of `metrics.jsonl`; `names` has what the user calls a file,
    where its path does not say; `server` is whose end ends the run, by default Cog's. The archive
    stays until the next training of this process. Of several machines the one with the training
    data returns it, the others None.
    """

    def record(line: dict[str, Any]) -> None:
        _record(line, record_metric)
        on_record(line)

    for prefix in (RUN_PREFIX, ARCHIVE_PREFIX):
        remove_abandoned(prefix)
    settings = resolve_settings(inputs, names=names)
    with scratch_folder(RUN_PREFIX) as run_dir:
        output = run_workers(settings, run_dir, on_metric=record, server=server)
        if output is None:
            return None
        # The archive outlives the run's folder: Cog reads it after this function has returned.
        archive = _archive_folder.renew() / "weights.tar"
        write_archive(output, archive)
    return archive


def _record(record: Mapping[str, Any], record_metric: RecordMetric) -> None:
    for name, value in record.items():
        if isinstance(value, int | float) and name != "step":
            record_metric(f"train.{name}", value, mode="append")
    record_metric("train.step", record["step"], mode="replace")
