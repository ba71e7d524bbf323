"""A gated delta layer in place of attention (Gated Delta Networks, Yang et al. 2025).

What a head knows of all tokens so far is one matrix, its state: it decays, and each token replaces
a share of what the state holds for its key by its value. A short causal convolution goes before.
Whole texts are read in chunks, within which tokens are products of matrices (DeltaNet, Yang et al.
2024); answers go on token by token. Both compute what Transformers' Qwen3.5 does, in float32.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from src.model.core.attention import Spans
from src.model.core.layers import Norm, normalize, recomputed
from src.model.shape import DELTA_CHUNK

EPSILON = 1e-6
"""Added to the squared length of queries and keys, which are scaled to length one."""


@dataclass(frozen=True)
class GatedDelta:
    """The weights of a layer beside its linear layers, and its sizes."""

    taps: Tensor  # (taps, features) float32, of query, key and value; the last is the token's own
    decay_rate: Tensor  # (heads,) float32
    decay_bias: Tensor  # (heads,) float32
    norm: Norm
    """Of the output of each head."""
    num_key_heads: int
    """Each serves as many neighbouring heads of values."""
    num_heads: int
    key_size: int
    value_size: int

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Return (heads, key size, value size)."""
        return self.num_heads, self.key_size, self.value_size

    @property
    def tail_shape(self) -> tuple[int, int]:
        """Return that of what the convolution needs of the tokens before (taps - 1, features)."""
        num_taps, num_features = self.taps.shape
        return num_taps - 1, num_features

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return what is kept of a text in all, its tail in this dtype."""
        return 4 * math.prod(self.state_shape) + dtype.itemsize * math.prod(self.tail_shape)


def read_gates(
    qkv: Tensor, b: Tensor, a: Tensor, delta: GatedDelta
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the layer reads: `qkv`, and the decays and strengths of its tokens in float32.

    A decay is the logarithm of what stays of a state (tokens, heads), a strength the share that is
    replaced.
    """
    decay = delta.decay_rate * softplus(a.float() + delta.decay_bias)
    return qkv, decay, b.float().sigmoid()


def mix_spans(
    qkv: Tensor,  # (tokens, features), before the convolution
    decay: Tensor,
    strength: Tensor,
    delta: GatedDelta,
    spans: Spans,
) -> Tensor:
    """Return what the layer gives (tokens, heads * value size) for spans that begin anew."""
    is_one = spans.lengths is not None and len(spans.lengths) == 1

    def mix(qkv: Tensor, decay: Tensor, strength: Tensor) -> Tensor:
        span = None if is_one else spans.of_tokens(len(qkv))
        features, _ = _convolve(qkv, None, delta, span)
        heads = _heads(features, delta)
        return _mix_chunks(*heads, decay, strength, None, span)[0].flatten(1).to(qkv.dtype)

    return recomputed(mix, qkv, decay, strength)


def mix_on(
    qkv: Tensor,  # (tokens, features), before the convolution
    decay: Tensor,
    strength: Tensor,
    delta: GatedDelta,
    tail: Tensor,  # (taps - 1, features)
    state: Tensor,  # (heads, key size, value size) float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the layer gives for the next tokens of a text, and its new tail and state."""
    features, tail = _convolve(qkv, tail, delta, None)
    heads = _heads(features, delta)
    output, state = _mix_chunks(*heads, decay, strength, state, None)
    return output.flatten(1).to(qkv.dtype), tail, state


def mix_rows_(
    qkv: Tensor,  # (rows, features), before the convolution
    decay: Tensor,
    strength: Tensor,
    delta: GatedDelta,
    tails: Tensor,  # (rows, taps - 1, features)
    states: Tensor,  # (rows, heads, key size, value size) float32
    is_idle: Tensor,  # (rows,)
) -> Tensor:
    """Do what `mix_on` does for one token in each of some rows, whose tails and states are changed.

    Those of idle rows stay as they are, whatever their inputs hold.
    """
    read = torch.cat((tails, qkv[:, None]), dim=1)
    tails.copy_(torch.where(is_idle[:, None, None], tails, read[:, 1:]))
    query, key, value = _heads(silu((read * delta.taps).sum(1)), delta)
    stays = decay.exp()[..., None]
    # Both are read in one pass over the states, which are the most that a step reads here.
    held, known = ((torch.stack((key, query), dim=2) @ states) * stays[..., None]).unbind(2)
    told = strength[..., None] * (value - held)
    output = known + (query * key).sum(-1, keepdim=True) * told
    idle = is_idle[:, None, None]
    states.mul_(stays.masked_fill(idle, 1)[..., None])
    states.addcmul_(key.masked_fill(idle, 0)[..., None], told.masked_fill(idle, 0)[:, :, None])
    return output.flatten(1).to(qkv.dtype)


def gate_heads(mixed: Tensor, gate: Tensor, delta: GatedDelta) -> Tensor:
    """Return the normed outputs of the heads, times the gate (tokens, heads * value size)."""
    heads = mixed.unflatten(-1, (-1, delta.value_size))
    normed = normalize(heads, delta.norm, mixed.dtype).flatten(-2)
    return (normed * silu(gate.float())).to(mixed.dtype)


def _convolve(
    x: Tensor, tail: Tensor | None, delta: GatedDelta, span: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the convolved features (tokens, features) in float32, and the next tail."""
    num_taps, num_tokens = len(delta.taps), len(x)
    if tail is None:
        tail = x.new_zeros(num_taps - 1, x.shape[1])
    read = torch.cat((tail, x))
    total = x * delta.taps[-1]
    of_read = None if span is None else pad(span, (num_taps - 1, 0))
    for number, tap in enumerate(delta.taps[:-1]):
        earlier = read[number : number + num_tokens] * tap
        if of_read is not None:
            earlier = earlier * (of_read[number : number + num_tokens] == span)[:, None]
        total = total + earlier
    return silu(total), read[num_tokens:]


def _heads(features: Tensor, delta: GatedDelta) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value (tokens, heads, size) of convolved features."""
    size = delta.num_key_heads * delta.key_size
    query, key, value = features.split((size, size, features.shape[1] - 2 * size), dim=1)
    repeats = delta.num_heads // delta.num_key_heads

    def scaled(x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, delta.key_size))
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)
        return x.repeat_interleave(repeats, 1) if repeats > 1 else x

    return (
        scaled(query) * delta.key_size**-0.5,
        scaled(key),
        value.unflatten(1, (-1, delta.value_size)),
    )


def _mix_chunks(
    query: Tensor,  # (tokens, heads, key size) float32
    key: Tensor,
    value: Tensor,  # (tokens, heads, value size)
    decay: Tensor,  # (tokens, heads)
    strength: Tensor,  # (tokens, heads)
    state: Tensor | None,  # (heads, key size, value size); None is zero
    span: Tensor | None,  # (tokens,), which one a token is of; None where there is one
) -> tuple[Tensor, Tensor]:
    """Return the outputs of all heads (tokens, heads, value size), and the state after them.

    Within a chunk the tokens' replacements of one another are a triangular system of equations.
    """
    num_tokens, size = len(query), min(DELTA_CHUNK, len(query))
    padding = -num_tokens % size

    def cut(x: Tensor) -> Tensor:  # (chunks, heads, size, ...)
        padded = pad(x, (0, 0) * (x.dim() - 1) + (0, padding))
        return padded.unflatten(0, (-1, size)).transpose(1, 2)

    query, key, value, decay, strength = map(cut, (query, key, value, decay, strength))
    total = decay.cumsum(-1)
    entering, leaving = total.exp(), (total[..., -1:] - total).exp()
    seen = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    if span is not None:
        # Padding goes on with the last span.
        of_token = torch.cat((span, span[-1:].expand(padding))).view(-1, 1, size)
        before = torch.cat((of_token[:1, :, :1], of_token[:-1, :, -1:]))
        entering, leaving = (
            entering * (of_token == before),
            leaving * (of_token == of_token[..., -1:]),
        )
        seen = seen & (of_token[..., None] == of_token[..., None, :])
    between = (total[..., None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    strong = key * strength[..., None]
    system = (strong @ key.mT) * between
    right = torch.cat((value * strength[..., None], strong * entering[..., None]), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new, held = solved.split((value.shape[-1], key.shape[-1]), dim=-1)
    within = (query @ key.mT) * between
    query, key = query * entering[..., None], key * leaving[..., None]
    through = entering[..., -1, None, None]

    known = state
    if known is None:
        known = query.new_zeros(query.shape[1], query.shape[-1], value.shape[-1])
    outputs = []
    for number in range(len(query)):
        told = new[number] - held[number] @ known
        outputs.append(query[number] @ known + within[number] @ told)
        known = known * through[number] + key[number].mT @ told
    output = torch.stack(outputs).transpose(1, 2).flatten(0, 1)
    return output[:num_tokens], known


def read_gated_delta(module: Any) -> GatedDelta:
    """Return the weights of a layer as transformers loaded it."""
    return GatedDelta(
        taps=module.conv1d.weight.data[:, 0].float().T.contiguous(),
        decay_rate=-module.A_log.data.float().exp(),
        decay_bias=module.dt_bias.data.float(),
        norm=Norm(module.norm.weight.data, module.norm.variance_epsilon),
        num_key_heads=module.num_k_heads,
        num_heads=module.num_v_heads,
        key_size=module.head_k_dim,
        value_size=module.head_v_dim,
    )
