"""The compiler in a test: without code that takes a minute to build, and counted."""

from torch._dynamo.utils import counters

BACKEND = "aot_eager_decomp_partition"
"""All of the compiler but the code that it writes."""


def num_variants() -> int:
    """Return how many variants were compiled, each whole."""
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]
