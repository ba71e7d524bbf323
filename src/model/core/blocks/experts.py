"""A mixture of experts in place of an MLP: each token goes through the few that a router chooses.

The pairs of token and expert are sorted by expert, so that each expert is one group of a grouped
product. Shapes depend on the number of tokens alone, and nothing is read on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, silu

from src.model.core.layers import ACTIVATIONS, recomputed

ALIGNMENT = 16
"""Bytes of which the rows of a grouped product are multiples."""
FEW_TOKENS = 64
"""Up to so many tokens, a GPU without a kernel for groups multiplies them with all experts."""


@dataclass(frozen=True)
class Experts:
    """The weights of a layer's experts, in one tensor each, and those of their router."""

    router: Tensor  # (experts, hidden size)
    router_bias: Tensor | None
    gate_up: Tensor  # (experts, hidden size, 2 * intermediate size)
    gate_up_bias: Tensor | None
    down: Tensor  # (experts, intermediate size, hidden size)
    down_bias: Tensor | None
    num_chosen: int
    """Experts of a token."""
    is_normalized: bool
    """Whether the weights of a token's experts add up to one."""
    is_interleaved: bool
    """Whether gate and up are neighbours, and not halves."""
    activation: str
    clamp: tuple[float, float] | None
    """(a, l) of gpt-oss: (up + 1) * gate * sigmoid(a * gate), both limited by l."""
    has_kernel: bool
    """Whether the device has a kernel for groups that only it knows the ends of."""


def mix_experts(x: Tensor, experts: Experts) -> Tensor:
    """Return the weighted sum (tokens, hidden size) of what each token's experts make of it."""
    logits = linear(x, experts.router, experts.router_bias)
    weights, chosen = logits.softmax(-1, dtype=torch.float32).topk(experts.num_chosen)
    if experts.is_normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    weights = weights.to(x.dtype)
    if not experts.has_kernel and len(x) <= FEW_TOKENS:
        output = _mix_densely(x, experts, _spread(experts, weights, chosen))
    else:
        output = _mix_groups(x, experts, weights, chosen)
    if experts.down_bias is None:
        return output
    return output + _spread(experts, weights, chosen) @ experts.down_bias


def _mix_groups(x: Tensor, experts: Experts, weights: Tensor, chosen: Tensor) -> Tensor:
    of_pair, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(len(experts.router), device=x.device)
    ends = torch.searchsorted(of_pair, numbers, right=True, out_int32=True)
    # A weight goes in before the last product, which is the narrower side of it.
    pair_weights = weights.flatten()[order, None]
    hidden = multiply_groups(x[order // experts.num_chosen], experts.gate_up, ends)
    if experts.gate_up_bias is not None:
        hidden = hidden + experts.gate_up_bias[of_pair]
    inner = recomputed(_gate(experts), hidden, pair_weights)
    output = multiply_groups(inner, experts.down, ends)
    # Back in the order of tokens their sum is the same each time, which that of `index_add` is not.
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return output[place].view(len(x), experts.num_chosen, -1).sum(1)


def _spread(experts: Experts, weights: Tensor, chosen: Tensor) -> Tensor:
    """Return the weights (tokens, experts), 0 for experts that are not chosen."""
    return weights.new_zeros(len(weights), len(experts.router)).scatter(1, chosen, weights)


def _mix_densely(x: Tensor, experts: Experts, weights: Tensor) -> Tensor:
    """Do what `_mix_groups` does by all experts, whose weights are (tokens, experts)."""
    hidden = x @ experts.gate_up
    if experts.gate_up_bias is not None:
        hidden = hidden + experts.gate_up_bias[:, None]
    inner = _gate(experts)(hidden, weights.T[:, :, None])
    return (inner @ experts.down).sum(0)


def _gate(experts: Experts) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from gate and up, and the weights of experts, to the inner states."""

    def gate(hidden: Tensor, weights: Tensor) -> Tensor:
        if experts.is_interleaved:
            gate, up = hidden.unflatten(-1, (-1, 2)).unbind(-1)
        else:
            gate, up = hidden.chunk(2, dim=-1)
        if experts.clamp is None:
            return ACTIVATIONS[experts.activation](gate) * up * weights
        slope, limit = experts.clamp
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return silu(slope * gate) / slope * (up + 1) * weights

    return gate


@torch.library.custom_op("core::multiply_groups", mutates_args=())
def multiply_groups(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return the products (rows, out) of groups of rows with their weights (groups, in, out).

    It is one step for the compiler, which takes torch's own in bfloat16 alone.
    """
    return grouped_mm(x, weights, offs=ends)


@multiply_groups.register_fake
def _(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[2])  # a `len` would tie it to this number


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _multiply_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    weights, ends = ctx.saved_tensors
    return multiply_groups(gradient.contiguous(), weights.transpose(1, 2), ends), None, None


multiply_groups.register_autograd(_multiply_gradient, setup_context=_keep)


def _has_kernel(weights: Tensor) -> bool:
    """Return whether torch has a kernel here: from Hopper on, in bfloat16.

    Any other GPU waits for the host to read the ends.
    """
    if not weights.is_cuda:
        return True
    is_hopper = torch.cuda.get_device_capability(weights.device) >= (9, 0)
    return is_hopper and weights.dtype == torch.bfloat16


def read_experts(mlp: Any, activation: str) -> Experts | None:
    """Return the experts of a module; None where it is a plain MLP."""
    experts = getattr(mlp, "experts", None)
    if experts is None:
        return None
    router = mlp.gate if hasattr(mlp, "gate") else mlp.router
    clamp = (experts.alpha, experts.limit) if hasattr(experts, "limit") else None

    def weight(name: str) -> Tensor:
        data = getattr(experts, name).data
        return data if experts.is_transposed else data.transpose(1, 2)

    def bias(module: Any, name: str) -> Tensor | None:
        return None if getattr(module, name, None) is None else getattr(module, name).data

    return Experts(
        router=router.weight.data,
        router_bias=bias(router, "bias"),
        gate_up=weight("gate_up_proj"),
        gate_up_bias=bias(experts, "gate_up_proj_bias"),
        down=weight("down_proj"),
        down_bias=bias(experts, "down_proj_bias"),
        num_chosen=router.top_k,
        is_normalized=getattr(router, "norm_topk_prob", True),
        is_interleaved=not experts.is_concatenated,
        activation=activation,
        clamp=clamp,
        has_kernel=_has_kernel(router.weight),
    )


def unfit_experts(config: Any) -> str | None:
    """Return why no grouped product takes the sizes of a configuration's experts, if so."""
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    if config.hidden_size % (ALIGNMENT // 2) or inner % (ALIGNMENT // 2):
        return f"its experts have {config.hidden_size} by {inner} features, no multiples of 8"
    return None
