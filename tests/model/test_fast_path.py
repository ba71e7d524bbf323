"""Each piece of the fast path computes what transformers and PEFT compute."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from src.environment import FAST_PATH_PARTS
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.attention import Spans, attend, attend_one_by_one, varlen_unsupported_reason
from src.model.base_model import dense_weight, keep_dequantized, load_base_model, recompute_layers
from src.model.elementwise import gate, gate_backward, normalize, rotate
from src.model.fast_path import use_fast_path
from src.model.loss import SummedLoss
from src.model.projections import Projection, _Project, _ProjectGated
from tests.model.batches import assert_same, build_model, gradients, make_batch, run

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=24),
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
}


@pytest.fixture(params=CONFIGS)
def any_base_dir(request, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_all_parts_together_are_transformers_and_peft(any_base_dir: Path):
    module = build_model(any_base_dir)
    batch = make_batch(5, 19, 1, 33)
    plain = gradients(module, [batch])
    assert use_fast_path(module.model) == []
    fast = gradients(module, [batch])
    assert_same(plain, fast)
    # The comparison would notice a part that is left out or done twice.
    norm = module.model.get_decoder().layers[1].post_attention_layernorm
    norm.forward = lambda x: x * 1.01
    assert gradients(module, [batch])[0] != pytest.approx(plain[0], rel=1e-5)


@pytest.mark.parametrize("part", FAST_PATH_PARTS)
def test_each_part_can_be_left_out(base_dir: Path, part: str):
    module = build_model(base_dir)
    batch = make_batch(5, 19)
    plain = gradients(module, [batch])
    assert use_fast_path(module.model, off={part}) == [f"fast path: {part} is off, as asked"]
    assert_same(plain, gradients(module, [batch]))


def test_layers_without_adapter_and_recomputed_ones(base_dir: Path):
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    attach_adapter(
        model, target_modules=["q_proj", "down_proj"], rank=4, alpha=8, dropout=0.0, seed=0
    )
    for _, parameter in adapter_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    module, batch = SummedLoss(model), make_batch(5, 19)
    plain = gradients(module, [batch])
    assert len(plain[1]) == 2 * 2 * 2
    use_fast_path(model)
    assert_same(plain, gradients(module, [batch]))
    for count in (1, 2, 0):
        recompute_layers(model, count)
        model.train()
        calls = count_calls(model.get_decoder().layers[0].mlp)
        assert_same(plain, gradients(module, [batch]))
        assert len(calls) == (2 if count else 1)


def count_calls(module: torch.nn.Module) -> list[int]:
    """Return a list that grows by one with each later call of the module."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_other_architectures_have_fused_adapters(tmp_path: Path):
    from transformers import GPTNeoXConfig

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    module = build_model(tmp_path / "base")
    batch = make_batch(5, 19)
    plain = gradients(module, [batch])
    lines = use_fast_path(module.model)
    assert lines == ["fast path: only lora is on: gpt_neox is not known to it"]
    assert_same(plain, gradients(module, [batch]))


def test_in_bfloat16_the_error_is_that_of_bfloat16(base_dir: Path):
    exact_module = build_model(base_dir)
    batch = make_batch(5, 19, 33)
    exact = gradients(exact_module, [batch])
    errors = []
    for is_fast in (False, True):
        module = build_model(base_dir).to(torch.bfloat16)
        if is_fast:
            use_fast_path(module.model)
        found = gradients(module, [batch])
        assert found[0] == pytest.approx(exact[0], rel=5e-3)
        errors.append(
            sum(float((found[1][name].float() - g).norm()) for name, g in exact[1].items())
        )
    assert 0 < errors[1] < 1.1 * errors[0]


def test_4_bit_layers_are_fused_and_may_be_kept_unpacked(base_dir: Path):
    module = build_model(base_dir, in_4bit=True)
    batch = make_batch(5, 19)
    plain = gradients(module, [batch])
    assert use_fast_path(module.model) == []
    assert_same(plain, gradients(module, [batch]))

    model = load_base_model(base_dir, dtype=torch.float32, device=CPU, in_4bit=True)
    packed = {name: dense_weight(m) for name, m in model.named_modules() if is_4bit(m)}
    assert len(packed) == 14
    keep_dequantized(model)
    assert not any(is_4bit(m) for m in model.modules())
    for name, weight in packed.items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    attach_adapter(
        model, target_modules=resolve_target_modules(model, "all-linear"),
        rank=4, alpha=8, dropout=0.0, seed=0,
    )  # fmt: skip
    unpacked = SummedLoss(model)
    theirs = dict(adapter_parameters(module.model))
    for name, parameter in adapter_parameters(model):
        parameter.data.copy_(theirs[name].data)
    use_fast_path(model)
    assert_same(plain, gradients(unpacked, [batch]))


def is_4bit(module: torch.nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def test_dropout_is_dropout_of_the_adapters_input():
    """With the same mask, the fused steps are the sum of their parts, forward and backward."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((7, 6), (7, 6), (2, 6), (5, 2), (2, 6), (4, 2))
    ]
    x, up, *loras = tensors
    bases = [torch.nn.Linear(6, size).double().requires_grad_(False) for size in (5, 4)]
    mask = torch.rand(7, 6) > 0.5
    one = Projection(bases[0], *loras[:2], scale=3.0, dropout=0.5)  # type: ignore[arg-type]
    other = Projection(bases[1], *loras[2:], scale=1.0, dropout=0.5)  # type: ignore[arg-type]

    def plain(inputs: torch.Tensor, p: Projection) -> torch.Tensor:
        assert p.lora_A is not None
        assert p.lora_B is not None
        return p.base(inputs) + p.scale * ((inputs * mask) @ p.lora_A.T @ p.lora_B.T)

    found = _Project.apply(x, (one, other), mask, *loras)
    expected = (plain(x, one), plain(x, other))
    compare(found, expected, [x, *loras])
    gated = _ProjectGated.apply(x, up, one, mask, *loras[:2])
    expected = plain(torch.nn.functional.silu(x) * up, one)
    compare([gated], [expected], [x, up, *loras[:2]])


def compare(found, expected, leaves) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    upstream = [torch.randn_like(one) for one in found]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    )


def test_dropout_draws_what_it_should(base_dir: Path):
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    names = resolve_target_modules(model, "all-linear")
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.5, seed=0)
    for name, parameter in adapter_parameters(model):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    module, batch = SummedLoss(model), make_batch(40)
    use_fast_path(model)
    with torch.no_grad():
        model.eval()
        without = float(run(module, batch))
        assert float(run(module, batch)) == without
        model.train()
        drawn = [float(run(module, batch)) for _ in range(30)]
    assert len(set(drawn)) == 30
    assert sum(drawn) / 30 == pytest.approx(without, rel=0.02)


def test_the_small_steps_have_the_gradients_that_autograd_finds():
    torch.manual_seed(0)
    x = torch.randn(6, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    angle = torch.randn(6, 1, 4, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))
    # The norm's statistics are float32, as in transformers.
    single = x.detach().float().requires_grad_()
    plain = torch.nn.functional.rms_norm(single, (8,), weight.float(), 1e-5)
    compare([normalize(single, weight.float(), 1e-5)], [plain], [single])
    up = torch.randn_like(x, requires_grad=True)
    product = gate(x.detach().clone().requires_grad_(), up)
    upstream = torch.randn_like(product)
    expected = torch.autograd.grad(torch.nn.functional.silu(x) * up, (x, up), upstream)
    found = gate_backward(upstream.clone(), x.detach(), up.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 16])
def test_one_kernel_for_all_spans_is_a_call_for_each(window: int | None):
    device = torch.device("cuda")
    assert varlen_unsupported_reason(device, torch.bfloat16) is None
    spans = Spans.between((0, 7, 8, 300), device)
    options = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
    leaves = [torch.randn(300, heads, 64, **options) for heads in (8, 2, 2)]
    found, expected = (
        way(*leaves, spans, sliding_window=window) for way in (attend, attend_one_by_one)
    )
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        rtol=2e-2,
        atol=2e-2,
    )
