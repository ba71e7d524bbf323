"""The kernel adds to each row what plain steps add, whatever adapters the rows have.

It runs in Triton's interpreter, which needs no GPU.
"""

import pytest
import torch

from src.model.core.layers import Projection
from src.serving.lora.kernel import add_lora
from src.serving.lora.rows import add_plainly, find_fault
from src.serving.lora.stacked import StackedLora
from src.serving.lora.weights import LoadedModule

PAGES = {"rank 3": [4], "rank 20": [0, 2, 5], "rank 8, one layer": [1]}
RANKS = {"rank 3": 3, "rank 20": 20, "rank 8, one layer": 8}
ROWS = ("rank 20", None, "rank 3", "rank 8, one layer", "rank 20")


def make_stack(out_features: list[int], in_features: int, dtype: torch.dtype) -> StackedLora:
    layers = [torch.nn.Linear(in_features, out) for out in out_features]
    names = [f"layer-{number}" for number in range(len(layers))]
    stack = StackedLora(Projection(names, layers), num_pages=7, like=torch.zeros(0, dtype=dtype))
    stack.a[6], stack.b[6] = float("nan"), float("nan")  # nobody's
    for key, pages in PAGES.items():
        adapted = (
            zip(names, out_features, strict=True)
            if key != "rank 8, one layer"
            else [(names[-1], out_features[-1])]
        )
        stack.write(
            pages,
            {
                name: LoadedModule(
                    torch.randn(RANKS[key], in_features), torch.randn(out, RANKS[key])
                )
                for name, out in adapted
            },
        )
    return stack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("out_features", [[200, 40, 40], [72], [300, 300]], ids=str)
def test_each_row_gets_its_own_adapter(out_features: list[int], dtype: torch.dtype):
    torch.manual_seed(0)
    stack = make_stack(out_features, 130, dtype)
    table = torch.full((len(ROWS), 8), -1, dtype=torch.int32)
    for row, key in zip(table, ROWS, strict=True):
        own = PAGES[key] if key else []
        row[: len(own)] = torch.tensor(own)
    # Rows that are parts of wider ones, as those of a compiled step may be.
    x = torch.randn(len(ROWS), 150).to(dtype)[:, :130]
    before = torch.randn(len(ROWS), sum(out_features) + 5).to(dtype)[:, :-5]
    found, expected = before.clone(), before.clone().float()
    add_lora(found, x, stack.a, stack.b, stack.ends, table)
    exact = stack.a.float(), stack.b.float()
    add_plainly(expected, x.float(), *exact, stack.ends, table)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert (found - expected).norm() < tolerance * (expected - before).norm()
    assert found[1].equal(before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_errs_is_noticed(dtype: torch.dtype):
    projections = [
        Projection(["q", "k"], [torch.nn.Linear(96, 64), torch.nn.Linear(96, 16)]),
        Projection(["o"], [torch.nn.Linear(64, 96)]),
    ]
    like = torch.zeros(0, dtype=dtype)

    def errs(output: torch.Tensor, x: torch.Tensor, *pages: torch.Tensor) -> None:
        add_lora(output, 1.2 * x, *pages)

    assert find_fault(add_lora, projections, like) is None
    assert find_fault(errs, projections, like) == "its results differ from those of plain steps"
