"""The agent of a machine: starts its ranks with torch's elastic launch and reports why they failed.

`python -m src.training.supervise.agent SETTINGS.json WORKER PARENT` is a process of its own, as the
supervisor loads no torch.
"""

import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from src.errors import UserError
from src.process_tree import end_with_parent
from src.settings import TrainSettings
from src.training.machines.agree import Machines
from src.training.supervise.failure import USER_ERROR, Failure, first_failure
from src.training.supervise.run_folder import RunFolder

ALONE = "127.0.0.1:0"
"""Where the ranks of one machine meet: at a port that is free."""
SHUTDOWN_SECONDS = 1


def main(settings_path: Path, worker: str, parent: int) -> int:
    """Run the ranks and return 0 when all of them have done their part."""
    end_with_parent(parent)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    folder = RunFolder(settings_path.parent)
    environment = TrainSettings.load(settings_path).environment
    failure: Failure | None = None
    machines: Machines | None = None
    try:
        if environment.rendezvous:
            machines = Machines(environment.rendezvous, environment.num_nodes)
            machines.agree(folder)
        launch = LaunchConfig(
            min_nodes=environment.num_nodes,
            max_nodes=environment.num_nodes,
            nproc_per_node=environment.num_processes or 1,
            rdzv_backend="c10d",
            rdzv_endpoint=environment.rendezvous or ALONE,
            run_id="training",
            local_addr=machines.address if machines else "127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder.agent_files)),
        )
        if hasattr(launch, "shutdown_timeout"):  # from torch 2.12 on
            launch.shutdown_timeout = SHUTDOWN_SECONDS
        command = ("-u", "-m", worker, str(settings_path), str(os.getpid()))
        elastic_launch(launch, sys.executable)(*command)
        if machines:
            machines.leave()
        return 0
    except UserError as error:
        failure = Failure(str(error), USER_ERROR)
    except ChildFailedError as error:
        failure = first_failure(error.failures, folder)
    except SignalException:
        reported = folder.failure()  # by the supervisor, where it ends frozen ranks
        failure = Failure(**reported) if reported else None
    if machines:
        failure = machines.share_failure(failure)
    if failure:
        folder.write_failure(asdict(failure))
    return 1


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(code)
