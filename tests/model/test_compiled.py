"""Compiled layers learn what eager ones learn, and few variants serve a run."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from src.graphs.passes import PassGraphs
from src.model.adapter import FlatAdapter, adapter_parameters, flatten
from src.model.core import compiled
from src.model.core.compiled import compile_layers, eager_reason, keep_code_in
from src.model.loss import SummedLoss
from tests.model.batches import assert_same, build_model, bytes_kept, gradients, make_batch, run
from tests.model.compiler import BACKEND, num_variants
from tests.model.families import make_family
from tests.serving.fake_graph import FakeCapture

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def build(folder: Path, *, dropout: float = 0.3, in_4bit: bool = False) -> SummedLoss:
    module = build_model(folder, in_4bit=in_4bit)
    for layer in module.modules():
        if isinstance(drops := getattr(layer, "lora_dropout", None), nn.ModuleDict):
            drops.update({name: nn.Dropout(dropout) for name in drops})
    assert module.use_decoder() is None
    return module.train()


def learned(module: SummedLoss, *lengths: int) -> tuple[float, dict[str, torch.Tensor]]:
    batch = make_batch(*lengths)
    torch.manual_seed(3)
    return gradients(module, [batch])


@pytest.mark.parametrize(
    ("family", "num_expected"),
    [("llama", 4), ("smollm3", 6), ("4-bit llama", 4), ("gpt_oss", 4), ("qwen3_5_text", 8)],
)
def test_all_layers_and_sizes_share_few_variants(tmp_path: Path, family: str, num_expected: int):
    """Two functions, with and without gradient; twice the first where some layers have no rope.

    Twice both where some have no attention.
    """
    make_family(tmp_path / "base", family.removeprefix("4-bit "))
    module = build(tmp_path / "base", in_4bit=family.startswith("4-bit"))
    sizes = (5, 19, 1, 33), (7, 40), (2,), (200,)
    expected = [learned(module, *lengths) for lengths in sizes]
    assert module.decoder is not None
    assert compile_layers(module.decoder, backend=BACKEND) is None
    assert num_variants() == num_expected
    FlatAdapter(adapter_parameters(module.model))  # as in a training
    for lengths, eager in zip(sizes, expected, strict=True):
        assert_same(learned(module, *lengths), eager)
    with torch.no_grad():
        run(module.eval(), make_batch(9, 9))
    assert num_variants() == num_expected
    # The count would notice another variant.
    with torch.no_grad():
        run(module.train(), make_batch(9, 9))
    assert num_variants() > num_expected


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "olmo2"])
def test_compiled_layers_keep_no_more_than_eager_ones(tmp_path: Path, family: str):
    """So the plan counts both alike; dropout is the same draw in both passes."""
    make_family(tmp_path, family)
    module, batch = build(tmp_path), make_batch(60, 60, 8)
    eager, expected = bytes_kept(module, batch), learned(module, 60, 60, 8)
    assert module.decoder is not None
    assert compile_layers(module.decoder, backend=BACKEND) is None
    assert 0.8 * eager < bytes_kept(module, batch) < 1.01 * eager
    assert_same(learned(module, 60, 60, 8), expected)


def test_a_captured_pass_of_compiled_layers_learns_what_an_eager_one_learns(base_dir: Path):
    module = build(base_dir, dropout=0.0)
    expected = learned(module, 60, 60, 8)
    assert module.decoder is not None
    assert compile_layers(module.decoder, backend=BACKEND) is None
    parameters = dict(adapter_parameters(module.model))

    def plain(inputs) -> tuple[torch.Tensor, torch.Tensor]:
        loss = module(**inputs)
        return loss.detach(), flatten(torch.autograd.grad(loss, list(parameters.values())))

    lines: list[str] = []
    graphs = PassGraphs(plain, capture := FakeCapture(), lines.append)
    for _ in range(2):
        loss, gradient = graphs.run(make_batch(60, 60, 8))
    assert (lines, capture.num_replays, num_variants()) == ([], 2, 4)
    assert float(loss) == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(
        gradient, flatten(expected[1][name] for name in parameters), rtol=1e-4, atol=1e-5
    )


def test_a_compiler_that_fails_leaves_eager_layers(base_dir: Path):
    module = build(base_dir)
    expected = learned(module, 5, 19)

    def fails(graph, inputs):
        raise OSError("no space left\nmore")

    assert module.decoder is not None
    reason = compile_layers(module.decoder, backend=fails)
    assert reason == "OSError: no space left"
    assert_same(learned(module, 5, 19), expected)


def test_a_compiler_that_errs_is_noticed(base_dir: Path):
    module = build(base_dir)
    expected = learned(module, 5, 19)

    def errs(graph, inputs):
        return lambda *inputs: [x * 1.01 for x in graph.forward(*inputs)]

    assert module.decoder is not None
    assert compile_layers(module.decoder, backend=errs) == (
        "its results differ from those of eager steps"
    )
    assert_same(learned(module, 5, 19), expected)


def test_what_the_compiler_needs_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name == "gcc" or None)
    assert eager_reason(None, on_gpu=False) == ""
    assert eager_reason(True, on_gpu=False) is None
    assert eager_reason(False, on_gpu=True) == "COMPILE=0"
    assert eager_reason(None, on_gpu=True) == "triton is not installed"
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    assert eager_reason(None, on_gpu=True) is None
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert eager_reason(None, on_gpu=True) == "there is no C compiler, such as gcc, on the PATH"


def test_compiled_code_is_kept_where_the_operator_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    environ: dict[str, str] = {"TORCHINDUCTOR_CACHE_DIR": default_cache_dir()}
    monkeypatch.setattr(compiled.os, "environ", environ)
    (tmp_path / "file").write_text("")
    keep_code_in(tmp_path / "file" / "no")
    assert environ == {"TORCHINDUCTOR_CACHE_DIR": default_cache_dir()}
    keep_code_in(tmp_path / "a" / "b")
    keep_code_in(tmp_path / "another")
    assert environ == {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "a" / "b")}
