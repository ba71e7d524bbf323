"""Attention in training and in decoding: right, and how fast."""

import random
from itertools import accumulate, product

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import median_seconds, relative_error, seconds_in_graph
from src.model.core.attention import Spans, attend_one_by_one
from src.model.core.kernels import (
    Heads,
    Kernel,
    attend,
    attend_in_batch,
    attend_varlen,
    find_fault_once,
)
from src.serving.cache.kv_cache import FIRST_PAGE, KVCache, num_blocks_of
from src.serving.cache.layer_groups import group_layers
from src.serving.model.attention import DecodeAttention, split_unsupported_reason

TOLERANCE = 0.02
"""Relative error; that of bfloat16 is 0.003."""
NUM_LAYERS = 8


def run(stage: Stage) -> None:
    stage.section(probe, stage)
    rng = random.Random(0)
    mixed, many = (1, 7, 31, 300, 2048, 129), tuple(rng.randint(1, 200) for _ in range(40))
    even = (2048, 2048)
    if stage.is_tiny:
        mixed, many, even = (1, 7, 31), (3, 4), (16, 16)
    for heads, size, lengths in product((32, 8), (128, 64), (mixed, even)):
        stage.section(check_training, stage, (32, heads, size), None, lengths)
    stage.section(check_training, stage, (32, 8, 128), 5 if stage.is_tiny else 512, mixed)
    stage.section(check_training, stage, (8, 4, 32), None, many)
    kernels = (attend,) if stage.is_tiny else (attend_in_batch, attend_varlen)
    for shape, kernel in product(((32, 32, 128), (32, 8, 128), (32, 8, 64)), kernels):
        stage.section(time_training, stage, shape, kernel)
    for heads in (32, 8):
        stage.section(time_decoding, stage, heads)


def probe(stage: Stage) -> None:
    """The probes of the kernels must not depend on the state of the random generator."""
    heads = Heads(stage.device, stage.dtype, 32, 8, 128)
    for kernel in (attend_varlen, attend_in_batch):
        answers = set()
        for seed in range(3 if stage.is_tiny else 20):
            torch.manual_seed(seed)
            answers.add(find_fault_once.__wrapped__(kernel, heads))
        is_right = len(answers) == 1 if stage.is_tiny else answers == {None}
        stage.record(f"{kernel.__name__} refused, of 20 probes", str(answers), is_right=is_right)


def inputs(
    stage: Stage, shape: tuple[int, int, int], lengths: tuple[int, ...]
) -> tuple[list[torch.Tensor], torch.Tensor, Spans]:
    """Return random query, key and value, a gradient of the output, and the spans."""
    torch.manual_seed(1)
    heads, key_heads, size = shape
    options = {"device": stage.device, "dtype": stage.dtype}
    tensors = [
        torch.randn(sum(lengths), n, size, **options) for n in (heads, key_heads, key_heads, heads)
    ]
    spans = Spans.between(tuple(accumulate(lengths, initial=0)), stage.device)
    return tensors[:3], tensors[3], spans


def check_training(
    stage: Stage, shape: tuple[int, int, int], window: int | None, lengths: tuple[int, ...]
) -> None:
    """Compare output and gradients with those of float32, span by span."""
    tensors, gradient, spans = inputs(stage, shape, lengths)

    def outputs(way, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        output = way(*leaves, spans, sliding_window=window)
        return output, *torch.autograd.grad(output, leaves, gradient.to(dtype))

    found, reference = outputs(attend, stage.dtype), outputs(attend_one_by_one, torch.float32)
    errors = [relative_error(a, b) for a, b in zip(found, reference, strict=True)]
    heads, key_heads, size = shape
    stage.record(
        f"training, {heads}/{key_heads} heads of {size}, window {window}, {len(lengths)} spans",
        max(errors),
        "relative",
        is_right=max(errors) < TOLERANCE,
        note="out, dq, dk, dv: " + ", ".join(f"{error:.4f}" for error in errors),
    )


def time_training(stage: Stage, shape: tuple[int, int, int], kernel: Kernel) -> None:
    heads, key_heads, size = shape
    lengths = (16, 16) if stage.is_tiny else (2048,) * 4
    tensors, gradient, spans = inputs(stage, shape, lengths)
    leaves = query, key, value = [x.requires_grad_() for x in tensors]
    with torch.no_grad():
        forward = median_seconds(lambda: kernel(query, key, value, spans))
    output = kernel(query, key, value, spans)
    backward = median_seconds(
        lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)
    )
    flops = 2 * sum(n * n for n in lengths) * heads * size  # causal: half of all pairs
    name = f"{kernel.__name__}, {heads}/{key_heads} heads of {size}, {len(lengths)} x {lengths[0]}"
    for what, speed in (("forward", flops / forward), ("backward", 2.5 * flops / backward)):
        share = stage.share(speed, "matmul")
        stage.record(f"{name}: {what}", speed / 1e12, "TFLOP/s", share=share)


def time_decoding(stage: Stage, key_heads: int) -> None:
    """Compare the kernel that splits the cache with one call that reads it up to a length."""
    slots, length = (4, 32) if stage.is_tiny else (21, 4096)
    num_blocks = num_blocks_of(length)
    cache = KVCache(
        layers=group_layers([None] * NUM_LAYERS),
        num_slots=slots,
        num_key_value_heads=key_heads,
        head_size=128,
        num_pages=slots * num_blocks,
        max_seq_len=length,
        dtype=stage.dtype,
        device=stage.device,
    )
    for layer in range(NUM_LAYERS):
        cache.layer(layer).normal_()
    # Anywhere, as in a cache that has been used for long.
    pages = torch.randperm(slots * num_blocks).add(FIRST_PAGE).view(slots, num_blocks, 1)
    for slot, own in enumerate(pages.tolist()):
        cache.give(0, slot, [tuple(block) for block in own], length)
    reason = split_unsupported_reason(cache, 32)
    if reason:
        is_right = None if stage.is_tiny else False
        stage.record(f"{key_heads} key heads: split", "refused", is_right=is_right, note=reason)
    rows, lengths = ((1, 2), (16, 32)) if stage.is_tiny else ((1, 8, 21), (256, 1024, 4096))
    for num_rows, length in product(rows, lengths):
        decode_once(stage, cache, key_heads, num_rows, length, can_split=reason is None)


@torch.inference_mode()
def decode_once(
    stage: Stage, cache: KVCache, key_heads: int, num_rows: int, length: int, *, can_split: bool
) -> None:
    query = torch.randn(num_rows, 32, 128, device=stage.device, dtype=stage.dtype)
    position = torch.full((num_rows,), length - 1, device=stage.device)

    def one_call() -> list[torch.Tensor]:
        attention = DecodeAttention(cache, lengths=length, position=position)
        return [attention(query, layer, None) for layer in range(NUM_LAYERS)]

    name = f"decoding, 32/{key_heads} heads of 128, {num_rows} rows of {length}"
    # Most of a step is layers: what each call prepares is shared by them.
    seconds = seconds_in_graph(one_call) / NUM_LAYERS
    stage.record(f"{name}: one call", 1e6 * seconds, "us a layer")
    if not can_split:
        return
    from src.serving.model.attention import SplitDecodeAttention

    attention = SplitDecodeAttention(cache, position)

    def split() -> list[torch.Tensor]:
        return [attention(query, layer, None) for layer in range(NUM_LAYERS)]

    pairs = zip(split(), one_call(), strict=True)
    error = max(relative_error(a, b) for a, b in pairs)
    seconds = seconds_in_graph(split) / NUM_LAYERS
    num_bytes = 2 * num_rows * length * key_heads * 128 * 2
    stage.record(
        f"{name}: split",
        1e6 * seconds,
        "us a layer",
        is_right=error < TOLERANCE,
        share=stage.share(num_bytes / seconds, "copy bandwidth"),
        note=f"error {error:.4f}",
    )
