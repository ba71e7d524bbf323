"""Several machines that train together: what their agents tell each other, in the store of torch's
rendezvous. Nothing needs a folder that they share.
"""

import json
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend

from src.data.steps import choose_batch_sizes
from src.errors import UserError
from src.settings import TrainSettings
from src.training.supervise.failure import CANCELED, ENDED, SHARE_SECONDS, Failure
from src.training.supervise.run_folder import RunFolder
from src.weights.base_model.fingerprint import fingerprint_base_model

JOIN_SECONDS = 900
POLL_SECONDS = 0.2
COMMON = ("zero_stage", "dtype", "in_float8", "deterministic")
"""What the environment of the machine with the data says for all of them."""


class Machines:
    """One machine's way to the others."""

    def __init__(self, rendezvous: str, num_nodes: int) -> None:
        """Raises UserError where none of them answers."""
        host, _, _ = rendezvous.rpartition(":")
        self.num_nodes = num_nodes
        try:
            self.address = _own_address(host.strip("[]"))
            # It has the store live, on the machine of the rendezvous, until the others have ended.
            parameters = RendezvousParameters(
                "c10d", rendezvous, "machines", num_nodes, num_nodes, read_timeout=JOIN_SECONDS
            )
            _, self._store = create_backend(parameters)
        except (OSError, RendezvousConnectionError):
            raise UserError(f"RENDEZVOUS: no machine answers at {rendezvous}") from None
        self._is_ending, self._follows_others = threading.Event(), False
        self._number = self._store.add("machines", 1) - 1
        if self._number >= num_nodes:
            raise UserError(f"NUM_NODES: more than {num_nodes} machines came to {rendezvous}")

    def agree(self, folder: RunFolder) -> None:
        """Take over the settings of the machine with the data, but for what is this machine's own.

        Raises UserError, on all machines, where they cannot train together.
        """
        settings = TrainSettings.load(folder.settings)
        own = {
            "address": self.address,
            "num_processes": settings.environment.num_processes,
            "base_model": fingerprint_base_model(Path(settings.base_model_dir)),
            "settings": asdict(settings) if settings.train_data else None,
        }
        found = self._exchange("machine", own, JOIN_SECONDS)
        if len(found) < self.num_nodes:
            minutes = JOIN_SECONDS // 60
            raise UserError(
                f"NUM_NODES: {len(found)} of {self.num_nodes} machines came in {minutes} minutes"
            )
        owners = [machine for machine in found if machine["settings"]]
        if len(owners) != 1:
            where = ", ".join(machine["address"] for machine in owners) or "none"
            raise UserError(
                "train_data: expected the file on exactly one of the "
                f"{self.num_nodes} machines, found it on {where}"
            )
        if len({machine["base_model"] for machine in found}) > 1:
            raise UserError("BASE_MODEL: the machines have different base models")
        asked = TrainSettings.from_json(owners[0]["settings"])
        num_devices = sum(machine["num_processes"] for machine in found)
        batches = choose_batch_sizes(
            train_batch_size=asked.train_batch_size,
            micro_batch_size=asked.micro_batch_size,
            num_devices=num_devices,
        )
        if batches.world_size < num_devices:
            raise UserError(
                f"train_batch_size: expected a multiple of {num_devices}, the GPUs or processes of "
                f"all machines; found {asked.train_batch_size}"
            )
        common = {name: getattr(asked.environment, name) for name in COMMON}
        environment = replace(settings.environment, **common)
        agreed = replace(
            asked,
            base_model_dir=settings.base_model_dir,
            train_data=settings.train_data,
            environment=environment,
        )
        agreed.save(folder.settings)
        print(
            f"{self.num_nodes} machines with {num_devices} processes; the data is on "
            f"{owners[0]['address']}, which keeps the weights",
            flush=True,
        )
        threading.Thread(target=self._end_with_others, daemon=True).start()

    def share_failure(self, failure: Failure | None) -> Failure:
        """Tell the others what ended this machine, and return what ended the first of all."""
        self.leave()
        if failure is None:
            kind = ENDED if self._follows_others else CANCELED
            failure = Failure(f"the training was ended on {self.address}", kind)
        with suppress(RuntimeError):
            self._store.set("failed", "")
        found = self._exchange("failure", asdict(failure), SHARE_SECONDS)
        # The store ends with the machine of the rendezvous: not before the others have read.
        self._exchange("farewell", {}, SHARE_SECONDS)
        return min(Failure(**record) for record in [asdict(failure), *found])

    def leave(self) -> None:
        """Let this agent end by itself from now on."""
        self._is_ending.set()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _end_with_others(self) -> None:
        """End this agent when another machine fails, or the one of the rendezvous is gone."""
        while not self._is_ending.wait(POLL_SECONDS):
            try:
                if not self._store.check(["failed"]):
                    continue
            except RuntimeError:
                if self._is_ending.wait(SHARE_SECONDS):  # it has ended well, and so does this one
                    return
            self._follows_others = True
            os.kill(os.getpid(), signal.SIGTERM)
            return

    def _exchange(self, what: str, own: dict[str, Any], seconds: float) -> Sequence[Any]:
        """Return what all machines say, or those that do within so long."""
        keys = [f"{what}/{number}" for number in range(self.num_nodes)]
        try:
            self._store.set(keys[self._number], json.dumps(own))
            try:
                self._store.wait(keys, timedelta(seconds=seconds))
            except RuntimeError:
                keys = [key for key in keys if self._store.check([key])]
            return [json.loads(self._store.get(key)) for key in keys]
        except RuntimeError:  # the machine of the rendezvous is gone
            return []


def _own_address(host: str) -> str:
    """Return the address by which this machine reaches another one, which reaches it by that."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return probe.getsockname()[0]
