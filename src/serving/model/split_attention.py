"""Attention of a decoding step on a GPU: a row's cache is read in parts side by side.

As in Flash-Decoding (Dao et al. 2023): each program takes a part of one row's tokens for the query
heads that share a key head, and a second kernel joins the parts. Lengths are read on the device, so
that a captured step serves rows of any length, and no row reads more than it holds; so are the
blocks in which its tokens lie (as in vLLM, Kwon et al. 2023).
"""

# Triton's own types do not know that a kernel takes plain numbers, and launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
from functools import cache

import torch
import triton
import triton.language as tl

TILE = 64
"""Tokens that a program reads at a time."""
MAX_PARTS = 32
PROGRAMS_PER_PROCESSOR = 4
MIN_GROUP = 16
"""The fewest rows of a matrix product in Triton."""


@triton.jit
def _attend_parts(
    query,  # (rows, heads, size)
    cache,  # (blocks, BLOCK, keys' then values' heads, size)
    tables,  # (slots, blocks of a slot) int64
    positions,  # (rows,)
    sums,  # (rows, heads, parts, size) float32
    weights,  # (rows, heads, parts, 2) float32: the largest score, and the sum of weights
    table_stride,
    block_stride,
    token_stride,
    window,
    scale,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    row, key_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_key_heads = tl.num_programs(1)
    position = tl.load(positions + row)
    stop = tl.where(position == 0, 0, position + 1).to(tl.int32)
    start = tl.maximum(stop - window, 0)
    share = tl.cdiv(tl.cdiv(stop - start, PARTS), TILE) * TILE
    begin = start + part * share
    end = tl.minimum(begin + share, stop)

    group = tl.arange(0, PADDED_GROUP)
    size = tl.arange(0, PADDED_SIZE)
    heads = key_head * GROUP + group
    at_query = (row * num_key_heads * GROUP + heads)[:, None] * SIZE + size[None, :]
    is_query = (group < GROUP)[:, None] & (size < SIZE)[None, :]
    q = tl.load(query + at_query, mask=is_query, other=0.0)

    keys = cache + key_head * SIZE
    values = keys + num_key_heads * SIZE
    largest = tl.full((PADDED_GROUP,), -float("inf"), tl.float32)
    weight = tl.zeros((PADDED_GROUP,), tl.float32)
    total = tl.zeros((PADDED_GROUP, PADDED_SIZE), tl.float32)
    for first in range(begin, end, TILE):
        tokens = first + tl.arange(0, TILE)
        is_seen = tokens < end
        block = tl.load(tables + row * table_stride + tokens // BLOCK, mask=is_seen, other=0)
        place = block * block_stride + (tokens % BLOCK) * token_stride
        at = place[:, None] + size[None, :]
        is_read = is_seen[:, None] & (size < SIZE)[None, :]
        k = tl.load(keys + at, mask=is_read, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shares = tl.exp(scores - new_largest[:, None])
        fade = tl.exp(largest - new_largest)
        v = tl.load(values + at, mask=is_read, other=0.0)
        total = total * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        weight = weight * fade + tl.sum(shares, 1)
        largest = new_largest

    at_part = (row * num_key_heads * GROUP + heads) * PARTS + part
    tl.store(sums + at_part[:, None] * SIZE + size[None, :], total, mask=is_query)
    tl.store(weights + at_part * 2, largest, mask=group < GROUP)
    tl.store(weights + at_part * 2 + 1, weight, mask=group < GROUP)


@triton.jit
def _join_parts(
    sums,
    weights,
    sinks,  # (heads,), or anything
    output,
    num_heads,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    head = tl.program_id(0)  # of all rows
    parts = head * PARTS + tl.arange(0, PARTS)
    size = tl.arange(0, PADDED_SIZE)
    largest, weight = tl.load(weights + parts * 2), tl.load(weights + parts * 2 + 1)
    # Parts without tokens have no weight; an idle row has none at all.
    fade = tl.where(weight > 0, tl.exp(largest - tl.max(largest, 0)), 0.0)
    at = parts[:, None] * SIZE + size[None, :]
    part_sums = tl.load(sums + at, mask=(size < SIZE)[None, :], other=0.0)
    whole = tl.sum(weight * fade, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head % num_heads).to(tl.float32)
        whole += tl.exp(sink - tl.max(largest, 0))
    joined = tl.sum(part_sums * fade[:, None], 0) / tl.maximum(whole, 1e-30)
    at_output = output + head * SIZE + size
    tl.store(at_output, joined.to(output.dtype.element_ty), mask=size < SIZE)


def attend_split(
    query: torch.Tensor,  # (rows, heads, head size)
    cache: torch.Tensor,  # (blocks, tokens of a block, keys' then values' heads, head size)
    tables: torch.Tensor,  # (slots, blocks of a slot) int64
    positions: torch.Tensor,  # (rows,) of the last tokens; 0 of an idle row
    window: int | None,
    *,
    scale: float | None = None,
    sinks: torch.Tensor | None = None,  # (heads,)
    num_parts: int | None = None,
) -> torch.Tensor:
    """Return the outputs (rows, heads, head size) of the first slots."""
    rows, heads, size = query.shape
    block_size, num_key_heads = cache.shape[1], cache.shape[2] // 2
    parts = num_parts or _num_parts(rows * num_key_heads, query.device)
    group, padded_size = heads // num_key_heads, triton.next_power_of_2(size)
    sums = query.new_empty((rows, heads, parts, size), dtype=torch.float32)
    weights = query.new_empty((rows, heads, parts, 2), dtype=torch.float32)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    _attend_parts[(rows, num_key_heads, parts)](
        *(query.contiguous(), cache, tables, positions, sums, weights),
        *(tables.stride(0), cache.stride(0), cache.stride(1)),
        tables.shape[1] * block_size if window is None else window,
        size**-0.5 if scale is None else scale,
        GROUP=group,
        PADDED_GROUP=max(MIN_GROUP, triton.next_power_of_2(group)),
        SIZE=size,
        PADDED_SIZE=max(MIN_GROUP, padded_size),
        PARTS=parts,
        BLOCK=block_size,
        TILE=TILE,
    )
    _join_parts[(rows * heads,)](
        *(sums, weights, sums if sinks is None else sinks, output, heads),
        SIZE=size,
        PADDED_SIZE=padded_size,
        PARTS=parts,
        HAS_SINKS=sinks is not None,
    )
    return output


@cache
def _num_parts(num_programs: int, device: torch.device) -> int:
    """Return how many parts keep all processors of a GPU busy; a power of two."""
    if device.type != "cuda":
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = max(1, PROGRAMS_PER_PROCESSOR * processors // num_programs)
    return min(MAX_PARTS, 1 << (wanted.bit_length() - 1))
