"""Entry of one rank: runs the training and leaves word of how it went.

Started by DeepSpeed's launcher; `python -m src.training.worker settings.json` runs one rank alone.
"""

import ctypes
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from src.errors import UserError
from src.settings import TrainSettings
from src.training.supervise.heartbeat import RankStatus

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_SIZE": "1",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def main(settings_path: Path) -> None:
    """Run this rank; a failure is left as a file for the supervisor and ends with exit code 1."""
    _end_with_parent()
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    run_dir = settings_path.parent
    status = RankStatus(run_dir, rank=int(os.environ["RANK"]))
    try:
        from src.training.rank import run_rank

        settings = TrainSettings.load(settings_path)
        # On a machine that joins, the base model may lie elsewhere.
        folder = os.environ.get("BASE_MODEL_DIR", settings.base_model_dir)
        run_rank(replace(settings, base_model_dir=folder), run_dir, status)
    except BaseException as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        status.fail(_explain(error))
        # Other ranks may wait in a collective; leaving at once lets the launcher end them.
        _leave(1)
    # All is written; the interpreter would take seconds to end, in which it shows no sign of life.
    _leave(0)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _explain(error: BaseException) -> BaseException:
    """Return the error; for memory that ran out where nothing can be made smaller, what helps."""
    if isinstance(error, UserError) or "torch" not in sys.modules:
        return error
    from src.model.oom import is_out_of_memory

    if not is_out_of_memory(error):
        return error
    return UserError(
        "out of memory outside of the training passes: expected peft_method=qlora, a smaller "
        "lora_rank or base model, fewer processes (NUM_PROCESSES), or more memory"
    )


def _end_with_parent() -> None:
    """Have the kernel end this rank when the launcher dies, so that none is left on a GPU."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
