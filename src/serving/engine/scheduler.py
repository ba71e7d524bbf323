"""Who is served when: sequences wait, get a slot, are prefilled in chunks, and step together.

Where the KV cache is full, the youngest waits again; what it had is computed again.
"""

import time
from collections.abc import Iterable

import torch

from src.errors import RankLost
from src.serving.engine.batch import Batch
from src.serving.engine.ngram import NgramProposer
from src.serving.engine.prefill_queue import PrefillQueue, WaitingQueue
from src.serving.engine.request import Finished, FinishReason, Sequence
from src.serving.engine.step_output import StepOutput
from src.serving.engine.totals import Totals


class Scheduler:
    """One step after the other, all on the engine's thread."""

    def __init__(
        self,
        batch: Batch,
        totals: Totals,
        *,
        end_ids: Iterable[int],
        can_overlap: bool,
        can_speculate: bool,
    ) -> None:
        self._batch, self._totals = batch, totals
        self._end_ids = frozenset(end_ids)
        self._can_overlap, self._can_speculate = can_overlap, can_speculate
        self._queue = WaitingQueue(batch)
        self._waiting = self._queue.sequences
        self._prefills = PrefillQueue(batch)
        self._prefilling = self._prefills.sequences
        self._in_flight: StepOutput | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._batch.num_taken or self._in_flight)

    @property
    def num_running(self) -> int:
        """How many sequences have a slot."""
        return self._batch.num_taken

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for a slot."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        self._waiting.append(sequence)

    def step(self) -> None:
        """Admit who has room, prefill chunks, step all rows, and hand out what was drawn."""
        self._drop_canceled()
        for sequence in self._queue.admit(self._fail):
            self._take(sequence)
        is_awaited, started = bool(self._batch.running), time.monotonic()
        parts: list[tuple[Sequence, int]] = []
        if self._prefilling:
            self._make_room()
            parts = self._prefills.next_parts(self._preempt)
        if parts and self._batch.running and self._batch.most_beside:
            output, logits = self._batch.step_and_prefill(parts)
            self._start(parts, logits)
        else:
            if parts:
                self._prefill(parts)
            self._make_room()
            output = None
            if running := self._batch.running:
                output = self._speculate(running) or self._batch.step()
        # The tokens of the step before are handed out while this one runs.
        before, self._in_flight = self._in_flight, None
        self._process_outputs(before)
        if output is not None and self._can_overlap and not output.needs_sync:
            self._in_flight = output
        else:
            self._process_outputs(output)
        if is_awaited:
            num_prompt_tokens = sum(num_tokens for _, num_tokens in parts)
            self._prefills.budget.record(num_prompt_tokens, time.monotonic() - started)

    def fail(self, error: Exception) -> None:
        """End every sequence that is known."""
        self._in_flight = None
        for sequence in [*self._waiting, *self._prefilling, *self._batch.running]:
            try:
                self._finish(sequence, "error", error)
            except Exception as failure:
                print(f"a slot is lost: {failure}", flush=True)
        self._waiting.clear()
        self._prefilling.clear()

    def _drop_canceled(self) -> None:
        everyone = [*self._waiting, *self._prefilling, *self._batch.running]
        for sequence in [sequence for sequence in everyone if sequence.is_canceled]:
            self._finish(sequence, "canceled")
            for queue in (self._waiting, self._prefilling):
                if sequence in queue:
                    queue.remove(sequence)

    def _take(self, sequence: Sequence) -> None:
        if sequence.started_at is None:
            sequence.started_at = time.monotonic()
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._totals.num_cached_tokens += sequence.num_computed_tokens
            if self._can_speculate and sequence.request.grammar is None:
                sequence.proposer = NgramProposer(sequence.request.prompt_ids)
        self._prefilling.append(sequence)

    def _prefill(self, parts: list[tuple[Sequence, int]]) -> None:
        """Read parts of prompts, in a pass of their own."""
        try:
            logits = self._batch.prefill(parts)
        except Exception as error:
            for sequence, _ in parts:
                self._prefilling.remove(sequence)
                self._finish(sequence, "error", error)
            _raise_if_lost(error)
            return
        self._start(parts, logits)

    def _start(self, parts: list[tuple[Sequence, int]], logits: torch.Tensor | None) -> None:
        """Start the sequences whose prompts are read to their end, by their scores."""
        row = 0
        for sequence, num_tokens in parts:
            if not sequence.num_preempted:
                self._totals.num_computed_tokens += num_tokens
            if sequence.num_computed_tokens < len(sequence.context_ids):
                continue
            self._prefilling.remove(sequence)
            assert logits is not None
            try:
                output = self._batch.start(sequence, logits[row : row + 1])
                self._append(sequence, output, 0, output.ids()[0])
            except Exception as error:
                self._fail(sequence, error)
            row += 1

    def _make_room(self) -> None:
        """Let every running sequence have room for its next token; the youngest make it.

        A text whose next token makes its keys and values those of another is read again.
        """
        for sequence in self._batch.running:
            while sequence.slot >= 0:
                is_outgrown = self._batch.is_outgrown(sequence)
                if not is_outgrown and self._batch.grow(sequence):
                    break
                if self._in_flight is not None:
                    before, self._in_flight = self._in_flight, None
                    self._process_outputs(before)
                elif is_outgrown:
                    self._preempt(sequence)
                else:
                    everyone = [*self._prefilling, *self._batch.running]
                    self._preempt(max(everyone, key=lambda other: other.submitted_at))

    def _preempt(self, sequence: Sequence) -> None:
        """Let a sequence wait again; what others do not need meanwhile of it is found again."""
        self._batch.remove(sequence, is_valid=True)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        for counts in (sequence, self._totals):
            counts.num_preempted += 1
        self._waiting.appendleft(sequence)

    def _speculate(self, running: list[Sequence]) -> StepOutput | None:
        """Step over several tokens of a sequence that runs alone, where its text repeats."""
        sequence = running[0]
        # Beside others, and behind a step in flight, the device has enough to do.
        if len(running) > 1 or sequence.proposer is None or self._in_flight is not None:
            return None
        most = sequence.max_tokens - len(sequence.output_ids) - 1
        most = self._batch.most_ahead(sequence, most)
        proposed = sequence.proposer.propose(sequence.output_ids, most)
        if not proposed or not self._batch.grow(sequence, len(proposed)):
            return None
        output = self._batch.verify(sequence, proposed)
        num_accepted = len(output.rows) - 1
        sequence.proposer.update(len(proposed), num_accepted)
        for counts in (sequence, self._totals):
            counts.num_proposed += len(proposed)
            counts.num_accepted += num_accepted
        return output

    def _process_outputs(self, output: StepOutput | None) -> None:
        if output is None:
            return
        for row, (sequence, token) in enumerate(zip(output.rows, output.ids(), strict=True)):
            if sequence is None or sequence.is_finished:
                continue
            try:
                self._append(sequence, output, row, token)
            except Exception as error:
                self._fail(sequence, error)

    def _append(self, sequence: Sequence, output: StepOutput, row: int, token: int) -> None:
        """Hand a token to its request, and see whether it was the last."""
        request, ids = sequence.request, sequence.output_ids
        ids.append(token)
        self._totals.count_output_token()
        if sequence.first_token_at is None:
            sequence.first_token_at = time.monotonic()
        request.on_output(output.token(row, token))
        if token in self._end_ids and not request.ignores_end:
            self._finish(sequence, "end")
            return
        if request.grammar is not None:
            request.grammar.push(token)
        if len(ids) >= sequence.max_tokens:
            self._finish(sequence, "length")
        else:
            self._batch.apply_grammar(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End one sequence by its error; that of a lost device is everybody's."""
        self._finish(sequence, "error", error)
        _raise_if_lost(error)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: Exception | None = None
    ) -> None:
        if sequence.is_finished:
            return
        sequence.is_finished = True
        try:
            self._batch.remove(sequence, is_valid=error is None)
        finally:
            try:
                sequence.request.on_output(Finished(reason, error))
            except Exception as lost:
                print(f"nobody takes the end of a request: {lost}", flush=True)


def _raise_if_lost(error: Exception) -> None:
    """Raise the error of a device, or of ranks, on which nothing runs any more."""
    if isinstance(error, torch.AcceleratorError | RankLost):
        raise error
