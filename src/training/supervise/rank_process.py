"""What a rank does before its imports, which take seconds (no torch)."""

import os
import warnings
from pathlib import Path

from src.process_tree import end_with_parent
from src.settings import TrainSettings
from src.training.supervise.heartbeat import RankStatus
from src.training.supervise.run_folder import RunFolder

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "WORLD_SIZE": "1",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What torch's agent tells its ranks, for one that runs without an agent."""


def begin_rank(settings_path: Path, parent: int | None = None) -> RankStatus:
    """Set this process up for its libraries and begin its heartbeat; `parent` is its agent."""
    if parent is not None:
        end_with_parent(parent)
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    folder, local_rank = RunFolder(settings_path.parent), int(os.environ["LOCAL_RANK"])
    status = RankStatus(folder, rank=int(os.environ["RANK"]), local_rank=local_rank)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about DeepSpeed's calls
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # Freed memory serves tensors of any size: fewer gaps.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if not TrainSettings.load(settings_path).environment.on_gpus:
        num_cpus, num_ranks = len(os.sched_getaffinity(0)), int(os.environ["LOCAL_WORLD_SIZE"])
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Of the products that oneDNN compiles, one for each shape, it would keep 1,024.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cpus // num_ranks)))
    return status
