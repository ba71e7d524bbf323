"""Work on strangers' files that tests measure from outside; imports no more than that takes."""

import json
import os
import time
from pathlib import Path

from src.weights.adapter.adapter import read_adapter
from src.weights.archive.archive import read_archive


def unpack(archive: str, folder: str) -> None:
    """Unpack an archive under the cap of a 7B model's adapter."""
    read_archive(Path(archive), Path(folder), max_bytes=5 << 30)


def read_folder(folder: str, shapes: str) -> None:
    """Read an adapter for a base model with these shapes."""
    read_adapter(Path(folder), {name: tuple(shape) for name, shape in json.loads(shapes).items()})


def control(name: str, argument: str) -> None:
    """Misbehave, to show that a measure would see it."""
    match name:
        case "bytearray":
            bytearray(int(argument))
        case "spin":
            while time.process_time() < float(argument):
                pass
        case "os.abort":
            os.abort()
        case "int":
            int(argument)
