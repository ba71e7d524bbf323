"""Imports point down: a floor may use the floors below it and nothing else."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
FLOORS = [
    {
        "errors",
        "gpus",
        "environment",
        "settings",
        "base_models",
        "deterministic",
        "process_tree",
        "host_memory",
        "out_of_memory",
        "transfer",
    },
    {"files"},
    {"weights", "model"},
    {"chat"},
    {"data"},
    {"graphs"},
    {"training", "serving"},
    {"cli", "jobs"},
    {"service"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ONE_DOOR = {
    "deepspeed": {"training/deepspeed_engine.py"},
    "peft": {"model/adapter.py"},
    "bitsandbytes": set(),
    "cog": {"cli/schema.py"},
    "llguidance": {"serving/grammar/json_grammar.py", "serving/grammar/trial.py"},
    "ray": {"service/work/cluster/ray_executor.py"},
    "msgspec": {"weights/adapter/adapter_config.py"},
}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_down():
    num_checked = 0
    for path in SRC.rglob("*.py"):
        name = path.relative_to(SRC).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for module in imported_modules(path):
            if not module.startswith("src."):
                continue
            target = module.split(".")[1]
            if name == "errors" or FLOOR_OF[name] == 0:
                assert FLOOR_OF[target] == 0, f"{path}: {module}"
            else:
                assert target == name or FLOOR_OF[target] < FLOOR_OF[name], f"{path}: {module}"
            num_checked += 1
    assert num_checked > 50


@pytest.mark.parametrize("package", ONE_DOOR)
def test_a_package_has_one_door(package: str):
    users = {
        path.relative_to(SRC).as_posix()
        for path in SRC.rglob("*.py")
        if any(module.split(".")[0] == package for module in imported_modules(path))
    }
    assert users == ONE_DOOR[package]


@pytest.mark.parametrize(
    "module",
    ["src.training.run", "src.jobs.training", "src.cli.client", "src.weights.cache.cache"],
)
def test_the_supervisor_leaves_torch_unloaded(module: str):
    check = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=SRC.parent)


def test_a_folder_holds_ten_files_and_a_file_250_lines():
    files = [path for path in SRC.rglob("*.py") if path.name != "__init__.py"]
    long = {path: n for path in files if (n := len(path.read_text().splitlines())) > 250}
    full = {path: n for path, n in Counter(p.parent for p in files).items() if n > 10}
    assert (long, full) == ({}, {})
