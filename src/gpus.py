"""The GPUs of this machine, and an error where torch cannot use them: never the CPU in silence.

torch is imported by the functions that need it: the supervisor counts GPUs without it.
"""

import os
import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError

if TYPE_CHECKING:
    import torch

DRIVER_FILES = Path("/proc/driver/nvidia")
OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""The first series of drivers that runs all versions of a major version of CUDA."""
LEGACY_CUDA = "12.6"
"""Of torch's builds the one for old drivers and GPUs."""
ON_PURPOSE = "CUDA_VISIBLE_DEVICES= (empty) runs on the CPU all the same"


def count_gpus() -> int:
    """Return how many GPUs CUDA should show this process.

    Raises UserError where the driver has GPUs that nvidia-smi does not list.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = _nvidia_smi("-L")
    installed = re.findall(r"^GPU \d+:.*\(UUID: (\S+)\)", listed, re.MULTILINE)
    if not installed and _has_hidden_gpus():
        said = next(iter(listed.splitlines()), "there is none")
        raise UserError(
            f"this machine has a GPU (NVIDIA driver {_driver_version()}) that nvidia-smi does not "
            f"list here: {said}; expected a container that is started with --gpus all and NVIDIA's "
            f"container toolkit; {ON_PURPOSE}"
        )
    if visible is None:
        return len(installed)
    numbers = [str(number) for number in range(len(installed))]
    uuids = re.findall(r"UUID: ([^\s)]+)", listed)

    def is_known(name: str) -> bool:
        return name in numbers or any(name and uuid.startswith(name) for uuid in uuids)

    # CUDA takes the beginning of a UUID too, and nothing from the first unknown name on.
    return len(list(takewhile(is_known, map(str.strip, visible.split(",")))))


def find_device(index: int = 0) -> "torch.device":
    """Return a GPU by its number, or the CPU where there is none.

    Raises UserError for a GPU that torch cannot use.
    """
    import torch

    if not torch.cuda.is_available():
        if count_gpus() == 0:
            return torch.device("cpu")
        raise UserError(unusable_gpu(torch.__version__, torch.version.cuda, _driver_version()))
    capability, known = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    oldest = min((int(n) for name in known for n in re.findall(r"^sm_(\d+)", name)), default=0)
    if capability[0] * 10 + capability[1] < oldest:
        name = torch.cuda.get_device_name(index)
        raise UserError(
            f"torch {torch.__version__} has no code for this {name} of compute capability "
            f"{capability[0]}.{capability[1]}, only from {oldest / 10} on; expected "
            f"{_legacy_build(torch.__version__)}; {ON_PURPOSE}"
        )
    return torch.device("cuda", index)


def unusable_gpu(torch_version: str, cuda: str | None, driver: str) -> str:
    """Return why a build of torch for a version of CUDA cannot use a GPU, and what would help."""
    found = f"this machine has a GPU that torch {torch_version} cannot use"
    release = torch_version.partition("+")[0]
    if cuda is None:
        return (
            f"{found}: it is a build without CUDA; expected the line torch=={release} in "
            f"requirements.txt, without an index of builds for CPUs; {ON_PURPOSE}"
        )
    needed = OLDEST_DRIVERS.get(cuda.partition(".")[0], 0)
    series = int(driver.partition(".")[0]) if driver[:1].isdecimal() else needed
    if series < needed:
        oldest = OLDEST_DRIVERS[LEGACY_CUDA.partition(".")[0]]
        return (
            f"{found}: its NVIDIA driver is {driver}, and CUDA {cuda} needs {needed} or newer; "
            f"expected such a driver or, which runs with {oldest} and newer, "
            f"{_legacy_build(torch_version)}; {ON_PURPOSE}"
        )
    return (
        f"{found}: NVIDIA driver {driver}, CUDA {cuda}; expected nvidia-smi to list it without an "
        f"error and, in a container, NVIDIA's container toolkit and --gpus all; {ON_PURPOSE}"
    )


def _legacy_build(torch_version: str) -> str:
    tag = f"cu{LEGACY_CUDA.replace('.', '')}"
    return (
        f"torch's build for CUDA {LEGACY_CUDA}: in requirements.txt the lines "
        f"'--extra-index-url https://download.pytorch.org/whl/{tag}' and "
        f"'torch=={torch_version.partition('+')[0]}+{tag}', in cog.yaml 'cuda: \"{LEGACY_CUDA}\"'"
    )


def _nvidia_smi(*options: str) -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _has_hidden_gpus() -> bool:
    """Return whether the kernel has GPUs, and nobody has hidden them on purpose."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    is_kept_out = os.environ.get("NVIDIA_VISIBLE_DEVICES", "all") in ("", "void", "none")
    return not is_hidden and not is_kept_out and any((DRIVER_FILES / "gpus").glob("*"))


def _driver_version() -> str:
    """Return the version of the NVIDIA driver, as `580.95.05`."""
    file = DRIVER_FILES / "version"
    query = ("--query-gpu=driver_version", "--format=csv,noheader")
    told = file.read_text() if file.exists() else _nvidia_smi(*query)
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", told)
    return found[0] if found else "of an unknown version"
