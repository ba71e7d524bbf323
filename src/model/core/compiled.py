"""The functions of a layer compiled by torch.compile (Ansel et al. 2024), where that works."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from src.model.core.attention import Spans
from src.model.core.lora import TrainedUpdate
from src.model.core.proof import are_close
from src.model.core.trained import TrainedDecoder

NUM_TOKENS = 48
"""Of the pass that compiles the layers and proves them."""


def eager_reason(asked: bool | None, *, on_gpu: bool) -> str | None:
    """Return why layers are not compiled, or None where they are; `asked` is `COMPILE`.

    Nothing has to be said of a CPU, where eager steps are as fast.
    """
    if asked is False:
        return "COMPILE=0"
    if asked is None and not on_gpu:
        return ""
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "there is no C compiler, such as gcc, on the PATH"
    if on_gpu and find_spec("triton") is None:
        return "triton is not installed"
    return None


def keep_code_in(folder: Path) -> None:
    """Have the compiler use a folder, unless the operator named another or it is read-only."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    # The compiler names its own default where it was imported before.
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    if os.access(folder, os.W_OK) and named == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def compile_layers(decoder: TrainedDecoder, *, backend: str | Callable = "inductor") -> str | None:
    """Have a decoder's layers run compiled; return why they do not, where that fails or differs.

    All layers share the compiled code, at any number of tokens.
    """
    eager = decoder.before_attention, decoder.after_attention
    expected = _run_layers(decoder)
    decoder.before_attention, decoder.after_attention = (_compile(f, backend) for f in eager)
    reason = find_fault(lambda: are_close(_run_layers(decoder), expected, decoder.dtype))
    if reason:
        decoder.before_attention, decoder.after_attention = eager
    return reason


def find_fault(is_right: Callable[[], bool]) -> str | None:
    """Return why compiled code is not used: its trial fails, or tells that it is not right."""
    try:
        return None if is_right() else "its results differ from those of eager steps"
    except Exception as error:
        error = getattr(error, "inner_exception", error)  # without the compiler's own words
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _compile(function: Callable[..., Any], backend: str | Callable) -> Callable[..., Any]:
    """Return a function compiled for any number of tokens, from two on."""
    compiled = torch.compile(function, backend=backend)

    def call(x: Tensor, *inputs: Any) -> Any:
        if len(x) == 1:  # which would be a variant of its own
            return function(x, *inputs)
        # So would be a first layer, whose input needs no gradient.
        x.requires_grad_(torch.is_grad_enabled())
        for tensor in _rows_of_tokens((x, *inputs)):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(x, *inputs)

    return call


def _rows_of_tokens(value: Any) -> Iterator[Tensor]:
    """Yield the tensors that have a row for each token."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, TrainedUpdate):
        yield from _rows_of_tokens(value.mask)
    elif isinstance(value, tuple):
        for part in value:
            yield from _rows_of_tokens(part)


def _run_layers(decoder: TrainedDecoder) -> list[Tensor]:
    """Return what each layer makes of a random state: with gradients, and in an evaluation."""
    device = decoder.device
    spans = Spans.between((0, NUM_TOKENS), device)
    shape = NUM_TOKENS, decoder.hidden_size
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        states = [torch.randn(shape, device=device).to(decoder.dtype) for _ in decoder.layers]
        results = []
        for is_training in (True, False):
            updates = decoder.updates(NUM_TOKENS, with_dropout=is_training)
            with torch.set_grad_enabled(is_training):
                inputs = [x.clone().requires_grad_(is_training) for x in states]
                outputs = torch.stack(decoder.run_alone(inputs, spans, updates))
                results.append(outputs.detach())
                if is_training:
                    inputs += decoder.parameters
                    results += torch.autograd.grad(outputs.float().square().sum(), inputs)
    return results
