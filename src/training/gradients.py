"""The gradients of a step on one rank: summed locally, then handed to DeepSpeed at once.

Until the hand-over no rank waits for another, so a rank that is out of memory can take smaller
pieces and more time: the sums stay what they are.
"""

import contextlib
import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from src.data.collate import Batch
from src.data.packing import Span
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset
from src.errors import UserError
from src.model.recompute import decoder_layers, recompute_layers


class AdapterModule(nn.Module):
    """What DeepSpeed trains: the adapter alone, whose gradients are given to it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.adapter = nn.ParameterList(parameters)

    def forward(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a scalar whose gradients are the given ones."""
        scalar = _GivenGradients.apply(gradients, *self.adapter)
        assert isinstance(scalar, torch.Tensor)
        return scalar


class _GivenGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # type: ignore[override]
        return None, *(gradient * grads[0] for gradient in ctx.gradients)


class GradientSum:
    """Sums loss and gradients over micro-batches; out of memory makes these smaller.

    Where gradients are off, as in a validation, the loss alone is summed.
    """

    def __init__(
        self,
        loss_module: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        make_batch: Callable[[MicroBatch, TokenDataset], Batch],
        recomputed_layers: int,
        max_tokens: int | None = None,
        say: Callable[[str], None],
    ) -> None:
        self._loss_module = loss_module
        self._parameters = list(parameters)
        self._make_batch = make_batch
        self._say = say
        self.recomputed_layers = recomputed_layers
        self.max_tokens = max_tokens
        """Most tokens in one forward and backward pass, where memory holds no more."""
        self.clear()

    def clear(self) -> None:
        """Begin a new step."""
        self.gradients: list[torch.Tensor] = []
        self.loss: torch.Tensor | float = 0.0
        self.weight: torch.Tensor | float = 0.0

    def add(self, micro_batch: MicroBatch, dataset: TokenDataset) -> None:
        """Add a micro-batch; raises UserError for an example that fits in no way."""
        waiting = [[span for sequence in micro_batch for span in sequence]]
        while waiting:
            spans = waiting.pop()
            if not spans:
                continue
            if self.max_tokens is not None and _tokens(spans) > self.max_tokens and len(spans) > 1:
                waiting += _halves(spans)
            elif not self._try(spans, dataset):
                self._make_room(spans, dataset)
                waiting.append(spans)

    def _try(self, spans: Sequence[Span], dataset: TokenDataset) -> bool:
        """Add the spans if memory allows; nothing is added otherwise."""
        batch = self._make_batch((tuple(spans),), dataset)
        try:
            loss = self._loss_module(*vars(batch).values())
            if torch.is_grad_enabled():
                self._add_gradients(torch.autograd.grad(loss, self._parameters))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        self.loss = self.loss + loss.detach()
        self.weight = self.weight + batch.loss_weights.sum()
        return True

    def _add_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        if not self.gradients:
            self.gradients = [gradient.float() for gradient in gradients]
            return
        for total, gradient in zip(self.gradients, gradients, strict=True):
            total += gradient

    def _make_room(self, spans: Sequence[Span], dataset: TokenDataset) -> None:
        """Take fewer tokens at a time, then recompute more layers."""
        release_memory()
        num_tokens, num_layers = _tokens(spans), len(decoder_layers(self._loss_module))
        if len(spans) > 1:
            self.max_tokens = max(num_tokens // 2, *map(len, spans))
            self._say(
                f"out of memory with {num_tokens:,} tokens at a time: from now on at most "
                f"{self.max_tokens:,}; batch and loss stay the same"
            )
        elif self.recomputed_layers < num_layers:
            more = -(-num_layers // 4)
            self.recomputed_layers = min(num_layers, self.recomputed_layers + more)
            recompute_layers(self._loss_module.model, self.recomputed_layers)  # type: ignore[arg-type]
            self._say(
                f"out of memory with {num_tokens:,} tokens at a time: from now on "
                f"{self.recomputed_layers} of {num_layers} layers are recomputed"
            )
        else:
            raise UserError(self._does_not_fit(spans[0], dataset))

    def _does_not_fit(self, span: Span, dataset: TokenDataset) -> str:
        """Return what to tell of an example that is too long, with a length that was tried."""
        fits, fails = 0, len(span)
        self.clear()
        while fails - fits > max(16, fails // 20):
            middle = (fits + fails) // 2
            if self._try([Span(span.start, span.start + middle)], dataset):
                fits = middle
            else:
                fails = middle
            release_memory()
            self.clear()
        return (
            f"{dataset.source_line(span.start)}: out of memory with this example of {len(span):,} "
            f"tokens, alone and with every layer recomputed; expected at most about {fits:,} "
            "tokens, peft_method=qlora or a GPU with more memory"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
    return any(word in str(error) for word in words)


def release_memory() -> None:
    """Give back what a failed attempt held."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # of other C libraries than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tokens(spans: Sequence[Span]) -> int:
    return sum(map(len, spans))


def _halves(spans: list[Span]) -> list[list[Span]]:
    """Split spans in two parts of about as many tokens."""
    parts: list[list[Span]] = [[], []]
    for span in sorted(spans, key=len, reverse=True):
        min(parts, key=_tokens).append(span)
    return parts
