"""Experts by groups compute what all of them do one by one, and a row keeps to itself."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from src.model.core.blocks.experts import Experts, mix_experts
from src.model.core.families.table import switches_of
from src.model.core.layers import ACTIVATIONS
from tests.model.families import CONFIGS

SIZE, INNER, NUM = 16, 24, 6


def draw_experts(**options) -> Experts:
    torch.manual_seed(0)
    experts = Experts(
        router=torch.randn(NUM, SIZE), router_bias=torch.randn(NUM),
        gate_up=torch.randn(NUM, SIZE, 2 * INNER), gate_up_bias=torch.randn(NUM, 2 * INNER),
        down=torch.randn(NUM, INNER, SIZE), down_bias=torch.randn(NUM, SIZE),
        num_chosen=2, is_normalized=True, is_interleaved=False, activation="silu", clamp=None,
        has_kernel=True,
    )  # fmt: skip
    return replace(experts, **options)


def mix_one_by_one(x: Tensor, experts: Experts) -> Tensor:
    assert experts.router_bias is not None
    assert experts.gate_up_bias is not None
    assert experts.down_bias is not None
    rows = []
    for row in x:
        shares = (experts.router @ row + experts.router_bias).softmax(0)
        chosen = shares.argsort(descending=True)[: experts.num_chosen]
        total = shares[chosen].sum() if experts.is_normalized else 1
        row_sum = torch.zeros(SIZE)
        for number in chosen:
            hidden = row @ experts.gate_up[number] + experts.gate_up_bias[number]
            parts = (hidden[::2], hidden[1::2]) if experts.is_interleaved else hidden.chunk(2)
            gate, up = parts
            inner = ACTIVATIONS[experts.activation](gate) * up
            if experts.clamp:
                slope, limit = experts.clamp
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
                inner = (up + 1) * gate * torch.sigmoid(slope * gate)
            output = inner @ experts.down[number] + experts.down_bias[number]
            row_sum += shares[number] / total * output
        rows.append(row_sum)
    return torch.stack(rows)


@pytest.mark.parametrize("num_tokens", [1, 3, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_normalized": False},
        {"is_interleaved": True, "clamp": (1.7, 0.5)},
        {"has_kernel": False},
        {"has_kernel": False, "is_interleaved": True, "clamp": (1.7, 0.5)},
    ],
)
def test_groups_compute_what_one_after_the_other_does(num_tokens: int, options: dict):
    experts = draw_experts(**options)
    x = torch.randn(num_tokens, SIZE, requires_grad=True)
    found, expected = mix_experts(x, experts), mix_one_by_one(x, experts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(found)
    slopes = (torch.autograd.grad((output * weights).sum(), x)[0] for output in (found, expected))
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("has_kernel", [True, False])
def test_what_is_no_number_stays_in_its_row(has_kernel: bool):
    experts = draw_experts(has_kernel=has_kernel)
    x = torch.randn(5, SIZE)
    expected = mix_experts(x, experts)
    x[2] = torch.nan
    found = mix_experts(x, experts)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[others], expected[others])
    assert found[2].isnan().all()


def test_sizes_that_no_grouped_product_takes_are_named():
    config = AutoConfig.for_model(
        "qwen3_moe", **{**CONFIGS["qwen3_moe"], "moe_intermediate_size": 30}
    )
    reason = switches_of(config)
    assert reason == "its experts have 64 by 30 features, no multiples of 8"
