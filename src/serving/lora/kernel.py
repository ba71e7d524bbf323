"""What adapters add to the rows of a decoding step on a GPU, in one launch for a projection.

As in Punica (Chen et al. 2023): each row finds its own adapter on the device, so that a captured
step serves any adapters. A program makes the few numbers between A and B anew for the columns that
it adds to: A lies in the GPU's cache once another program has read it.
"""

# Triton's own types do not know that a kernel takes plain numbers, and launch options.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
from functools import cache

import torch
import triton
import triton.language as tl

BLOCK_IN = 2048
FEWEST_COLUMNS, MOST_COLUMNS = 128, 1024
"""That a program adds to."""


@triton.jit
def _add_lora(
    output,  # (rows, columns)
    x,  # (rows, inputs)
    a,  # (pages, layers * RANK, inputs)
    b,  # (pages, layers * RANK, columns)
    ends,  # (layers,) of their columns
    table,  # (rows, WIDTH) of pages; -1 is none
    output_stride,
    x_stride,
    num_inputs,
    num_columns,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ranks = layer * RANK + tl.arange(0, RANK)
    begin = tl.load(ends + layer - 1, mask=layer > 0, other=0) + block * BLOCK
    end = tl.load(ends + layer)
    pages = tl.load(table + row * WIDTH + tl.arange(0, WIDTH))
    num_pages = tl.where(begin < end, tl.sum((pages >= 0).to(tl.int32), 0), 0)
    columns = begin + tl.arange(0, BLOCK)
    is_own = columns < end
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(num_pages):
        page = tl.load(table + row * WIDTH + number).to(tl.int64)
        rows = page * RANK * tl.num_programs(2) + ranks
        at_b = rows[:, None] * num_columns + columns[None, :]
        b_part = tl.load(b + at_b, mask=is_own[None, :], other=0.0).to(tl.float32)
        low = tl.zeros((RANK, BLOCK_IN), tl.float32)
        for first in range(0, num_inputs, BLOCK_IN):
            inputs = first + tl.arange(0, BLOCK_IN)
            is_input = inputs < num_inputs
            x_part = tl.load(x + row * x_stride + inputs, mask=is_input, other=0.0)
            at_a = rows[:, None] * num_inputs + inputs[None, :]
            a_part = tl.load(a + at_a, mask=is_input[None, :], other=0.0)
            low += a_part.to(tl.float32) * x_part.to(tl.float32)[None, :]
        total += tl.sum(tl.sum(low, 1)[:, None] * b_part, 0)
    if num_pages > 0:
        at_output = output + row * output_stride + columns
        before = tl.load(at_output, mask=is_own, other=0.0).to(tl.float32)
        tl.store(at_output, (before + total).to(output.dtype.element_ty), mask=is_own)


def add_lora(
    output: torch.Tensor,  # (rows, columns), changed in place
    x: torch.Tensor,  # (rows, inputs)
    a: torch.Tensor,  # (pages, layers * rank, inputs)
    b: torch.Tensor,  # (pages, layers * rank, columns)
    ends: torch.Tensor,  # (layers,)
    table: torch.Tensor,  # (rows, most pages)
) -> None:
    """Add what the pages of each row make of it."""
    (num_rows, num_inputs), (num_layers,) = x.shape, ends.shape
    num_columns = output.shape[1]
    block = _columns_of_a_program(num_rows * num_columns, x.device)
    _add_lora[(num_rows, triton.cdiv(num_columns, block), num_layers)](
        *(output, x, a, b, ends, table, output.stride(0), x.stride(0), num_inputs, num_columns),
        WIDTH=table.shape[1],
        RANK=a.shape[1] // num_layers,
        BLOCK_IN=min(BLOCK_IN, triton.next_power_of_2(num_inputs)),
        BLOCK=block,
        num_warps=8,
    )


@cache
def _columns_of_a_program(num_columns: int, device: torch.device) -> int:
    """Return the columns of one program for each processor of a GPU; a power of two."""
    if device.type != "cuda":
        return FEWEST_COLUMNS
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = 1 << (num_columns // processors).bit_length()
    return min(MOST_COLUMNS, max(FEWEST_COLUMNS, wanted))
