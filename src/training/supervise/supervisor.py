"""Starts one worker per device with DeepSpeed's launcher and waits for the adapter.

Standard library only: this process holds no GPU memory while the ranks need it.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.settings import TrainSettings
from src.training.supervise.failure import MetricsTail, RankWatch, TrainingError
from src.training.supervise.hosts import Hosts, encode_world, local_devices
from src.training.supervise.session import POLL_SECONDS, ROOT, Session
from src.training.supervise.stop import (
    CANCEL_SECONDS,
    SHUTDOWN_SECONDS,
    STOP_FILE,
    STOPPED_FILE,
    ServerWatch,
)
from src.training.switches import read_switches

BEAT_SECONDS = 1.0
"""How often the first machine shows the others that a run is alive."""
WORKER = "src.training.worker"


def run_workers(
    settings: TrainSettings,
    run_dir: Path,
    *,
    num_processes: int,
    on_gpus: bool,
    on_metric: Callable[[dict[str, Any]], None],
    hosts: Hosts | None = None,
    worker: str = WORKER,
) -> Path:
    """Train with one worker per device and return the folder of the finished adapter.

    `worker` is the module that each rank runs.

    Raises UserError for what the user can change, TrainingError for every other failure; whatever
    happens, no process of the run is left on this machine when this returns.
    """
    settings.save(run_dir / "settings.json")
    num_local = num_processes if hosts is None else hosts.num_local
    port = _free_port()
    invitation = run_dir / "invitation.json"
    invitation.write_text(json.dumps({"port": port, "on_gpus": on_gpus}))
    session = start_session(
        run_dir, port=port, num_local=num_local, on_gpus=on_gpus, hosts=hosts, worker=worker
    )
    patience = read_switches(os.environ).frozen_seconds
    ranks = RankWatch(run_dir / "ranks", num_local, session.spawned, patience=patience)
    metrics = MetricsTail(run_dir / "metrics.jsonl", on_metric)
    server, output = ServerWatch(os.environ), run_dir / "output"
    last_beat = time.monotonic()
    try:
        while session.is_running() and not ranks.is_over(is_done=output.is_dir()):
            ranks.wait(POLL_SECONDS)
            metrics.poll()
            if time.monotonic() - last_beat > BEAT_SECONDS:
                last_beat = time.monotonic()
                os.utime(invitation)
                if server.is_gone() and settings.checkpoint_folder is not None:
                    _stop(run_dir, session, SHUTDOWN_SECONDS)
                    break
        ranks.wait(0)
    except BaseException as error:
        if not isinstance(error, TrainingError) and settings.checkpoint_folder is not None:
            # A server that ends takes no more metrics, which may be the first sign of its end.
            # Cog's cancel is no Exception.
            if isinstance(error, Exception) or server.is_gone():
                _stop(run_dir, session, SHUTDOWN_SECONDS)
            elif settings.save_on_cancel:
                _stop(run_dir, session, CANCEL_SECONDS)
        raise
    finally:
        ranks.close()
        session.end()
    metrics.poll()
    if not output.is_dir():
        was_asked = (run_dir / STOP_FILE).exists()
        raise (was_asked and _stopped(run_dir)) or ranks.failure(session.return_code)
    return output


def _stop(run_dir: Path, session: Session, seconds: float) -> None:
    """Ask the run to keep its adapter, and wait until it has or the time is over."""
    (run_dir / STOP_FILE).touch()
    deadline = time.monotonic() + seconds
    while session.is_running() and time.monotonic() < deadline:
        if (stopped := _stopped(run_dir)) is not None:
            with suppress(OSError):  # a server that ends takes no words
                print(stopped, flush=True)
            return
        time.sleep(POLL_SECONDS / 2)


def _stopped(run_dir: Path) -> TrainingError | None:
    """Return what to tell of a run that was ended and has kept its adapter."""
    try:
        kept = json.loads((run_dir / STOPPED_FILE).read_text())
    except (OSError, ValueError):
        return None
    folder = Path(kept["folder"])
    return TrainingError(
        f"stopped early after step {kept['step']}: the adapter is in CHECKPOINT_DIR, "
        f"{folder.parent.name}/{folder.name}; resume_from=auto goes on from the last checkpoint"
    )


def start_session(
    run_dir: Path,
    *,
    port: int,
    num_local: int,
    on_gpus: bool,
    hosts: Hosts | None,
    worker: str = WORKER,
) -> Session:
    """Start this machine's workers; on all machines the workers of a run find each other."""
    if hosts is None:
        world, node_rank, address = {"localhost": local_devices(num_local)}, 0, "127.0.0.1"
    else:
        world = {host: list[int | str](range(slots)) for host, slots in hosts.slots.items()}
        node_rank, address = hosts.node_rank, hosts.main_address
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        *(f"--world_info={encode_world(world)}", f"--node_rank={node_rank}"),
        *(f"--master_addr={address}", f"--master_port={port}", "--no_local_rank"),
        *("--module", worker, str(run_dir / "settings.json")),
    ]
    return Session(command, _environment(num_local, on_gpus=on_gpus))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(num_processes: int, *, on_gpus: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    )
    environment.update(
        PYTHONUNBUFFERED="1",
        PYTHONWARNINGS="ignore::FutureWarning",  # of torch, about what DeepSpeed calls
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
    )
    # Secrets are for fetching the base model, which is done.
    environment.pop("HF_TOKEN", None)
    # Freed memory serves tensors of any size: fewer gaps.
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not on_gpus:
        threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
        environment.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS=str(threads))
    return environment
