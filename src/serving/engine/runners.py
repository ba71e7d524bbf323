"""Which forward pass a base model gets: ours over a paged cache, or transformers' own."""

from ctypes import CDLL
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from src.errors import UserError
from src.model.core.decoder import Decoder
from src.model.core.layers import Projection
from src.model.core.proof import open_proven
from src.model.isolation import find_neighbour_effect
from src.serving.cache.budget import adapter_bytes_that_fit, free_bytes, plan_cache
from src.serving.engine.model_runner import ModelRunner, Runner, groups_of
from src.serving.engine.prefill_queue import TOKENS_ALONE
from src.serving.model.fused_projection import FusedProjection, RowMajorProjection
from src.serving.model.transformers_model import TransformersRunner
from src.serving.native.decode_step import SeparateProjection
from src.serving.parallel.followers import Followers
from src.serving.parallel.leader import LeadingRunner


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """What is asked of a forward pass."""

    max_slots: int
    max_adapters: int
    max_seq_len: int
    cache_bytes: float | None
    """Of the key/value cache; None for what is free."""
    is_captured: bool
    in_float8: bool
    is_compiled: bool
    library: CDLL | None
    """The compiled step of a CPU."""


class Ranks(Protocol):
    """The ranks that a model is split between."""

    @property
    def num_ranks(self) -> int:
        """How many there are."""
        ...

    def agree(self, value: int, /) -> int:
        """Return the smallest of the values of all ranks."""
        ...

    def join(self, device: torch.device, /) -> None:
        """Meet the others."""


def build_runner(
    model: Any, options: RunnerOptions, ranks: Ranks | None = None
) -> tuple[Runner, int]:
    """Return the forward pass of a model, and the longest sequence that it has room for.

    `ranks` are those that have a part of the model each, as `model` is one. Raises UserError where
    the device has no room, or what is asked for cannot be.
    """
    decoder = open_proven(model, Decoder, _projection_of(model, options.library))
    if isinstance(decoder, str):
        if ranks is not None:
            raise UserError(f"TENSOR_PARALLEL: expected 1, found {ranks.num_ranks}: {decoder}")
        if options.in_float8:
            raise UserError(f"BASE_WEIGHTS: expected none, found 'fp8': {decoder}")
        print(f"this base model runs in transformers: {decoder}", flush=True)
        if options.cache_bytes is not None:
            print("KV_CACHE_GB without effect: transformers takes what it needs", flush=True)
        find_neighbour_effect(model)  # refuses a model that is not causal
        return TransformersRunner(model), options.max_seq_len
    device = decoder.device
    if options.in_float8:
        held = decoder.hold_in_float8(for_training=False)
        how = "" if device.type == "cuda" else ", emulated, which is slow"
        print(f"{held}{how}", flush=True)
    if device.type == "cpu":
        decoder.sum_dtype = torch.float32
    else:
        # Weights that became parts of wider ones have left gaps.
        torch.cuda.empty_cache()
    free = free_bytes(device)
    if ranks is not None:
        if device.type == "cpu":  # whose memory is that of all ranks
            free //= ranks.num_ranks
        free = ranks.agree(free)
        ranks.join(device)
        decoder.layers = [replace(layer, is_part=True) for layer in decoder.layers]
    layers = groups_of(decoder)
    plan = plan_cache(
        layers,
        decoder.bytes_per_token // len(layers.places),
        max_seq_len=options.max_seq_len,
        num_slots=options.max_slots,
        most_read=TOKENS_ALONE,
        state_bytes=options.max_slots * decoder.bytes_per_sequence,
        asked_bytes=options.cache_bytes,
        free=free,
        device=device,
    )
    on_each = "" if ranks is None else f" on each of {ranks.num_ranks} ranks"
    print(f"{plan.description}{on_each}", flush=True)
    if decoder.deltas:
        print(
            "each prompt is read from its beginning, and no token ahead of its turn: gated delta "
            "layers keep one state of all that was read",
            flush=True,
        )
    if plan.max_seq_len < options.max_seq_len:
        print(
            f"context: {plan.max_seq_len:,} tokens in place of {options.max_seq_len:,}, for which "
            "the KV cache has no room",
            flush=True,
        )
    kind = partial(LeadingRunner, followers=ranks) if isinstance(ranks, Followers) else ModelRunner
    runner = kind(
        decoder,
        num_slots=options.max_slots,
        num_pages=plan.num_pages,
        max_seq_len=plan.max_seq_len,
        num_adapters=options.max_adapters,
        adapter_bytes=adapter_bytes_that_fit(free),
        has_fixed_shapes=options.is_captured,
        is_compiled=options.is_compiled,
        library=options.library,
        most_read=TOKENS_ALONE,
    )
    if runner.short_length:
        print(
            f"a text that grows beyond {runner.short_length:,} tokens is read again: longer ones "
            "are rotated by other frequencies",
            flush=True,
        )
    return runner, plan.max_seq_len


def _projection_of(model: Any, library: CDLL | None) -> type[Projection]:
    """Return how weights are held: together, but in 16 bits where the compiled step reads them.

    Together they are multiplied faster; apart they may stay in the file.
    """
    if library is None:
        return FusedProjection
    return RowMajorProjection if model.dtype == torch.float32 else SeparateProjection
