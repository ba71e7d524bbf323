"""How much memory a rank needs, from sizes alone, and what to trade for it when there is less.

The sums count what our decoder keeps for the backward pass, tensor by tensor, and the largest
work space on top of it. Bytes throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from src.model.core.attention import SHORT
from src.model.head_loss import piece_rows, rows_in_float32
from src.model.shape import ModelShape

PACKED_BYTES = 0.516
"""Of one NF4 weight with doubly quantised scales (Dettmers et al. 2023)."""
BUSY_TOKENS = 2048
"""In one pass these keep a device busy."""
GAPS = 0.3
"""The C library's allocator takes so much more for activations of many sizes on a CPU."""


@dataclass(frozen=True)
class Workload:
    """What one rank holds and its largest forward and backward pass."""

    shape: ModelShape
    element_bytes: int
    """2 for bfloat16 and float16, 4 for float32."""
    in_4bit: bool
    target_modules: str
    lora_rank: int
    has_dropout: bool
    num_tokens: int
    """Most tokens in one forward and backward pass."""
    num_target_tokens: int
    longest_example: int
    world_size: int
    on_gpu: bool
    in_float16: bool = False
    shares_weights: bool = False
    """Under ZeRO-3 every rank holds a share of the base model, which runs in transformers."""
    num_recomputed: int = 0
    keeps_dequantized: bool = False
    """4-bit weights are dequantized once, for speed."""
    attention_bytes: float = 0.0
    """What a layer's attention keeps for a token beside its inputs and its output."""

    @property
    def least_tokens(self) -> int:
        """Tokens in a pass below which splitting it helps no more."""
        return min(self.num_tokens, max(self.longest_example, BUSY_TOKENS))


def attention_bytes(work: Workload, lengths: Sequence[int]) -> float:
    """Return what attention keeps for a token of spans of these lengths, as the mean over layers.

    Plain products keep a softmax in float32, its copy in a narrower dtype, and the hyperbolic
    tangent of capped scores. Torch's kernel on a CPU keeps the mask of a window, also as numbers.
    """
    shape, b = work.shape, work.element_bytes
    weight = 4 + (b if b < 4 else 0) + (4 if shape.has_score_cap else 0)
    is_plain = shape.has_score_cap or shape.has_sinks
    kept = 0.0
    for length in lengths:
        if is_plain or (b < 4 and not work.on_gpu and length <= SHORT):
            kept += length**2 * shape.num_heads * weight
        elif not work.on_gpu:
            masked = sum(window is not None and length > window for window in shape.windows)
            kept += length**2 * (1 + b) * masked / shape.num_layers
    return kept / sum(lengths)


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts of a rank's peak."""

    base_model: float
    adapter: float
    activations: float
    work_space: float
    gaps: float
    """What the allocator cannot use, between tensors of many sizes."""

    @property
    def total(self) -> float:
        return self.base_model + self.adapter + self.activations + self.work_space + self.gaps


def estimate_memory(work: Workload) -> MemoryEstimate:
    """Return the peak of a training step."""
    kept = work.shape.num_layers - work.num_recomputed
    hidden_bytes = work.num_tokens * work.shape.hidden_size * work.element_bytes
    layers = _layer_activations(work)
    # A recomputed layer keeps its input and what is dropped, and one at a time is whole again.
    recomputed = work.num_recomputed * (hidden_bytes + _masks(work))
    activations = kept * _mean(layers) + recomputed
    spaces = _backward_spaces(work)
    again = max(layer + space for (_, layer), space in zip(layers, spaces, strict=True))
    tables = work.num_tokens * (2 * work.shape.head_size * work.element_bytes + 24)
    head, backward = _head_space(work), max(spaces)
    # The first layers are the recomputed ones: by then the others' activations are gone.
    peak = max(
        activations + head,
        activations + backward if kept else 0.0,
        recomputed + again if work.num_recomputed else 0.0,
    )
    whole = max(activations, peak - max(head, backward))
    activations, space = whole + tables, peak - whole + 2 * hidden_bytes
    gaps = 0.0 if work.on_gpu else GAPS * (activations + space)
    return MemoryEstimate(_base_model(work), _adapter(work), activations, space, gaps)


def _base_model(work: Workload) -> float:
    is_packed = work.in_4bit and not work.keeps_dequantized
    linear = work.shape.linear_parameters * (PACKED_BYTES if is_packed else work.element_bytes)
    whole = linear + work.shape.other_parameters * work.element_bytes
    if not work.shares_weights:
        return whole
    # DeepSpeed gathers up to a billion parameters ahead of their use.
    gathered = min(1e9, work.shape.linear_parameters) * work.element_bytes
    return whole / work.world_size + gathered


def _adapter(work: Workload) -> float:
    """Weights, gradients, their float32 sums, and this rank's share of DeepSpeed's states.

    Below ZeRO-3 DeepSpeed has the weights twice; in float16 it gets them in float32.
    """
    b = work.element_bytes
    parameters = work.shape.adapter_parameters(work.target_modules, work.lora_rank)
    weights = b if work.shares_weights else b + 8 if work.in_float16 else 2 * b
    return parameters * (weights + b + 4 + 12 / work.world_size)


def _mean(of_kinds: Sequence[tuple[int, float]]) -> float:
    return sum(count * number for count, number in of_kinds) / sum(count for count, _ in of_kinds)


def _layer_activations(work: Workload) -> list[tuple[int, float]]:
    """Return how many layers of a kind there are, and what each of them keeps."""
    shape, b = work.shape, work.element_bytes
    adapted = shape.adapted(work.target_modules)
    elements = 2 * shape.hidden_size + _kept_by_mlp(shape)  # the residual, twice
    # Shares of experts, and for each chosen one its weights, its number and three orders.
    statistics = 4 * shape.num_experts + (8 + b + 32) * shape.num_chosen
    more = _more_in_transformers(work) if work.shares_weights else 0.0
    mixers = [_kept_by_attention(work), shape.delta.kept_bytes(b) if shape.delta else 0.0]
    kinds = []
    for (count, groups), mixer in zip(shape.kinds, mixers, strict=False):
        num_adapted = sum(name in adapted for group in groups for name in group)
        low = num_adapted * work.lora_rank
        a_token = (elements + low) * b + statistics + mixer + more
        kinds.append((count, work.num_tokens * a_token + _masks(work)))
    return kinds


def _kept_by_attention(work: Workload) -> float:
    """What it keeps for a token: query, key, value, what it gives, and the gate of that."""
    shape, b = work.shape, work.element_bytes
    q, kv = shape.query_size, shape.key_value_size
    elements = 2 * q + 2 * kv + q * shape.is_gated
    if not work.on_gpu and "o_proj" in shape.adapted(work.target_modules):
        elements += q  # outputs of the spans are joined by a copy
    if len(shape.qkv_names) == 1:
        elements += q + kv  # the value is a part of all three
    statistics = 4 * shape.num_heads
    if shape.has_sinks:
        elements += q  # what attention gives without them
        statistics += 24 * shape.num_heads
    normed = shape.num_normed * (4 if shape.norms_in_float32 else b)
    return elements * b + statistics + normed + work.attention_bytes


def _kept_by_mlp(shape: ModelShape) -> int:
    """How many numbers it keeps for a token: gate and up; of a shared expert its output, too."""
    elements = 2 * shape.intermediate_size * max(1, shape.num_chosen)
    if shape.shared_size:
        elements += 2 * shape.shared_size + shape.hidden_size + 2  # and its share
    return elements


def _more_in_transformers(work: Workload) -> float:
    """What a layer of transformers and PEFT keeps for a token that ours does not."""
    shape, b = work.shape, work.element_bytes
    # Both normed states, before and after their weight; the activation and the gated product.
    more = (4 * shape.hidden_size + 2 * shape.intermediate_size) * b
    if shape.num_experts:
        # For each expert of a token, and what experts read and give, before and after its weight.
        more += (shape.num_chosen - 1) * 2 * shape.intermediate_size * b
        more += shape.num_chosen * 5 * shape.hidden_size * b
    if b < 4:
        more += 8 * shape.hidden_size  # what the norms read, in float32
    if work.has_dropout:
        # The adapters of an input share neither the mask nor what is left.
        inputs = sum(inner for _, inner in shape.adapted(work.target_modules).values())
        more += inputs * (b + (1 if work.on_gpu else b))
    return more


def _masks(work: Workload) -> float:
    """A byte for each number that adapters of a layer read; transformers draws it again."""
    if not work.has_dropout or work.shares_weights:
        return 0.0
    inputs = [
        (count, sum(next(iter(group.values()))[1] for group in groups))
        for count, groups in work.shape.adapted_kinds(work.target_modules)
    ]
    return work.num_tokens * _mean(inputs)


def _head_space(work: Workload) -> float:
    shape = work.shape
    num_target_tokens = min(work.num_target_tokens, work.num_tokens)
    rows = min(num_target_tokens, piece_rows(shape.vocab_size))
    if work.shares_weights:  # transformers' head, which keeps the scores of all pieces
        scores = 8 * rows + 4 * num_target_tokens
    else:
        wide = rows_in_float32(shape.vocab_size, on_gpu=work.on_gpu)
        # As the product gives them, and in float32 with their log-softmax.
        scores = work.element_bytes * rows + 8 * min(rows, wide)
    return (
        scores * shape.vocab_size + 3 * num_target_tokens * shape.hidden_size * work.element_bytes
    )


def _backward_spaces(work: Workload) -> list[float]:
    """Return what the backward pass of a layer of each kind takes at its widest."""
    shape, b = work.shape, work.element_bytes
    if work.shares_weights:
        return [0.0] * len(shape.kinds)  # what transformers has kept goes as fast as gradients come
    if shape.num_experts:
        # Gate, up, what they give and the gradients; what goes into experts and comes out of them.
        pair = (4 * shape.intermediate_size + 2 * shape.hidden_size) * b
        inner, widest = work.num_tokens * shape.num_chosen * pair, shape.query_size
    else:
        dropped = 1 if work.has_dropout else 0
        inner = (4 + dropped) * work.num_tokens * shape.intermediate_size * b
        widest = shape.intermediate_size
    if work.in_4bit and not work.keeps_dequantized:
        inner += shape.hidden_size * widest * (b + 4)
    if shape.delta is None:
        return [inner]
    # By the time that the gated delta runs again, what the MLP keeps is gone.
    again = shape.delta.again_bytes - _kept_by_mlp(shape) * b
    return [inner, max(inner, work.num_tokens * again)]
