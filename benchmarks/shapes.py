"""The model shapes of the benchmark, and how much arithmetic a token takes with each."""

from src.model.shape import ModelShape

SHAPES = {
    "tiny": ModelShape(256, 704, 4, 8, 4, 32, 2000, is_tied=False),
    "small": ModelShape(768, 2112, 8, 12, 4, 64, 8000, is_tied=False),
    "smollm2-135m-instruct": ModelShape(576, 1536, 30, 9, 3, 64, 49152, is_tied=True),
    "1b": ModelShape(2048, 8192, 16, 32, 8, 64, 128256, is_tied=True),
    "7b": ModelShape(4096, 11008, 32, 32, 32, 128, 32000, is_tied=False),
    "8b": ModelShape(4096, 14336, 32, 32, 8, 128, 128256, is_tied=False),
    "13b": ModelShape(5120, 13824, 40, 40, 40, 128, 32000, is_tied=False),
    "70b": ModelShape(8192, 28672, 80, 64, 8, 128, 32000, is_tied=False),
}
"""The tiny and the small one are for CPUs; the others are those of published models."""
REAL_MODEL = "smollm2-135m-instruct"
"""The one whose weights are real; those of the other shapes are random."""

MATMUL_FLOPS = {"H100": 790e12, "H200": 790e12, "A100": 280e12}
"""What these GPUs reach in bfloat16 matrix products."""


def flops_per_token(
    shape: ModelShape, *, lora_rank: int, max_seq_len: float, recomputed: float = 0.0
) -> float:
    """Return the floating point operations that LoRA takes for a token, forward and backward.

    `context` is the mean length of the spans as a token sees it, `recomputed` the share of
    recomputed layers. No gradient of base weights is made; causal attention counts by half, its
    backward pass 2.5 times.
    """
    layers = shape.linear_parameters
    head = shape.vocab_size * shape.hidden_size
    lora = shape.adapter_parameters("all-linear", lora_rank)
    attention = max_seq_len * shape.query_size * shape.num_layers
    forward = 2 * (layers + head) + 2 * lora + 2 * attention
    backward = 2 * (layers + head) + 4 * lora + 5 * attention
    return forward + backward + recomputed * (2 * layers + 2 * lora + 2 * attention)
