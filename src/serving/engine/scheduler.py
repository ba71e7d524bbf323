"""Who is served when: requests come in, get a slot, are read in pieces, and step together."""

import time
from collections import deque
from collections.abc import Iterable

from src.serving.engine.batch import Batch, StepOutput
from src.serving.engine.model_runner import ModelRunner
from src.serving.engine.ngram import MOST, NgramProposer
from src.serving.engine.prefix_cache import PrefixCache
from src.serving.engine.request import Finished, FinishReason, Sequence, Token
from src.serving.engine.totals import Totals

CHUNK_TOKENS, CHUNK_TOKENS_ALONE = 512, 4096
PATIENCE_SECONDS = 5.0
"""How long others may overtake a request whose adapter finds no room on the device."""


class Scheduler:
    """One turn after the other, all on the engine's thread."""

    def __init__(
        self,
        forward: ModelRunner,
        steps: Batch,
        totals: Totals,
        *,
        num_slots: int,
        end_ids: Iterable[int],
        can_overlap: bool,
        looks_ahead: bool,
    ) -> None:
        self._forward, self._steps, self._totals = forward, steps, totals
        self._end_ids = frozenset(end_ids)
        self._can_overlap, self._looks_ahead = can_overlap, looks_ahead
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._prefixes = PrefixCache(num_slots, is_on=forward.is_static)
        self._num_slots, self._free = num_slots, set(range(num_slots))
        self._in_flight: StepOutput | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self.num_running or self._in_flight)

    @property
    def num_running(self) -> int:
        """How many requests have a slot."""
        return self._num_slots - len(self._free)

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    def add(self, request: Sequence) -> None:
        """Let a request wait for a slot."""
        self._waiting.append(request)

    def step(self) -> None:
        """Admit who has room, read a piece of a prompt, and make one step for all rows."""
        self._drop_canceled()
        self._admit()
        self._prefill()
        running = [row for row in self._steps.rows if row is not None]
        if running:
            drawn = self._run_ahead(running) or self._steps.run()
            if self._can_overlap and not drawn.needs_sync:
                # The tokens of the step before are handed out while this one runs.
                drawn, self._in_flight = self._in_flight, drawn
            else:
                self._process_outputs(self._in_flight)
                self._in_flight = None
            self._process_outputs(drawn)
        else:
            self._process_outputs(self._in_flight)
            self._in_flight = None

    def _run_ahead(self, running: list[Sequence]) -> StepOutput | None:
        """Step over several tokens of a request that runs alone, where they can be foreseen."""
        request = running[0]
        # In company, and in a step that is under way, the device has enough to do.
        if len(running) > 1 or request.lookahead is None or self._in_flight is not None:
            return None
        room = request.max_tokens - request.num_output_tokens - 1
        proposed = request.lookahead.propose(request.ids, room)
        if not proposed:
            return None
        drawn = self._steps.run_ahead(request, proposed)
        num_accepted = len(drawn.rows) - 1
        request.lookahead.settle(len(proposed), num_accepted)
        for counts in (request, self._totals):
            counts.num_proposed += len(proposed)
            counts.num_accepted += num_accepted
        return drawn

    def fail(self, error: Exception) -> None:
        """End every request that is known."""
        self._in_flight = None
        rows = [row for row in self._steps.rows if row is not None]
        for request in [*self._waiting, *self._prefilling, *rows]:
            try:
                self._finish(request, "error", error)
            except Exception as failure:
                print(f"a slot is lost: {failure}", flush=True)
        self._waiting.clear()
        self._prefilling.clear()

    def _drop_canceled(self) -> None:
        everyone = [*self._waiting, *self._prefilling, *self._steps.rows]
        canceled = [r for r in everyone if r is not None and r.is_canceled and not r.is_done]
        for request in canceled:
            self._finish(request, "canceled")
        if canceled:
            self._waiting = deque(r for r in self._waiting if not r.is_done)
            self._prefilling = deque(r for r in self._prefilling if not r.is_done)

    def _admit(self) -> None:
        if not (self._waiting and self._free):
            return
        overtaken: list[Sequence] = []
        while self._waiting and self._free:
            request = self._waiting.popleft()
            try:
                is_admitted = self._start(request)
            except Exception as error:
                self._finish(request, "error", error)
                continue
            if not is_admitted:
                overtaken.append(request)
                if time.monotonic() - request.submitted_at > PATIENCE_SECONDS:
                    break
        self._waiting.extendleft(reversed(overtaken))

    def _start(self, request: Sequence) -> bool:
        if request.adapter is not None:
            request.lora_slot = self._forward.acquire(request.adapter)
            if request.lora_slot is None:
                return False
        # The lowest slot: a step computes all rows up to the highest one in use.
        slot = min(self._free)
        key = None if request.adapter is None else request.adapter.key
        moves, num_known = self._prefixes.place(slot, sorted(self._free), key, request.prompt_ids)
        request.slot = slot
        self._free.remove(slot)
        for move in moves:
            self._forward.copy(move.source, move.target, move.num_tokens)
        request.num_computed_tokens = request.num_cached_tokens = num_known
        self._totals.num_cached_tokens += num_known
        self._forward.clear_tail(slot, len(request.prompt_ids))
        request.started_at = time.monotonic()
        if self._looks_ahead and request.grammar is None:
            request.lookahead = NgramProposer(request.prompt_ids)
        self._prefilling.append(request)
        return True

    def _prefill(self) -> None:
        """Read up to one chunk in all, a short one where running answers would stall."""
        is_alone = not any(row is not None for row in self._steps.rows)
        room = CHUNK_TOKENS_ALONE if is_alone else CHUNK_TOKENS
        while self._prefilling and room > 0:
            request = self._prefilling[0]
            try:
                room -= self._prefill_chunk(request, room)
            except Exception as error:
                self._finish(request, "error", error)
            if request.is_done or not request.is_prefilling:
                self._prefilling.popleft()

    def _prefill_chunk(self, request: Sequence, room: int) -> int:
        start = request.num_computed_tokens
        ids = request.prompt_ids[start : start + room]
        request.num_computed_tokens += len(ids)
        is_last = request.num_computed_tokens == len(request.prompt_ids)
        logits = self._forward.prefill(
            request.slot, ids, start, request.lora_slot, num_scores=int(is_last)
        )
        self._prefixes.append(request.slot, ids)
        self._totals.num_computed_tokens += len(ids)
        if logits is not None:
            # Not before: steps of others, in which this slot has been an idle row, draw for it too.
            self._steps.sampler.set(
                request.slot,
                request.settings,
                prompt_ids=request.prompt_ids,
                has_grammar=request.grammar is not None,
            )
            self._fill_grammar(request)
            drawn = self._steps.start(request, logits)
            self._take(request, drawn, 0, drawn.ids()[0])
        return len(ids)

    def _process_outputs(self, drawn: StepOutput | None) -> None:
        if drawn is None:
            return
        for row, (request, token) in enumerate(zip(drawn.rows, drawn.ids(), strict=True)):
            if request is None or request.is_done:
                continue
            try:
                # The token that was read in this step.
                self._prefixes.append(request.slot, request.ids[-1:])
                self._take(request, drawn, row, token)
            except Exception as error:
                self._finish(request, "error", error)

    def _take(self, request: Sequence, drawn: StepOutput, row: int, token: int) -> None:
        """Hand a token to its request, and see whether it was the last."""
        request.num_output_tokens += 1
        self._totals.count_output_token()
        request.ids.append(token)
        if request.first_token_at is None:
            request.first_token_at = time.monotonic()
        request.on_output(Token(token, drawn.scores(row, token)))
        if token in self._end_ids and not request.ignores_end:
            self._finish(request, "end")
        elif request.num_output_tokens >= request.max_tokens:
            self._finish(request, "length")
        elif request.grammar is not None:
            request.grammar.push(token)
            self._fill_grammar(request)

    def _fill_grammar(self, request: Sequence) -> None:
        if request.grammar is not None:
            request.grammar.fill(self._steps.sampler.allowed[request.slot])

    def _finish(
        self, request: Sequence, reason: FinishReason, error: Exception | None = None
    ) -> None:
        if request.is_done:
            return
        request.is_done = True
        request.finished_at = time.monotonic()
        try:
            self._let_go(request, is_whole=error is None)
        finally:
            try:
                request.on_output(Finished(reason, error))
            except Exception as lost:
                print(f"nobody takes the end of a request: {lost}", flush=True)

    def _let_go(self, request: Sequence, *, is_whole: bool) -> None:
        if request.slot >= 0:
            self._steps.stop(request.slot)
            self._forward.mark_written(request.slot, request.length + MOST)
            self._free.add(request.slot)
            if not is_whole:
                self._prefixes.forget(request.slot)
        if request.lora_slot is not None:
            self._forward.release(request.lora_slot)
