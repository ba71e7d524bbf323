"""A step where each rank holds the base model.

Out of memory is an adjustment: the sums stay what they are. The kernel sets the limit here.
"""

import ctypes
import multiprocessing
import resource
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from src.cli.tiny_model import make_base_model
from src.data.collate import collate
from src.data.packing import Span
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import TokenizedExample
from src.errors import UserError
from src.host_memory import limit_process_memory
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import load_base_model
from src.model.loss import SummedLoss
from src.out_of_memory import release_memory
from src.training.replicated import Accumulator
from tests.training.ranks import run_ranks

LENGTHS = (700, 40, 300, 500, 510, 20)
NUM_LAYERS = 6
M_MMAP_THRESHOLD = -3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=192, intermediate_size=512, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=4096,
        initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    examples = [
        TokenizedExample(ids, [*ids[1:], 1], [True] * length)
        for length in LENGTHS
        for ids in (torch.randint(3, 500, (length,)).tolist(),)
    ]
    numbered = enumerate(examples, start=1)
    write_tokens(numbered, tmp_path / "data")
    return tmp_path


class Case(NamedTuple):
    """Which examples to sum in how many megabytes."""

    megabytes: int | None
    rows: slice
    is_training: bool = True


Outcome = tuple[float | str, Any, str]
"""Loss or error, gradient, and what was logged."""


def sum_gradients(folder: Path, cases: list[Case], connection: Any) -> None:
    """Send the outcome of a micro-batch for each limit in megabytes."""
    torch.set_num_threads(1)
    # Whatever is freed goes back at once, so that the outcome does not hang on gaps in the heap.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    for case in cases:
        connection.send(sum_in_little_memory(folder, case))


def sum_in_little_memory(folder: Path, case: Case) -> Outcome:
    model = load_base_model(folder / "base", dtype=torch.float32, device=torch.device("cpu"))
    names = resolve_target_modules(model, "all-linear")
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for _, parameter in adapter_parameters(model)]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    model.train()
    data = TokenDataset(folder / "data", name="data.jsonl")
    logged: list[str] = []
    loss = SummedLoss(model)
    assert loss.use_decoder() is None
    accumulator = Accumulator(
        loss,
        parameters,
        make_batch=lambda batch, data: collate(batch, data, prompt_loss_weight=0.0),
        recomputed_layers=0,
        log=logged.append,
    )
    spans = [Span(a, b) for a, b in pairwise(data.offsets.tolist())]
    short: MicroBatch = ((spans[1],),)
    # Whatever a first pass loads has its room before the limit.
    accumulator.sum([short], data)
    release_memory()
    if case.megabytes is not None:
        limit_process_memory(case.megabytes * 1e6)
    try:
        with torch.set_grad_enabled(case.is_training):
            # An example that fits goes first: what follows must not lose it.
            sums = accumulator.sum([short, tuple((span,) for span in spans[case.rows])], data)
    except UserError as error:
        return str(error), None, " ".join(logged)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    return float(sums.loss), sums.gradient.numpy(), " ".join(logged)


@pytest.fixture
def outcomes(folder: Path):
    """Return a function that runs the cases in a process of their own."""

    def run(*cases: Case) -> list[Outcome]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=sum_gradients, args=(folder, list(cases), theirs))
        process.start()
        theirs.close()
        try:
            return [ours.recv() for _ in cases]
        finally:
            process.join()

    return run


def test_less_memory_gives_the_same_sums(outcomes):
    everything = slice(None)
    little, half, plenty = outcomes(
        Case(36, everything), Case(100, everything), Case(None, everything)
    )
    loss, gradients, logged = plenty
    assert logged == ""
    for found, found_gradients, _ in (half, little):
        assert found == pytest.approx(loss, rel=1e-5)
        assert abs(found_gradients - gradients).max() <= 1e-5 * abs(gradients).max()
    assert "2,070 tokens at a time: from now on at most 1,035" in half[2]
    assert "recomputed" not in half[2]
    assert "2,070 tokens at a time: from now on at most 1,035" in little[2]
    assert f"of {NUM_LAYERS} layers are recomputed" in little[2]


def test_an_example_that_fits_in_no_way_is_named(outcomes):
    (error, _, _), (short, _, _) = outcomes(Case(12, slice(0, 1)), Case(12, slice(1, 2)))
    assert isinstance(error, str)
    assert error.startswith("data.jsonl, line 1: out of memory with this example of 700 tokens")
    length = int(error.split("at most about ")[1].split()[0])
    assert 40 < length < 700
    # What the error promises holds.
    assert isinstance(short, float)


def test_memory_that_runs_out_in_a_validation_leaves_the_training_as_it_is(outcomes):
    """Layers that are recomputed make training slower, and a validation has no use for them."""
    ((error, _, logged),) = outcomes(Case(4, slice(0, 1), is_training=False))
    assert isinstance(error, str)
    assert error.startswith("data.jsonl, line 1: out of memory with this example of 700 tokens")
    assert "tokens, alone; expected at most about" in error
    assert logged == ""


def count_calls() -> None:
    """Print the number of tensor operations in DeepSpeed's part of each step."""
    from src.training.replicated import ReplicatedTrainer

    apply = ReplicatedTrainer._apply

    def counted(self: Any, gradient: torch.Tensor) -> None:
        with torch.profiler.profile() as profile:
            apply(self, gradient)
        num_matrices = len(self._adapter.split(self._adapter.flat))
        calls = Counter(event.name for event in profile.events() or ())
        num_calls = sum(n for name, n in calls.items() if name.startswith(("aten::", "c10d::")))
        print(f"counted {num_matrices} {num_calls}\n", end="", flush=True)

    ReplicatedTrainer._apply = counted


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_calls_of_deepspeeds_step_do_not_grow_with_the_matrices(
    make_settings, tmp_path: Path, num_processes: int
):
    """Each costs time of the CPU, in which a GPU waits."""
    counted: list[tuple[int, list[int]]] = []
    for num_layers in (1, 4):
        base, run_dir = tmp_path / f"base-{num_layers}", tmp_path / f"run-{num_layers}"
        run_dir.mkdir()
        make_base_model(
            base, ["What is the colour of number 7?"] * 50, vocab_size=300, hidden_size=32,
            num_layers=num_layers, num_heads=2, num_key_value_heads=1, max_seq_len=128,
        )  # fmt: skip
        settings = make_settings(
            base_model=str(base), base_model_dir=str(base), max_steps=3, run_validation=False
        )
        run_ranks(settings, run_dir, num_processes=num_processes, prepare=count_calls)
        lines = (run_dir / "log").read_text().splitlines()
        found = [list(map(int, line.split()[1:])) for line in lines if line.startswith("counted")]
        counted.append((found[0][0], sorted(num_calls for _, num_calls in found)))
    (few_matrices, few_calls), (many_matrices, many_calls) = counted
    assert (few_matrices, many_matrices) == (14, 56)
    assert few_calls == many_calls
    assert len(few_calls) == 3 * num_processes
    assert few_calls[0] > 0
