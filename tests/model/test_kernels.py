"""Attention takes the fastest kernel that proves to be right, and each computes the same."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend

from src.model.core.attention import Spans, attend_by_mask, attend_one_by_one
from src.model.core.kernels import (
    Heads,
    Kernel,
    attend,
    attend_in_batch,
    attend_varlen,
    choose_kernel,
    find_fault,
    prove_kernels,
    unsupported_reason,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HEADS = Heads(CPU, torch.float32, 4, 2, 16)
FULL = (2048, 2048)
ON_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the kernels for GPUs run on a GPU alone"
)


@pytest.mark.parametrize(
    ("lengths", "window", "is_plain", "expected"),
    [
        (FULL, None, False, attend_in_batch),
        ((8192,), None, False, attend_in_batch),
        (FULL, 2048, False, attend_in_batch),
        (FULL, 2047, False, attend_varlen),
        ((2048, 1024), None, False, attend_varlen),
        ((1024,), None, False, attend_varlen),  # too short to plan for
        ((2100, 2100), None, False, attend_varlen),  # one of thousands of lengths
        (None, None, False, attend_varlen),
        (FULL, None, True, attend_one_by_one),
        (None, None, True, attend_by_mask),
    ],
)
def test_the_fastest_kernel_that_takes_the_spans_is_chosen(lengths, window, is_plain, expected):
    options = {"sliding_window": window, "is_plain": is_plain}
    assert choose_kernel(lengths, **options, is_right=lambda kernel: True) is expected


def test_a_kernel_that_is_wrong_here_gives_way_to_the_next():
    choose = partial(choose_kernel, sliding_window=None, is_plain=False)
    assert choose(FULL, is_right=lambda kernel: kernel is attend_varlen) is attend_varlen
    assert choose(FULL, is_right=lambda kernel: kernel is attend_in_batch) is attend_in_batch
    assert choose(FULL, is_right=lambda kernel: False) is attend_one_by_one
    assert choose(None, is_right=lambda kernel: kernel is attend_in_batch) is attend_by_mask


def test_a_kernel_is_not_tried_for_spans_that_it_does_not_take():
    """Its plan would take a second when an engine loads that never uses it."""
    tried: list[Kernel] = []
    choose_kernel(
        (8,), sliding_window=None, is_plain=False, is_right=lambda k: bool(tried.append(k))
    )
    assert tried == [attend_varlen]


@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
def test_one_batch_of_equal_spans_computes_what_a_call_for_each_does(num_key_heads: int):
    in_batch = partial(attend_in_batch, backend=SDPBackend.MATH)
    heads = HEADS._replace(num_key_heads=num_key_heads)
    assert find_fault(in_batch, heads, (9, 9, 9)) is None
    # Uneven spans of the same number of tokens would be noticed.
    fault = find_fault(lambda *x, **_: in_batch(*x[:3], spans(9, 9, 9)), heads, (8, 10, 9))
    assert fault == "its results differ from those in float32"


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_masked_call_computes_what_a_call_for_each_span_does(window, dtype):
    heads = HEADS._replace(dtype=dtype)
    assert find_fault(attend_by_mask, heads, (31, 17, 1), window=window) is None


def spans(*lengths: int) -> Spans:
    return Spans.between((0, *torch.tensor(lengths).cumsum(0).tolist()), CPU)


def test_wrong_output_and_wrong_gradients_are_both_found():
    def blind(*inputs, **_):
        """Let spans see each other."""
        return attend_by_mask(*inputs[:3], spans(48))

    def halved(query, key, value, *rest, **options):
        """Lose half of the gradient of the keys."""
        return attend_by_mask(query, (key + key.detach()) / 2, value, *rest, **options)

    def not_finite(*inputs, **options):
        return attend_by_mask(*inputs, **options) * torch.nan

    def unscaled(*inputs, scale, **options):
        """Take no scale but the usual one."""
        return attend_by_mask(*inputs, **options)

    for kernel in (blind, halved, not_finite, unscaled):
        assert find_fault(kernel, HEADS, (31, 17)) == "its results differ from those in float32"


def test_the_answer_depends_on_no_generator_nor_on_gradients_being_off():
    state = torch.get_rng_state()
    with torch.no_grad():
        assert find_fault(attend_by_mask, HEADS, (31, 17)) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_it_can_be_tried_within_a_layer_that_is_recomputed():
    """What the trial keeps for its own backward pass is none of the layer's."""
    is_tried = False

    def layer(x: torch.Tensor) -> torch.Tensor:
        nonlocal is_tried
        if not is_tried:
            assert find_fault(attend_by_mask, HEADS, (31, 17)) is None
        is_tried = True
        return x.sin().square()

    x = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, (2 * x).sin().detach())


def test_why_a_kernel_fails_is_one_line():
    reason = find_fault(attend_in_batch, HEADS, (16, 16))
    assert reason is not None
    assert reason.startswith("RuntimeError: No viable backend")
    assert "\n" not in reason
    assert unsupported_reason(attend_in_batch, HEADS) == "it runs on GPUs"


def test_nothing_is_tried_on_a_cpu():
    assert prove_kernels(HEADS, None) is None


@ON_GPU
@pytest.mark.parametrize("kernel", [attend_in_batch, attend_varlen])
def test_each_kernel_proves_itself_on_a_gpu(kernel: Kernel):
    assert unsupported_reason(kernel, Heads(GPU, torch.bfloat16, 32, 8, 128)) is None


def test_deterministic_runs_keep_to_varlen():
    """Torch refuses the backward pass of cuDNN attention, which adds up in any order."""
    torch.use_deterministic_algorithms(True)
    try:
        reason = unsupported_reason(attend_in_batch, HEADS._replace(device=GPU))
    finally:
        torch.use_deterministic_algorithms(False)
    assert reason == "its backward pass adds up in any order"


def test_attend_takes_all_options_without_a_gpu():
    query, key = torch.randn(7, 4, 16), torch.randn(7, 2, 16)
    options = {"scale": 0.3, "sliding_window": 2, "score_cap": 5.0}
    found = attend(query, key, key, spans(4, 3), **options)
    torch.testing.assert_close(found, attend_by_mask(query, key, key, spans(4, 3), **options))
