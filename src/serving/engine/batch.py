"""The rows of the running requests: one decode step of fixed shape for all of them."""

from dataclasses import dataclass

import torch

from src.serving.engine.cuda_graphs import CudaGraphs
from src.serving.engine.model_runner import ModelRunner
from src.serving.engine.request import Sequence, TokenScores
from src.serving.sampling.sampler import Sampler


@dataclass(frozen=True)
class StepOutput:
    """The tokens of one step, on their way from the device."""

    tokens: torch.Tensor  # (rows,)
    logits: torch.Tensor  # (rows, vocabulary)
    rows: list[Sequence | None]
    ready: torch.cuda.Event | None = None

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
            row.grammar is not None or row.num_logprobs >= 0 or (is_alone and row.can_be_speculated)
            for row in running
        )

    def scores(self, row: int, token: int) -> TokenScores | None:
        """Return how likely the model found a row's token, if its request asks for that."""
        request = self.rows[row]
        if request is None or request.num_logprobs < 0:
            return None
        logprobs = self.logits[row].float().log_softmax(-1)
        values, ids = logprobs.topk(min(request.num_logprobs, len(logprobs)))
        best = zip(ids.tolist(), values.tolist(), strict=True)
        return TokenScores(float(logprobs[token]), tuple(best))


class Batch:
    """What a step reads lies where a captured one finds it; the drawn tokens never leave it."""

    def __init__(
        self,
        forward: ModelRunner,
        sampler: Sampler,
        *,
        num_slots: int,
        max_seq_len: int,
        device: torch.device,
    ) -> None:
        self._forward, self.sampler, self._max_seq_len = forward, sampler, max_seq_len
        self._tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._positions = torch.full((num_slots,), max_seq_len, dtype=torch.long, device=device)
        self._advance = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._graphs = CudaGraphs() if device.type == "cuda" and forward.is_static else None
        self.rows: list[Sequence | None] = [None] * num_slots
        self._is_changed = True
        self._features: frozenset[str] = frozenset()

    def start(self, request: Sequence, logits: torch.Tensor) -> StepOutput:
        """Draw the first token of a request, whose slot takes part in the steps from now on."""
        slot, position = request.slot, len(request.prompt_ids)
        rows = slice(slot, slot + 1)
        self._positions[slot] = position
        self._advance[slot] = 1
        token = self.sampler.draw(
            logits,
            self._positions[rows],
            rows=rows,
            features=self.sampler.features(rows),
        )
        self._tokens[rows] = token
        self.rows[slot] = request
        request.num_stepped = 1
        self._is_changed = True
        return self._drawn(token, logits, [request])

    def stop(self, slot: int) -> None:
        """Leave a slot out of the steps: it writes where nobody reads."""
        self._positions[slot] = self._max_seq_len
        self._advance[slot] = 0
        self.sampler.clear(slot)
        self.rows[slot] = None
        self._is_changed = True

    def run(self) -> StepOutput:
        """Read the last token of every row and draw the next ones."""
        num_rows = max(slot for slot, row in enumerate(self.rows) if row is not None) + 1
        if self._graphs is not None:
            num_rows = min(1 << (num_rows - 1).bit_length(), len(self.rows))
        rows = self.rows[:num_rows]
        if self._is_changed:
            self._is_changed = False
            self._forward.set_rows(
                [None if row is None else row.lora_slot for row in rows],
                [row is not None for row in rows],
            )
            self._features = self.sampler.features(slice(num_rows))
        running = [row for row in rows if row is not None]
        lengths = [row.length for row in running]

        def step() -> torch.Tensor:
            return self._step(num_rows, lengths)

        if self._graphs is None:
            logits = step()
        else:
            shape = num_rows, self._features, self._forward.plan(lengths)
            logits = self._graphs.run(shape, step)
        for row in running:
            row.num_stepped += 1
        return self._drawn(self._tokens[:num_rows], logits, list(rows))

    def run_ahead(self, request: Sequence, proposed: list[int]) -> StepOutput:
        """Read a row's last token and those proposed to follow it, and draw all that stand.

        Tokens that do not stand stay in the cache until others are written over them.
        """
        slot, start = request.slot, request.length - 1
        ids = [request.ids[-1], *proposed]
        logits = self._forward.prefill(slot, ids, start, request.lora_slot, num_scores=len(ids))
        assert logits is not None
        drawn = self.sampler.draw_ahead(logits, start + 1, proposed, slot=slot)
        self._tokens[slot] = drawn[-1]
        self._positions[slot] = start + len(drawn)
        request.num_stepped += len(drawn)
        return StepOutput(torch.tensor(drawn), logits, [request] * len(drawn))

    def _step(self, num_rows: int, lengths: list[int]) -> torch.Tensor:
        tokens, positions = self._tokens[:num_rows], self._positions[:num_rows]
        logits = self._forward.decode(tokens, positions, lengths)
        positions.add_(self._advance[:num_rows])
        drawn = self.sampler.draw(logits, positions, rows=slice(num_rows), features=self._features)
        tokens.copy_(drawn)
        return logits

    def _drawn(
        self, tokens: torch.Tensor, logits: torch.Tensor, rows: list[Sequence | None]
    ) -> StepOutput:
        if tokens.device.type == "cpu":
            return StepOutput(tokens.clone(), logits, rows)
        # The next step may start before these have arrived.
        there = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        there.copy_(tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return StepOutput(there, logits, rows, event)
