"""What a decoding step would launch, counted on the CPU in the code that inductor generates.

A call of a fused loop or of a library stands for a kernel. What the runner does between the
compiled functions counts by its steps.
"""

import re
import shutil
from typing import Any

import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.models import RANK, TEXTS, random_adapter
from benchmarks.gpu.stage import Stage
from src.cli.tiny_model import make_base_model
from src.model.base_model import linear_shapes, load_base_model
from src.model.core.decoder import Decoder, after_attention, before_attention, open_decoder
from src.model.core.lora import Updates
from src.serving.lora.slots import LoraSlots
from src.serving.model.fused_projection import FusedProjection

NUM_LAYERS, MOST = 32, 480
ROWS = 2
"""For a single one a CPU has loops in place of products."""
ATTENTION = 4
"""Keys and values are written, and two kernels attend."""
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
        "num_layers": 1,
        "num_heads": 2,
        "num_key_value_heads": 2,
    }
    make_base_model(folder, TEXTS, **sizes)
    model = load_base_model(folder, dtype=torch.float32, device=CPU)
    decoder = open_decoder(model, projection=FusedProjection)
    assert isinstance(decoder, Decoder)
    decoder.grow(ROWS)
    slots = LoraSlots(
        decoder.projections,
        max_slots=1,
        max_rows=ROWS,
        like=decoder.like,
        max_bytes=2**30,
        has_fixed_shapes=True,
    )
    adapter = random_adapter(linear_shapes(model), rank=RANK, seed=1, dtype=torch.float32)
    lora = slots.batch([slots.acquire(adapter)] * ROWS)
    stage.record("calls of a decoding step, bare", calls(decoder, Updates()))
    with Steps() as steps:
        updates = lora.of_layer(0)
    stage.record(
        "calls of a decoding step, one adapter",
        calls(decoder, updates) + NUM_LAYERS * steps.count,
        note=f"{NUM_LAYERS} layers; at most {MOST} are asked for; "
        f"{steps.count} a layer bring its pages",
    )


def calls(decoder: Decoder, updates: Updates) -> int:
    """Return what all layers call, whose functions are compiled one by one."""
    (layer,), switches = decoder.layers, decoder.switches
    x = torch.randn(ROWS, layer.o.in_features)
    where = decoder._positions(torch.arange(ROWS))
    rope = where.ropes[layer.rope] if layer.rope is not None else None
    before = x, layer, switches, rope, where.query_growth, updates.qkv
    after = x, torch.randn_like(x), layer, switches, updates
    compiled = generated_calls(before_attention, before) + generated_calls(after_attention, after)
    return NUM_LAYERS * (compiled + ATTENTION)


def generated_calls(function: Any, inputs: tuple[Any, ...]) -> int:
    compiled: Any = torch.compile(function)
    _, codes = run_and_get_code(lambda: compiled(*inputs))
    return sum(len(CALL.findall(code)) for code in codes)


class Steps(TorchDispatchMode):
    """Counts what runs eagerly, views aside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
