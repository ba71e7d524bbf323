"""Another machine's part in trainings: waits for runs of the first machine and adds its workers.

`python -m src.training.supervise.join` with `DEEPSPEED_HOSTFILE`, `NODE_RANK` and `SHARED_FOLDER`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from src.errors import UserError
from src.training.supervise.hosts import Hosts, find_hosts
from src.training.supervise.session import POLL_SECONDS
from src.training.supervise.supervisor import start_session
from src.weights.base_model.base_model import find_base_model

SILENT_SECONDS = 30.0
"""Without a sign of the first machine for so long, its run is over."""


def main() -> int:
    """Take part in one run after another, until this process is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        hosts = find_hosts(os.environ)
        if hosts is None or hosts.node_rank == 0:
            raise UserError(
                "DEEPSPEED_HOSTFILE and NODE_RANK: expected a hostfile and the place of this "
                "machine in it, from 1; the first machine takes the requests"
            )
        # Fetched before the first run; every machine reads its own copy.
        os.environ["BASE_MODEL_DIR"] = str(find_base_model(os.environ).folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"waiting for trainings of {hosts.main_address}", flush=True)
    first_signs: dict[Path, float | None] = {}
    joined: set[Path] = set()
    while True:
        for invitation in set(hosts.shared_folder.glob("training-*/invitation.json")) - joined:
            sign = _modified(invitation)
            # One that is never touched again may be left of a dead run.
            if sign is not None and sign != first_signs.setdefault(invitation, sign):
                joined.add(invitation)
                take_part(invitation, hosts)
        time.sleep(POLL_SECONDS)


def take_part(invitation: Path, hosts: Hosts) -> None:
    """Add this machine's workers to a run until it ends."""
    try:
        run = json.loads(invitation.read_text())
    except FileNotFoundError:  # the run has ended meanwhile
        return
    print(f"taking part in {invitation.parent.name}", flush=True)
    session = start_session(
        invitation.parent,
        port=run["port"],
        num_local=hosts.num_local,
        on_gpus=run["on_gpus"],
        hosts=hosts,
    )
    last_sign, last_change = _modified(invitation), time.monotonic()
    try:
        while session.is_running() and time.monotonic() - last_change < SILENT_SECONDS:
            time.sleep(POLL_SECONDS)
            sign = _modified(invitation)
            if sign is None:  # the first machine has cleared up
                return
            if sign != last_sign:
                last_sign, last_change = sign, time.monotonic()
    finally:
        session.end()


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
