"""The host never waits for the device within a pass, so it runs ahead over the micro-batches."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from src.data.collate import Batch, collate
from src.data.packing import Span
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import TokenizedExample
from src.graphs.passes import PassGraphs
from src.model.adapter import adapter_parameters, attach_adapter, flatten, resolve_target_modules
from src.model.core.attention import Spans
from src.model.core.decoder import Decoder, open_decoder
from src.model.core.layers import Projection
from src.model.core.trained import TrainedDecoder
from src.model.loss import SummedLoss
from src.model.transformers_attention import ISOLATED, NO_MASK
from src.training.replicated import Accumulator
from tests.model.batches import build_model, make_batch
from tests.serving.fake_graph import FakeCapture

DEVICE = torch.device("meta")
"""It computes nothing: what reads a number of it, as a GPU would have to be waited for, fails."""
LENGTHS = (30, 4, 9, 17)
SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8,
}  # fmt: skip
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique")


class NoWaiting(TorchDispatchMode):
    """Fails where the host reads what the device has computed, or copies and waits for the end."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        has_mask = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:])
        )
        if has_mask or name.startswith(READS):
            raise AssertionError(f"{name} waits for the device")
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if waits and source.device != result.device:
                raise AssertionError("a copy waits for the device")
        return result


@pytest.fixture
def data(tmp_path: Path) -> TokenDataset:
    examples = [
        TokenizedExample(ids, [*ids[1:], 1], [True] * length)
        for length in LENGTHS
        for ids in (list(range(3, 3 + length)),)
    ]
    write_tokens(enumerate(examples, start=1), tmp_path / "data")
    return TokenDataset(tmp_path / "data", name="data.jsonl")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("is_ours", [False, True])
def test_no_pass_waits_for_the_device(data: TokenDataset, model_type: str, is_ours: bool):
    config = AutoConfig.for_model(model_type, **SIZES)
    with DEVICE:
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=ISOLATED)
    names = resolve_target_modules(model, "all-linear")
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.1, seed=0)

    def make_batch(micro_batch: MicroBatch, dataset: TokenDataset) -> Batch:
        return collate(micro_batch, dataset, prompt_loss_weight=0.5).to(DEVICE)

    loss, decoder = SummedLoss(model), open_decoder(model)
    if is_ours:
        assert isinstance(decoder, Decoder)
        loss.decoder = TrainedDecoder(model, decoder.switches, Projection)
    accumulator = Accumulator(
        loss,
        [parameter for _, parameter in adapter_parameters(model)],
        make_batch=make_batch,
        recomputed_layers=1,
        log=lambda line: None,
    )
    spans = [Span(start, stop) for start, stop in pairwise(data.offsets.tolist())]
    with NoWaiting():
        sums = accumulator.sum([(tuple(spans[:3]),), (tuple(spans[3:]),)], data)
    assert sums.gradient.device == DEVICE


def test_no_replayed_pass_waits_for_the_device(base_dir: Path):
    loss = build_model(base_dir)
    assert loss.use_decoder() is None
    parameters = [parameter for _, parameter in adapter_parameters(loss.model)]

    def run(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        total = loss(**inputs)
        return total, flatten(torch.autograd.grad(total, parameters))

    graphs = PassGraphs(run, capture := FakeCapture(), print)
    batch = make_batch(5, 19, 1, 33)
    graphs.run(batch)  # captures, and compares with a plain pass
    with NoWaiting():
        graphs.run(batch)
    assert capture.num_replays == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda ids: bool((ids != 1).all()),
        lambda ids: ids[ids != 1],
        lambda ids: torch.tensor([1]).to(DEVICE),
        lambda ids: torch.zeros(1, device=DEVICE).copy_(torch.tensor([1])),
    ],
)
def test_what_waits_is_noticed(wait: Callable[[torch.Tensor], Any]):
    with pytest.raises((AssertionError, RuntimeError)), NoWaiting():
        wait(torch.zeros(3))


def test_the_offsets_of_spans_are_sent_without_waiting():
    with NoWaiting():
        assert Spans.between((0, 3, 5), DEVICE).offsets.device == DEVICE
    assert NO_MASK.dim() == 4
