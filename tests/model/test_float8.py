"""Products with frozen weights in float8: what they compute, and what they lose."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.errors import UserError
from src.model.core import float8
from src.model.core.float8 import (
    FLOAT8,
    MAX_ERROR,
    Float8Weight,
    check_device,
    convert,
    product_error,
    quantize,
)
from tests.model.batches import build_model, gradients, make_batch

CPU = torch.device("cpu")
HALF_STEP = 2**-4
"""A float8 number has three bits after its first: rounding to it is off by at most a 16th."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_number_is_rounded_by_at_most_a_sixteenth(size: float):
    x = draw(32, 256) * size
    numbers, scale = quantize(x)
    assert numbers.dtype == FLOAT8
    assert scale.dtype == torch.float32
    off = (numbers.float() * scale - x).abs()
    # Where a number vanishes beside the largest of its row, steps are of one size.
    assert (off <= torch.maximum(HALF_STEP * x.abs(), 2**-10 * scale)).all()
    assert off.max() > 0


def test_the_largest_number_of_a_row_stays_exact():
    x = torch.tensor([[448.0, 1.0], [-448.1, 1.0], [3e-9, 0.0], [-1e30, 1.0], [0.0, 0.0]])
    numbers, scale = quantize(x)
    torch.testing.assert_close((numbers.float() * scale)[:, 0], x[:, 0], rtol=1e-6, atol=0)


def test_an_outlier_costs_its_own_row_alone():
    x, weight = draw(4, 128), draw(64, 128, seed=1)
    x[2, 7] = 1e7
    products = Float8Weight.of(weight, for_training=False).product(x)
    exact = x @ weight.T
    for row in range(4):
        assert relative(products[row], exact[row]) < MAX_ERROR
    numbers, _ = quantize(x)
    assert numbers.float().count_nonzero(1).tolist() == [128, 128, 1, 128]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 3, 50])
@pytest.mark.parametrize(("size_in", "size_out"), [(64, 192), (192, 64), (16, 16)])
def test_a_product_is_that_of_the_rounded_numbers(
    size_in: int, size_out: int, num_tokens: int, dtype: torch.dtype
):
    weight, x = draw(size_out, size_in).to(dtype), draw(num_tokens, size_in, seed=1).to(dtype)
    frozen = Float8Weight.of(weight, for_training=True)
    numbers, scale = quantize(x)
    expected = (numbers.float() * scale) @ frozen.dense(torch.float32).T
    product = frozen.product(x)
    assert product.dtype == dtype
    rounding = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative(product.float(), expected) < rounding
    exact = x.float() @ weight.float().T
    assert rounding < relative(product.float(), exact) < 2 * MAX_ERROR


@pytest.mark.parametrize("num_tokens", [1, 50])
def test_the_gradient_is_that_of_the_rounded_weight(num_tokens: int):
    weight, x = draw(192, 64), draw(num_tokens, 64, seed=1).requires_grad_()
    frozen = Float8Weight.of(weight, for_training=True)
    assert frozen.columns is not None
    assert frozen.column_scale is not None
    grad = draw(num_tokens, 192, seed=2)
    (gradient,) = torch.autograd.grad(frozen.product(x), x, grad)
    numbers, scale = quantize(grad)
    expected = (numbers.float() * scale) @ (frozen.columns.float() * frozen.column_scale).T
    assert relative(gradient, expected) < 1e-5
    assert 1e-3 < relative(gradient, grad @ weight) < MAX_ERROR


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_multiplies_in_float8(has_bias: bool):
    layer, x = nn.Linear(64, 48, bias=has_bias).requires_grad_(False), draw(2, 5, 64)
    exact = layer(x)
    convert(layer, for_training=True)
    assert list(dict(layer.named_parameters())) == ["bias"] * has_bias
    assert 1e-3 < relative(layer(x), exact) < MAX_ERROR


def test_both_orders_hold_the_same_weight():
    """Each rounds a number by a sixteenth at most, beside the largest of its row or column."""
    weight = draw(96, 160)
    weight[:, 3] *= 100
    weight[5] /= 1000
    frozen = Float8Weight.of(weight, for_training=True)
    assert frozen.columns is not None
    assert frozen.column_scale is not None
    by_columns = (frozen.columns.float() * frozen.column_scale).T
    off = (frozen.dense(torch.float32) - by_columns).abs()
    step = torch.maximum(frozen.scale, frozen.column_scale.T)
    assert (off <= 2 * HALF_STEP * weight.abs() + 2**-9 * step).all()
    assert off.max() > 0


def test_zeros_stay_zeros():
    frozen = Float8Weight.of(torch.zeros(32, 48), for_training=True)
    assert frozen.product(draw(5, 48)).eq(0).all()
    frozen = Float8Weight.of(draw(32, 48), for_training=True)
    x = torch.zeros(5, 48, requires_grad=True)
    product = frozen.product(x)
    (gradient,) = torch.autograd.grad(product, x, torch.zeros_like(product))
    assert product.eq(0).all()
    assert gradient.eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_shows(bad: float):
    x = draw(3, 48)
    x[1, 2] = bad
    product = Float8Weight.of(draw(32, 48), for_training=False).product(x)
    assert not product[1].isfinite().any()
    assert product[[0, 2]].isfinite().all()


def test_two_orders_take_the_memory_of_bfloat16():
    frozen = Float8Weight.of(draw(256, 512), for_training=True)
    served = Float8Weight.of(draw(256, 512), for_training=False)
    sizes = [
        sum(t.nbytes for t in vars(each).values() if t is not None) for each in (frozen, served)
    ]
    assert sizes == [2 * 256 * 512 + 4 * (256 + 512), 256 * 512 + 4 * 256]


def test_a_compiler_takes_it_whole():
    frozen = Float8Weight.of(draw(64, 48), for_training=True)

    def scaled_product(x: Tensor) -> Tensor:
        return frozen.product(x * 2).square().sum()

    x = draw(5, 48).requires_grad_()
    compiled = torch.compile(scaled_product, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(scaled_product(x), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("num_tokens", [1, 17, 256])
def test_a_gpu_takes_the_layout(num_tokens: int):
    """For a tensor without data torch checks the sizes and strides that a GPU needs."""
    x = torch.empty(num_tokens, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(48, 64, device="meta", dtype=torch.bfloat16)
    product = Float8Weight.of(weight, for_training=True).product(x)
    product.backward(torch.empty_like(product), retain_graph=True)
    if num_tokens > 1:
        product.backward(product.detach().T.contiguous().T)
    assert product.dtype == torch.bfloat16
    assert x.grad is not None
    with pytest.raises(RuntimeError, match="divisible by 16"):
        Float8Weight.of(weight[:, :40], for_training=True).product(x[:, :40])


def test_a_device_that_cannot_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    check_device(CPU)
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match=r"^BASE_WEIGHTS: .* A100.* capability is 8.0, and 8.9 is"):
        check_device(gpu)
    # From here on the products of the CPU stand for those of a GPU.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(float8, "product_error", lambda device, n: product_error(CPU, n))
    check_device(gpu)
    of = Float8Weight.of

    def of_another(weight: Tensor, *, for_training: bool) -> Float8Weight:
        return of(weight.roll(1, 0), for_training=for_training)

    monkeypatch.setattr(Float8Weight, "of", of_another)
    with pytest.raises(UserError, match=r"computes products that are \d+% off$"):
        check_device(gpu)


def test_a_model_learns_beside_float8_as_without(base_dir: Path):
    module = build_model(base_dir)
    assert module.use_decoder() is None
    assert module.decoder is not None
    batch = make_batch(5, 19, 33)
    exact_loss, exact = gradients(module, [batch])
    line = module.decoder.hold_in_float8(for_training=True)
    assert line == "float8: 12 of the 14 frozen products of all layers"
    loss, found = gradients(module, [batch])
    assert 1e-6 < abs(loss / exact_loss - 1) < 0.02
    for name, gradient in exact.items():
        assert 1e-3 < relative(found[name], gradient) < 0.3, name
    # Transformers' own layers, which answer the validation prompt, compute the same.
    with torch.no_grad():
        theirs = module.model(batch.input_ids, position_ids=batch.position_ids).logits
    assert theirs.isfinite().all()
