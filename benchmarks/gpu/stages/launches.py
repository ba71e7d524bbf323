"""What a decoding step would launch, counted on the CPU in the code that inductor generates.

A call of a fused loop or of a library stands for a kernel. What runs outside the compiled function
counts by its steps.
"""

import re
import shutil
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.models import RANK, TEXTS, random_adapter
from benchmarks.gpu.stage import Stage
from src.cli.tiny_model import make_base_model
from src.model.base_model import linear_shapes, load_base_model
from src.model.core.decoder import Decoder, open_decoder
from src.serving.engine.model_runner import ModelRunner
from src.serving.lora.stacked import LoraBatch
from src.serving.model.compiled import compile_with
from src.serving.model.forward import pass_between
from src.serving.model.fused_projection import FusedProjection

NUM_LAYERS, MOST = 32, 480
ROWS = 2
"""For a single one a CPU has loops in place of products."""
ATTENTION = 2
"""The kernels that attend in a layer."""
CALL = re.compile(
    r"^ {8,}(?:\w+ = )?(?:cpp_fused\w*|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.M
)
CPU = torch.device("cpu")


def run(stage: Stage) -> None:
    if not shutil.which("g++"):
        return stage.record("calls of a decoding step", "left out", note="there is no C++ compiler")
    stage.section(count, stage)


@torch.inference_mode()
def count(stage: Stage) -> None:
    """Record the calls of 32 layers of the shape of a 7B model, only narrower."""
    folder = stage.work / "model-launches"
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "num_layers": 2,
        "num_heads": 2,
        "num_key_value_heads": 2,
    }
    make_base_model(folder, TEXTS, **sizes)
    model = load_base_model(folder, dtype=torch.float32, device=CPU)
    decoder = open_decoder(model, projection=FusedProjection)
    assert isinstance(decoder, Decoder)
    runner = ModelRunner(
        decoder,
        num_slots=ROWS,
        num_pages=2 * ROWS,
        max_seq_len=64,
        num_adapters=1,
        adapter_bytes=2**30,
        has_fixed_shapes=True,
    )
    adapter = random_adapter(linear_shapes(model), rank=RANK, seed=1, dtype=torch.float32)
    lora = runner.lora.batch([runner.lora.acquire(adapter)] * ROWS)
    for name, batch in (("bare", None), ("one adapter", lora)):
        between, around = calls(runner, batch)
        stage.record(
            f"calls of a decoding step, {name}",
            (NUM_LAYERS - 1) * between + around + NUM_LAYERS * ATTENTION,
            note=f"{NUM_LAYERS} layers, {between} between two attentions and {around} around all, "
            f"before the token is drawn; at most {MOST} are asked for with an adapter",
        )


def calls(runner: ModelRunner, lora: LoraBatch | None) -> tuple[int, int]:
    """Return the calls from one attention to the next, and those around all of them."""
    layers, heads = runner._layers, runner._decoder.num_heads
    compiled = compile_with()
    codes: list[str] = []

    def keep_code(*inputs: Any) -> Any:
        _, found = run_and_get_code(lambda: compiled(*inputs))
        codes.extend(found)
        return pass_between(*inputs)

    def leave_out(x: Tensor, mixed: Tensor, *inputs: Any) -> Any:
        return x, ((mixed.unflatten(1, (heads, -1)),), None)

    def step() -> Tensor:
        tokens = torch.arange(ROWS)
        hidden = layers.hidden(
            *(tokens, tokens, tokens[None]), lambda query, *_: query.flatten(1), None, lora
        )
        return runner._scores(hidden, lora)

    layers.pass_between = layers.pass_adapted_between = keep_code
    step()
    layers.pass_between = layers.pass_adapted_between = leave_out
    with Steps() as steps:
        step()
    return sum(len(CALL.findall(code)) for code in codes), steps.count


class Steps(TorchDispatchMode):
    """Counts what runs eagerly, views aside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
