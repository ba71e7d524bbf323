"""The decoder of all families, over the weights of a model that transformers loaded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.model.core.attention import Spans
from src.model.core.blocks.gated_delta import mix_spans
from src.model.core.families.switches import Switches
from src.model.core.families.table import switches_of
from src.model.core.kernels import Heads, attend, prove_kernels
from src.model.core.layer import (
    Layer,
    after_attention,
    before_attention,
    project,
    read_layer,
    read_norm,
)
from src.model.core.layers import (
    Positions,
    Projection,
    RotaryTable,
    normalize,
    score_in_float32,
)
from src.model.core.lora import Update, Updates
from src.out_of_memory import release_memory

Attend = Callable[["Layer", Tensor, Tensor, Tensor], Tensor]
"""Takes a layer and its `MixerInputs`, and returns (tokens, heads * head size)."""


class Decoder:
    """Embedding, layers, norm and head; `open_decoder` tells for which models."""

    def __init__(self, model: Any, switches: Switches, projection: type[Projection]) -> None:
        body, self.switches = model.get_decoder(), switches
        self.num_heads: int = body.config.num_attention_heads
        self.num_key_value_heads: int = body.config.num_key_value_heads
        self._embed: Any = body.embed_tokens
        self.norm = read_norm(body.norm, switches)
        self.like: Tensor = self._embed.weight
        """A tensor of the dtype and on the device of the model."""
        self.dtype, self.device = self.like.dtype, self.like.device
        names = {module: name for name, module in model.named_modules()}
        head = model.get_output_embeddings()
        self.head = projection([names[head]], [head])
        kinds = [hasattr(layer, "linear_attn") for layer in body.layers]
        self.layers = [
            read_layer(
                *(number, kinds[:number].count(kinds[number]), layer, body.config),
                *(switches, names, projection, self.dtype),
            )
            for number, layer in enumerate(body.layers)
        ]
        self.deltas = [layer.delta for layer in self.layers if layer.delta is not None]
        """Of the layers that have one in place of attention."""
        sinks = [layer.sinks for layer in self.layers if layer.sinks is not None]
        self.sinks = sinks or None
        """Those of each layer's attention; None where it has none."""
        self._tables = {
            name: RotaryTable(
                *(body.rotary_emb, name, self.like.new_empty(0)),
                is_interleaved=switches.is_interleaved,
                is_doubled=switches.doubles_rope,
                short_length=switches.short_length,
            )
            for name in switches.ropes
            if name is not None
        }
        self.hidden_size: int = body.config.hidden_size
        self.before_attention, self.after_attention = before_attention, after_attention
        """The functions of a layer, which may be compiled."""
        self.sum_dtype = self.dtype
        """Of the sum that the layers add to, and of the head's scores; in float32 it costs a
        CPU little, and answers lose a fourth of what they lose by 16 bits."""
        self.num_recomputed = 0
        """Layers that keep only their input for the backward pass, the first ones: by the time they
        run again the others' activations are gone."""

    @property
    def projections(self) -> list[Projection]:
        """Return those of all layers, in the order of their `Updates`, and the head."""
        return [*(p for layer in self.layers for p in layer.projections), self.head]

    @property
    def attention_reason(self) -> str | None:
        """Return why no kernel serves its attention, which is done in plain steps; None if one."""
        if self.switches.score_cap is not None:
            return "its attention scores are capped"
        return None if self.sinks is None else "its attention has sinks"

    @property
    def can_be_captured(self) -> bool:
        """Return whether a pass is the same steps on a GPU for all lengths of spans."""
        experts = (layer.experts for layer in self.layers if layer.experts is not None)
        return self.attention_reason is None and all(part.has_kernel for part in experts)

    @property
    def has_experts(self) -> bool:
        """Return whether a layer has experts in place of an MLP."""
        return any(layer.experts is not None for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Return what the keys and values of a token take."""
        num_attending = len(self.layers) - len(self.deltas)
        numbers = 2 * num_attending * self.num_key_value_heads * self.switches.head_size
        return numbers * self.dtype.itemsize

    @property
    def bytes_per_sequence(self) -> int:
        """Return what the states of a sequence take beside them, whatever its length."""
        return sum(delta.state_bytes(self.dtype) for delta in self.deltas)

    @property
    def kinds(self) -> list[Layer]:
        """Return a layer of each kind: with attention, and with a gated delta in its place."""
        return list({layer.delta is None: layer for layer in self.layers}.values())

    def hold_in_float8(self, *, for_training: bool) -> str:
        """Hold the layers' weights in float8 alone; return a line that tells of how many.

        The MLP's last product stays as it is: outliers of its inputs make most of the error.
        """
        parts = (p for layer in self.layers for p in (layer.qkv, layer.o, layer.gate_up))
        chosen = [part for part in parts if part is not None]
        num_held = sum(p.hold_in_float8(for_training=for_training) for p in chosen)
        release_memory()
        total = sum(len(p.names) for layer in self.layers for p in layer.projections)
        return f"float8: {num_held} of the {total} frozen products of all layers"

    def grow(self, num_positions: int) -> None:
        """Be ready for positions below this."""
        for table in self._tables.values():
            table.grow(num_positions)

    def hidden(
        self,
        ids: Tensor,  # (tokens,)
        positions: Tensor,  # (tokens,)
        spans: Spans,
        updates: Callable[[int], Updates] | None = None,
    ) -> Tensor:
        """Return the last hidden states (tokens, hidden size), which `scores` takes."""
        x, attend = self.embed(ids), self.attend_within(spans)
        where = self._locate_within(spans, positions)
        for layer in self.layers:
            inputs = layer, x, where, attend, updates(layer.number) if updates else Updates()
            if layer.number < self.num_recomputed and torch.is_grad_enabled():
                x = checkpoint(self._run, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._run(*inputs)
        return x

    def embed(self, ids: Tensor) -> Tensor:
        """Return the first hidden states (tokens, hidden size)."""
        x = self._embed(ids).to(self.sum_dtype)
        scale = self.switches.embedding_scale
        return x if scale == 1 else x * scale

    def updates(self, num_tokens: int) -> Callable[[int], Updates] | None:
        """Return what the model's own adapter adds in each layer; None where it has none."""
        return None

    def run_alone(
        self, states: Sequence[Tensor], spans: Spans, updates: Callable[[int], Updates] | None
    ) -> list[Tensor]:
        """Return what each layer makes of a state (tokens, hidden size) of its own."""
        num_tokens = len(states[0])
        self.grow(num_tokens)
        where = self._locate_within(spans, torch.arange(num_tokens, device=self.device))
        attend = self.attend_within(spans)
        return [
            self._run(layer, x, where, attend, updates(layer.number) if updates else Updates())
            for layer, x in zip(self.layers, states, strict=True)
        ]

    def attend_within(self, spans: Spans) -> Attend:
        """Return the attention over spans that do not see each other."""
        scale, score_cap = self.switches.scale, self.switches.score_cap

        def attend_within(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if layer.delta is not None:
                return mix_spans(query, key, value, layer.delta, spans)
            options = {"scale": scale, "score_cap": score_cap, "sinks": layer.sinks}
            window = layer.window
            return attend(query, key, value, spans, sliding_window=window, **options).flatten(1)

        return attend_within

    def _locate_within(self, spans: Spans, positions: Tensor) -> Positions:
        if self.switches.short_length is None:
            return self.locate(positions)
        return self.locate(positions, spans.lengths_of_tokens(len(positions)))

    def prove_attention(self) -> str | None:
        """Return which kernels of attention a GPU will use, and why no faster ones."""
        rows = self.num_heads, self.num_key_value_heads, self.switches.head_size
        return prove_kernels(Heads(self.device, self.dtype, *rows), self.attention_reason)

    def head_input(self, hidden: Tensor) -> Tensor:
        """Return what the head reads (tokens, hidden size)."""
        h = normalize(hidden, self.norm, self.sum_dtype)
        return h if self.switches.logit_scale == 1 else h * self.switches.logit_scale

    def scores(self, hidden: Tensor, update: Update | None = None) -> Tensor:
        """Return the scores of the next token (tokens, vocabulary)."""
        x = self.head_input(hidden)
        if x.dtype == self.dtype:
            (scores,) = project(self.head, update, None, x)
        else:
            scores = score_in_float32(x, *self.head.modules)
            if update is not None:
                update.add_([scores], update.low(x.to(self.dtype)))
        cap = self.switches.logit_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def locate(self, positions: Tensor, text_lengths: Tensor | None = None) -> Positions:
        """Return what the layers need to know of positions (tokens,).

        `text_lengths` (tokens,) are those of the texts that they are in; without them each is the
        last of its text.
        """
        growth = None
        if self.switches.query_growth is not None:
            slope, length = self.switches.query_growth
            growth = 1 + slope * torch.log1p((positions // length).float())
            growth = growth.to(self.dtype)[:, None, None]
        ropes = {name: table.rows(positions, text_lengths) for name, table in self._tables.items()}
        return Positions(ropes, growth)

    def _run(
        self, layer: Layer, x: Tensor, where: Positions, attend: Attend, updates: Updates
    ) -> Tensor:
        inputs, gate = self.before_attention(
            x, layer, self.switches, where.rope(layer.rope), where.query_growth, updates.qkv
        )
        mixed = attend(layer, *inputs)
        return self.after_attention(x, mixed, gate, layer, self.switches, updates)


def open_decoder(model: Any, *, projection: type[Projection] = Projection) -> Decoder | str:
    """Return our decoder over a model's weights, or why its family is not one of ours."""
    switches = switches_of(model.config.get_text_config())
    return switches if isinstance(switches, str) else Decoder(model, switches, projection)
