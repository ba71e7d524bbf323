"""The compiled code of decoding steps on a CPU, for the very processor that runs it."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

FOLDER = Path(__file__).parent / "cpp"
SOURCE = FOLDER / "decode_step.cpp"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")


def find_library(device: torch.device, asked: bool | None) -> ctypes.CDLL | None:
    """Return the library for a CPU, unless `COMPILE`, which is `asked`, asks for anything else.

    Where it cannot be had, the reason is printed.
    """
    if device.type != "cpu" or asked is not None:
        return None
    library = load_library()
    if isinstance(library, str):
        print(f"decoding takes plain steps, which are slower: {library}", flush=True)
        return None
    return library


def load_library() -> ctypes.CDLL | str:
    """Return the library, compiled where it is not kept yet; or why there is none.

    It is kept with the code of torch's compiler.
    """
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return "there is no C++ compiler, such as g++, on the PATH"
    sources = sorted([*FOLDER.rglob("*.h"), SOURCE])
    known = (
        b"".join(path.read_bytes() for path in sources)
        + repr((compiler, FLAGS, _processor())).encode()
    )
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()))
    library = folder / f"decode-step-{hashlib.sha256(known).hexdigest()[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", "") or str(error)
        return f"{compiler} fails: {output.strip().partition(chr(10))[0]}"


def _compile(compiler: str, library: Path) -> None:
    """Write the library under its name when it is complete: several processes may want it."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        new = Path(folder) / library.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(new)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        new.replace(library)


def _processor() -> str:
    """Return what tells processors with other instructions apart."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kinds = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
