"""What the main rank has and the other ranks need; it lies on the machine with the data."""

import os
import tarfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import Store, TCPStore

from src.chat.prompt_encoder import PromptEncoder
from src.data.prepare import open_datasets, prepare_data
from src.data.token_file import TokenDataset
from src.files.atomic import replacing_folder
from src.settings import TrainSettings

POLL_SECONDS = 0.1
PART_BYTES = 4 * 2**20
NO_TIME_LIMIT = timedelta(days=365)
"""The agent ends all ranks when one of them fails."""


class OtherMachines:
    """A rank's way to the other machines, through the store of torch's agents."""

    def __init__(self) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store: Store = TCPStore(address, port, is_master=False, timeout=NO_TIME_LIMIT)
        self._machine = int(os.environ["GROUP_RANK"])
        self._num_machines = int(os.environ["GROUP_WORLD_SIZE"])
        self._is_first = os.environ["LOCAL_RANK"] == "0"
        """Whether it is this rank that receives for its machine."""

    def find_main_rank(self, settings: TrainSettings) -> int:
        """Return the first rank of the machine with the data; torch counts them by address."""
        if settings.train_data and self._is_first:
            self._store.set("main rank", os.environ["RANK"])
        return int(self._store.get("main rank"))

    def send(self, name: str, folder: Path) -> None:
        """Send the files of a folder to the other machines."""
        receivers = [m for m in range(self._num_machines) if m != self._machine]
        parts = _Parts(self._store, name, receivers)
        with tarfile.open(fileobj=parts, mode="w|", bufsize=PART_BYTES) as tar:  # type: ignore
            tar.add(folder, ".")
        parts.write(b"")

    def receive(self, name: str, folder: Path) -> None:
        """Receive the files that `send` sends under this name, once for each machine."""
        if not self._is_first:
            return
        parts = _Parts(self._store, name, [self._machine])
        with replacing_folder(folder) as partial:
            with tarfile.open(fileobj=parts, mode="r|", bufsize=PART_BYTES) as tar:  # type: ignore
                # Before Python 3.11.4 there is none; the machines trust each other.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(partial)
            while parts.read():
                pass


class _Parts:
    """A stream through the store: each part goes on when all receivers have the one before."""

    def __init__(self, store: Store, name: str, receivers: list[int]) -> None:
        self._store, self._name, self._receivers, self._number = store, name, receivers, 0
        self._is_over = False

    def write(self, part: bytes) -> None:
        """Send a part; an empty one is the end."""
        key = self._next_key()
        self._store.set(key, b"." + part)  # type: ignore[arg-type]
        self._store.wait([f"{key}/{receiver}" for receiver in self._receivers], NO_TIME_LIMIT)
        self._store.delete_key(key)

    def read(self, _size: int = 0) -> bytes:
        """Return the next part; an empty one at the end."""
        if self._is_over:
            return b""
        key = self._next_key()
        part = self._store.get(key)[1:]
        self._store.set(f"{key}/{self._receivers[0]}", "taken")
        self._is_over = not part
        return part

    def _next_key(self) -> str:
        self._number += 1
        return f"{self._name}/{self._number}"


def share_data(
    settings: TrainSettings,
    encoder: PromptEncoder,
    folder: Path,
    log: Callable[[str], None],
    *,
    is_main: bool,
    machines: OtherMachines | None = None,
) -> tuple[TokenDataset, TokenDataset]:
    """Return the data for training and validation: the main rank prepares it, all ranks map it."""
    if is_main:
        with replacing_folder(folder) as partial:
            prepare_data(settings, encoder, folder=partial, log=log)
        if machines:
            machines.send("data", folder)
    elif machines and not settings.train_data:
        machines.receive("data", folder)
    while not folder.is_dir():  # the agent ends all ranks if the main one fails
        time.sleep(POLL_SECONDS)
    return open_datasets(folder)
