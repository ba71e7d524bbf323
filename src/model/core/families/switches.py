"""What the decoders of the families differ in."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class NormNames(NamedTuple):
    """What a layer calls its norms; None where there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


LLAMA_NORMS = NormNames("input_layernorm", None, "post_attention_layernorm", None)


@dataclass(frozen=True)
class Switches:
    """How a decoder computes; the defaults are Llama's.

    What its modules show is no switch: fused projections, biases, norms of queries and keys, and
    how much of a head is rotated.
    """

    head_size: int
    scale: float
    """Of the attention scores."""
    windows: tuple[int | None, ...]
    """How many of the last tokens each layer sees; None is all."""
    ropes: tuple[str | None, ...]
    """The name of each layer's rotary embedding; "" is the only one, None is no embedding."""
    norms: NormNames = LLAMA_NORMS
    adds_one_to_norms: bool = False
    activation: str = "silu"
    is_interleaved: bool = False
    """Whether a rotation turns neighbouring numbers instead of the halves of a head."""
    doubles_rope: bool = True
    """Whether transformers' tables of cosines and sines hold each number twice."""
    score_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    query_growth: tuple[float, int] | None = None
    """(b, n): queries grow with their position p by 1 + b log(1 + floor(p / n))."""
    short_length: int | None = None
    """Up to so many tokens a text is rotated by other frequencies than a longer one (LongRoPE,
    Ding et al. 2024); None is the same for all."""


def base_switches(config: Any) -> Switches:
    """Return Llama's switches with the sizes, windows and activation of a configuration."""
    head_size = getattr(config, "head_dim", None)
    head_size = head_size or config.hidden_size // config.num_attention_heads
    window, num_layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    # A configuration may name a window that its family does not have.
    types = getattr(config, "layer_types", None) or ["full_attention"] * num_layers
    return Switches(
        head_size=head_size,
        scale=head_size**-0.5,
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        ropes=("",) * num_layers,
        activation=getattr(config, "hidden_activation", None) or config.hidden_act,
    )


def windowed(config: Any) -> Switches:
    """Return Llama's switches with a window in all layers, if the configuration has one."""
    switches = base_switches(config)
    return replace(switches, windows=(config.sliding_window,) * len(switches.windows))
