"""Jobs on a Ray cluster of simulated machines, among them one that is lost."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from src.service.settings import read_service_settings
from src.service.work.cluster.ray_executor import RayWorker
from src.service.work.workers import Message, make_executor
from tests.conftest import ROWS
from tests.serving.conftest import save_random_adapter

SIZE = {"num_cpus": 2, "object_store_memory": 80 << 20}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300}
QUICK |= {"health_check_timeout_ms": 300, "health_check_failure_threshold": 3}
TINY = {"max_steps": 2, "run_validation": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One machine that runs nothing, and two for a job each."""
    head = {**SIZE, "num_cpus": 0, "_system_config": QUICK, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def environment(cluster: Cluster, base_dir: Path, tmp_path: Path) -> dict[str, str]:
    base_model = tmp_path / "base-model"  # a path of this test's own, by which its jobs are known
    base_model.symlink_to(base_dir)
    return {
        **os.environ, "BASE_MODEL": str(base_model), "NUM_PROCESSES": "1", "TMPDIR": str(tmp_path),
        "RAY_ADDRESS": cluster.address, "WEIGHTS_DIR": str(tmp_path / "weights"),
    }  # fmt: skip


async def start(kind: Any, environment: dict[str, str]) -> RayWorker:
    settings = read_service_settings({"EXECUTOR": "ray", "DATA_DIR": environment["TMPDIR"]})
    worker = await make_executor(settings).start(kind, environment)
    assert isinstance(worker, RayWorker)
    return worker


async def event(worker: RayWorker, name: str) -> Message:
    async for message in worker:
        if message["event"] == name:
            return message
    raise AssertionError(f"the job ended with {worker.returncode} before {name}")


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def processes_of(environment: dict[str, str]) -> list[int]:
    """Return the jobs on this test's base model and all that they have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_ours = process.environ().get("BASE_MODEL") == environment["BASE_MODEL"]
            found += [process.pid] if is_ours else []
    return found


def test_an_engine_and_a_training_run_on_the_cluster(
    cluster: Cluster, environment: dict[str, str], base_dir: Path, tmp_path: Path, write_rows
):
    """Weights and data go there, and trained weights come back."""
    cluster.add_node(**SIZE)
    save_random_adapter(base_dir, tmp_path / "adapter", seed=3)
    weights = tmp_path / "weights"
    weights.mkdir()

    async def both() -> None:
        engine, training = await asyncio.gather(
            start("engine", environment), start("training", environment)
        )
        output = weights / "trained.tar"
        files = {"train_data": str(write_rows(ROWS))}
        await training.send({"do": "train", "input": {**files, **TINY}, "output": str(output)})
        end = await event(training, "end")
        assert (end["status"], end["weights"]) == ("succeeded", str(output))
        assert [message async for message in training] == []
        assert training.returncode == 0
        await training.stop(5)
        await event(engine, "ready")
        asked = {"prompt": "What?", "max_new_tokens": 8, "min_new_tokens": 8, "temperature": 0}
        tuned = {**asked, "replicate_weights": "trained.tar"}
        for id, inputs in (("bare", asked), ("tuned", tuned)):
            await engine.send({"do": "predict", "id": id, "input": inputs})
        texts: dict[str, str] = {"bare": "", "tuned": ""}
        ends = []
        async for message in engine:
            if message["event"] == "output":
                texts[message["id"]] += message["text"]
            ends += [message] if message["event"] == "end" else []
            if len(ends) == 2:
                break
        assert {(end["status"], end["error"]) for end in ends} == {("succeeded", None)}
        assert all(texts.values())
        await engine.stop(5)
        assert engine.returncode == 0
        with pytest.raises(ConnectionError):
            await engine.send({"do": "report"})

    run(both())
    assert processes_of(environment) == []


def test_a_bad_file_goes_by_the_users_name(environment: dict[str, str], write_rows):
    async def train() -> None:
        worker = await start("training", environment)
        data = str(write_rows([*ROWS, {"prompt": 1}]))
        names = {"train_data": "colours.jsonl"}
        task = {"input": {"train_data": data}, "names": names, "output": "/none/weights.tar"}
        await worker.send({"do": "train", **task})
        end = await event(worker, "end")
        assert end["error"].startswith(f"colours.jsonl, line {len(ROWS) + 1}")
        await worker.stop(5)

    run(train())


def test_a_lost_machine_leaves_no_process_and_ends_its_worker(
    cluster: Cluster, environment: dict[str, str], write_rows
):
    """The raylet is killed, as when the machine has lost its way to the others."""
    node = cluster.list_all_nodes()[-1]

    async def lose() -> None:
        worker = await start("training", environment)
        inputs = {"train_data": str(write_rows(ROWS)), "num_train_epochs": 2000}
        await worker.send({"do": "train", "input": inputs, "output": "/none/weights.tar"})
        await event(worker, "metric")
        assert len(processes_of(environment)) >= 3
        cluster.remove_node(node, allow_graceful=False)
        deadline = time.monotonic() + 10
        while processes_of(environment):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        async for message in worker:
            assert message["event"] != "end"
        assert worker.returncode == -9
        await worker.stop(1)

    run(lose())
