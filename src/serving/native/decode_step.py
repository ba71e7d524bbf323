"""A decoding step of a few rows on a CPU, in compiled code that is as fast as the memory."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from src.model.core.decoder import Decoder
from src.model.core.families.switches import LLAMA_NORMS
from src.model.core.layer import Layer
from src.model.core.layers import Norm, Projection
from src.model.shape import PAGE_RANK
from src.serving.cache.kv_cache import KVCache
from src.serving.lora.stacked import LoraBatch
from src.serving.native import layout
from src.serving.native.layout import MATRICES, NORMS

MOST_ROWS, MOST_ROWS_OF_TILES = 64, 256
"""Of more rows, torch's own products are faster; they are those of answers and of prompts."""


class SeparateProjection(Projection):
    """Linear layers whose weights stay where they were loaded, perhaps in the file itself."""

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return one output (tokens, out features of all layers)."""
        outputs = super().__call__(x)
        return outputs if len(outputs) == 1 else [torch.cat(outputs, dim=-1)]


def unsupported_reason(decoder: Decoder) -> str | None:
    """Return what the compiled step does not know of a decoder."""
    switches = decoder.switches
    llama = replace(
        switches, norms=LLAMA_NORMS, adds_one_to_norms=False, activation="silu",
        is_interleaved=False, score_cap=None, logit_cap=None, query_growth=None,
    )  # fmt: skip
    if switches != llama:
        return "its layers differ from Llama's"
    if len(set(switches.ropes) - {None}) > 1:
        return "it has several rotary embeddings"
    if decoder.dtype not in (torch.float32, torch.bfloat16):
        return f"its weights are {decoder.dtype}"
    for layer in decoder.layers:
        if layer.experts is not None or layer.sinks is not None:
            return "it has experts or sinks"
        if layer.delta is not None or layer.is_gated:
            return "its attention has gates"
        norms = layer.query_norm, layer.key_norm
        if any(norm and len(norm.weight) != switches.head_size for norm in norms):
            return "its norms of queries and keys span all heads"
    modules = [module for p in decoder.projections for module in p.modules]
    if not all(type(m) is nn.Linear and m.weight.is_contiguous() for m in modules):
        return "its weights are packed"
    return None


class DecodeStep:
    """The compiled step over a decoder's weights and the cache."""

    def __init__(self, library: ctypes.CDLL, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._kept = decoder, list[Any]()
        self._adapters = _Adapters(None, decoder)
        self._step = getattr(library, f"step_{str(decoder.dtype).removeprefix('torch.')}")
        switches, first = decoder.switches, decoder.layers[0]
        layers = (layout.Layer * len(decoder.layers))(
            *(self._layer(layer, cache) for layer in decoder.layers)
        )
        self._rope = next((name for name in switches.ropes if name is not None), None)
        self._model = layout.Model(
            layers=layers,
            num_layers=len(decoder.layers),
            hidden_size=decoder.hidden_size,
            num_heads=decoder.num_heads,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=switches.head_size,
            rotated_size=self._turned(torch.zeros(1, dtype=torch.long))[0].shape[-1],
            intermediate_size=_mlp(first)[1].in_features,
            vocab_size=sum(decoder.head.out_features),
            scale=switches.scale,
            residual_scale=switches.residual_scale,
            logit_scale=switches.logit_scale,
            norm=self._norm(decoder.norm),
            head=self._matrices(decoder.head, decoder.head.out_features)[0],
        )
        self.vocab_size = self._model.vocab_size
        has_tiles = decoder.dtype == torch.bfloat16 and library.has_tiles()
        self.most_rows = MOST_ROWS_OF_TILES if has_tiles else MOST_ROWS
        self.tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
        """Of the scores, by the norm: plain steps in bfloat16 round between all products."""

    def __call__(
        self,
        tokens: Tensor,  # (rows,)
        positions: Tensor,  # (rows,)
        lengths: Sequence[int],
        tables: Tensor,  # (tables, rows, blocks), numbers of pages in the cache
        block_size: int,
        lora: LoraBatch | None,
        *,
        num_scores: int,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the scores after the first so many tokens (scores, vocabulary), in float32.

        A length counts the tokens of a row with this one; it is 0 where the row is idle.
        `text_lengths` are what `Decoder.locate` takes.
        """
        if lora is not self._adapters.batch:
            self._adapters = _Adapters(lora, self._decoder)
        num_rows = len(tokens)
        x = self._decoder.embed(tokens).float().contiguous()
        rope = self._turned(positions, text_lengths)
        cosines, sines = (x.float().contiguous() for x in rope)
        counts = torch.tensor(list(lengths))
        scores = torch.empty((num_scores, self.vocab_size))
        rows = layout.Rows(
            num_rows,
            *(part.data_ptr() for part in (x, counts, tables)),
            *(tables.stride(0), tables.stride(1), block_size),
            *(cosines.data_ptr(), sines.data_ptr(), self._adapters.data),
            *(num_scores, scores.data_ptr()),
        )
        self._step(ctypes.byref(self._model), ctypes.byref(rows), torch.get_num_threads())
        return scores

    def _turned(self, positions: Tensor, text_lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        if self._rope is None:
            return torch.empty(1, 0), torch.empty(1, 0)
        rope = self._decoder.locate(positions, text_lengths).rope(self._rope)
        assert rope is not None
        return rope

    def _layer(self, layer: Layer, cache: KVCache) -> layout.Layer:
        gate_up, down = _mlp(layer)
        half = down.in_features
        matrices = [
            *self._matrices(layer.qkv, layer.qkv_sizes),
            *self._matrices(layer.o, layer.o.out_features),
            *self._matrices(gate_up, (half, half)),
            *self._matrices(down, down.out_features),
        ]
        return layout.Layer(
            **{name: self._norm(getattr(layer, name)) for name in NORMS},
            **dict(zip(MATRICES, matrices, strict=True)),
            cache=cache.places(layer.number).data_ptr(),
            table=cache.table(layer.number),
            window=layer.window or 0,
            has_rope=layer.rope is not None,
        )

    def _matrices(self, projection: Projection, sizes: Sequence[int]) -> list[layout.Matrix]:
        """Return a matrix for each part of the output; one module may hold several."""
        modules = projection.modules
        if len(modules) == len(sizes):
            weights, biases = zip(*((m.weight, m.bias) for m in modules), strict=True)
        else:
            (module,) = modules
            weights = module.weight.split(sizes)
            biases = [None] * len(sizes) if module.bias is None else module.bias.split(sizes)
        return [
            layout.Matrix(weight.data_ptr(), bias if bias is None else self._float(bias))
            for weight, bias in zip(weights, biases, strict=True)
        ]

    def _norm(self, norm: Norm | None) -> layout.Norm:
        return (
            layout.Norm() if norm is None else layout.Norm(self._float(norm.weight), norm.epsilon)
        )

    def _float(self, tensor: Tensor) -> int:
        """Return the address of a vector in float32, which stays."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


class _Adapters:
    """The adapters of a batch where the store holds them."""

    def __init__(self, batch: LoraBatch | None, decoder: Decoder) -> None:
        self.batch, self.data = batch, layout.Adapters()
        if batch is None:
            return
        projections = decoder.projections
        most = max(map(len, batch.pages))
        table = torch.full((len(batch.pages), most), -1)
        for row, own in zip(table, batch.pages, strict=True):
            row[: len(own)] = torch.tensor(own)
        self._table = table
        pages = (layout.Pages * len(projections))(*(self._of(each) for each in projections))
        self.data = layout.Adapters(pages, table.data_ptr(), most, PAGE_RANK)

    def _of(self, projection: Projection) -> layout.Pages:
        assert self.batch is not None
        stack = self.batch.stacks.get(projection)
        if stack is None:
            return layout.Pages()
        sizes = len(stack.names), stack.a.shape[2], stack.b.shape[2]
        return layout.Pages(stack.a.data_ptr(), stack.b.data_ptr(), *sizes)


def _mlp(layer: Layer) -> tuple[Projection, Projection]:
    assert layer.gate_up is not None  # it has no experts
    assert layer.down is not None
    return layer.gate_up, layer.down


def open_step(library: ctypes.CDLL, decoder: Decoder, cache: KVCache) -> DecodeStep | str:
    """Return the compiled step, or what it does not know of the decoder."""
    return unsupported_reason(decoder) or DecodeStep(library, decoder, cache)
