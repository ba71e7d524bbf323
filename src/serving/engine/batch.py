"""The rows of the running sequences: one decode step of fixed shape for all of them."""

from dataclasses import dataclass
from typing import Any

import torch

from src.serving.engine.cuda_graphs import CudaGraphs
from src.serving.engine.model_runner import Runner
from src.serving.engine.prefix_cache import PrefixCache
from src.serving.engine.request import Sequence, Token
from src.serving.sampling import Sampler


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


class Batch:
    """Owns all that belongs to a row: KV cache slot, tokens, sampling params, adapter.

    A sequence is added, its prompt prefilled in chunks, steps with the others, and is removed.
    What a step reads lies where a captured one finds it; the drawn tokens never leave the device.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        *,
        num_slots: int,
        max_seq_len: int,
        device: torch.device,
        graphs: CudaGraphs | None,
    ) -> None:
        self._runner, self._sampler, self._graphs = runner, sampler, graphs
        self._max_seq_len = max_seq_len
        self._prefixes = PrefixCache(num_slots, is_on=runner.is_static)
        self._free = set(range(num_slots))
        self._rows: list[Sequence | None] = [None] * num_slots  # that step
        self._lengths = [0] * num_slots  # of what the slot holds after the next step
        self._tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._positions = torch.full((num_slots,), max_seq_len, dtype=torch.long, device=device)
        self._advance = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._is_changed = True
        self._features: frozenset[str] = frozenset()
        self._lora: Any = None

    @property
    def running(self) -> list[Sequence]:
        """The sequences that take part in the steps."""
        return [row for row in self._rows if row is not None]

    @property
    def num_taken(self) -> int:
        """How many slots have a sequence."""
        return len(self._rows) - len(self._free)

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def add(self, sequence: Sequence) -> bool:
        """Give a sequence a slot, its adapter one on the device, and what is known of its prompt.

        Returns False, with nothing changed, while there is no room for its adapter.
        """
        adapter, prompt_ids = sequence.request.adapter, sequence.request.prompt_ids
        if adapter is not None:
            sequence.lora_slot = self._runner.lora.acquire(adapter)
            if sequence.lora_slot is None:
                return False
        # The lowest slot: a step computes all rows up to the highest one in use.
        sequence.slot = slot = min(self._free)
        self._free.remove(slot)
        self._lengths[slot] = 0
        key = None if adapter is None else adapter.key
        moves, num_cached = self._prefixes.place(slot, sorted(self._free), key, prompt_ids)
        for move in moves:
            self._runner.kv_cache.copy(*move)
        self._runner.kv_cache.clear_tail(slot, len(prompt_ids))
        sequence.num_computed_tokens = sequence.num_cached_tokens = num_cached
        return True

    def prefill(self, sequence: Sequence, max_tokens: int) -> StepOutput | None:
        """Read up to so many tokens of a prompt; after the last one, draw the first token.

        From then on the sequence takes part in the steps.
        """
        request, slot, start = sequence.request, sequence.slot, sequence.num_computed_tokens
        ids = request.prompt_ids[start : start + max_tokens]
        sequence.num_computed_tokens = stop = start + len(ids)
        is_last = stop == len(request.prompt_ids)
        logits = self._runner.prefill(slot, ids, start, sequence.lora_slot, num_scores=int(is_last))
        self._prefixes.extend(slot, ids)
        if logits is None:
            return None
        self._sampler.hide_unused_(logits)
        # Not before: in steps of the others this slot has been an idle row, and they draw for it.
        self._sampler.set(
            slot,
            request.sampling,
            prompt_ids=request.prompt_ids,
            has_grammar=request.grammar is not None,
        )
        self.apply_grammar(sequence)
        rows = slice(slot, slot + 1)
        self._positions[slot], self._advance[slot] = stop, 1
        features = self._sampler.features(rows)
        token = self._sampler.draw(logits, self._positions[rows], rows=rows, features=features)
        self._tokens[rows] = token
        self._rows[slot], self._lengths[slot] = sequence, stop + 1
        self._is_changed = True
        return self._output(token, logits, [sequence])

    def apply_grammar(self, sequence: Sequence) -> None:
        """Allow only the tokens that a sequence's grammar lets through next."""
        if sequence.request.grammar is not None:
            sequence.request.grammar.fill(self._sampler.allowed[sequence.slot])

    def step(self) -> StepOutput:
        """Read the last token of every row and draw the next ones."""
        num_rows = 1 + max(slot for slot, row in enumerate(self._rows) if row is not None)
        if self._graphs is not None:
            num_rows = min(1 << (num_rows - 1).bit_length(), len(self._rows))
        rows = self._rows[:num_rows]
        running = self.running
        if self._is_changed:
            self._is_changed = False
            self._features = self._sampler.features(slice(num_rows))
            # An idle row has a neighbour's adapter: nobody reads what comes of it.
            lora_slots = [(row or running[0]).lora_slot for row in rows]
            has_adapter = any(slot is not None for slot in lora_slots)
            self._lora = self._runner.lora.batch(lora_slots) if has_adapter else None
        lengths = [0 if row is None else self._lengths[row.slot] for row in rows]

        def step() -> torch.Tensor:
            return self._step(num_rows, lengths)

        if self._graphs is None:
            logits = step()
        else:
            lora_key = None if self._lora is None else self._lora.key
            bucket = self._runner.length_bucket(max(lengths))
            logits = self._graphs.run((num_rows, self._features, lora_key, bucket), step)
        for row in running:
            self._lengths[row.slot] += 1
        return self._output(self._tokens[:num_rows], logits, rows)

    def verify(self, sequence: Sequence, proposed: list[int]) -> StepOutput:
        """Read a row's last token and those proposed to follow it; keep what steps would draw.

        The keys and values of rejected tokens stay in the cache until others replace them.
        """
        slot, start = sequence.slot, self._lengths[sequence.slot] - 1
        ids = [sequence.output_ids[-1], *proposed]
        logits = self._runner.prefill(slot, ids, start, sequence.lora_slot, num_scores=len(ids))
        assert logits is not None
        self._sampler.hide_unused_(logits)
        drawn = self._sampler.draw_speculated(logits, start + 1, proposed, slot=slot)
        self._tokens[slot] = drawn[-1]
        self._positions[slot] = start + len(drawn)
        self._lengths[slot] += len(drawn)
        return StepOutput(torch.tensor(drawn), logits, [sequence] * len(drawn))

    def remove(self, sequence: Sequence, *, is_valid: bool) -> None:
        """Free what a sequence holds; later prompts may go on from it, if it is valid."""
        if sequence.lora_slot is not None:
            self._runner.lora.release(sequence.lora_slot)
        slot = sequence.slot
        if slot < 0:
            return
        self._free.add(slot)
        self._rows[slot], self._is_changed = None, True
        self._runner.kv_cache.mark_written(slot, self._lengths[slot])
        if is_valid:
            # The last token was drawn, and perhaps not read.
            self._prefixes.extend(slot, sequence.output_ids[:-1])
        else:
            self._prefixes.forget(slot)
        self._sampler.clear(slot)
        # An idle row writes where nobody reads.
        self._positions[slot], self._advance[slot] = self._max_seq_len, 0

    def _step(self, num_rows: int, lengths: list[int]) -> torch.Tensor:
        tokens, positions = self._tokens[:num_rows], self._positions[:num_rows]
        logits = self._runner.decode(tokens, positions, lengths, self._lora)
        self._sampler.hide_unused_(logits)
        positions.add_(self._advance[:num_rows])
        drawn = self._sampler.draw(logits, positions, rows=slice(num_rows), features=self._features)
        tokens.copy_(drawn)
        return logits

    def _output(
        self, tokens: torch.Tensor, logits: torch.Tensor, rows: list[Sequence | None]
    ) -> StepOutput:
        if tokens.device.type == "cpu":
            return StepOutput(tokens.clone(), logits, rows)
        # The next step may start before these have arrived.
        on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        on_host.copy_(tokens, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return StepOutput(on_host, logits, rows, ready)
