"""What a step drew."""

from dataclasses import dataclass

import torch

from src.serving.engine.request import Sequence, Token


@dataclass(frozen=True)
class StepOutput:
    """The tokens of one step, on their way from the device."""

    tokens: torch.Tensor  # (rows,)
    logits: torch.Tensor  # (rows, vocabulary)
    rows: list[Sequence | None]
    ready: torch.cuda.Event | None = None

    @classmethod
    def of(
        cls, tokens: torch.Tensor, logits: torch.Tensor, rows: list[Sequence | None]
    ) -> "StepOutput":
        """Return tokens that the next step may be drawn over."""
        if tokens.device.type == "cpu":
            return cls(tokens.clone(), logits, rows)
        on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        on_host.copy_(tokens, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return cls(on_host, logits, rows, ready)

    def ids(self) -> list[int]:
        """Wait for the tokens."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.tokens.tolist()

    @property
    def needs_sync(self) -> bool:
        """Whether the next step depends on what the host makes of this one."""
        running = {row for row in self.rows if row is not None}
        is_alone = len(running) == 1
        return any(
            row.request.grammar is not None
            or row.request.num_logprobs >= 0
            or (is_alone and row.proposer is not None and row.proposer.has_credit)
            for row in running
        )

    def token(self, row: int, token_id: int) -> Token:
        """Return the token of a row, with log-probabilities if its request asks for them."""
        sequence = self.rows[row]
        if sequence is None or sequence.request.num_logprobs < 0:
            return Token(token_id)
        logprobs = self.logits[row].float().log_softmax(-1)
        values, ids = logprobs.topk(min(sequence.request.num_logprobs, len(logprobs)))
        best = zip(ids.tolist(), values.tolist(), strict=True)
        return Token(token_id, float(logprobs[token_id]), tuple(best))
