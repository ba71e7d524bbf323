"""The rows of the running sequences: one decode step of fixed shape for all of them."""

from typing import Any

import torch

from src.graphs.step_graphs import CudaGraphs
from src.serving.engine.model_runner import Runner
from src.serving.engine.request import Sequence
from src.serving.engine.step_output import StepOutput
from src.serving.model.chunk import Chunk
from src.serving.sampling import Sampler


class Batch:
    """Owns all that belongs to a row: blocks of the KV cache, tokens, sampling params, adapter.

    A sequence is added, its prompt prefilled in chunks, steps with the others, and is removed.
    What a step reads lies where a captured one finds it; the drawn tokens never leave the device.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        *,
        num_slots: int,
        device: torch.device,
        graphs: CudaGraphs | None,
    ) -> None:
        self._runner, self._sampler, self._graphs = runner, sampler, graphs
        self._cache, self._short_length = runner.kv_cache, runner.short_length
        self._free = set(range(num_slots))
        self._rows: list[Sequence | None] = [None] * num_slots  # that step
        self._lengths = [0] * num_slots  # of what the slot holds after the next step
        self._tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        # No row that steps is at position 0: that is an idle one's.
        self._positions = torch.zeros(num_slots, dtype=torch.long, device=device)
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

    def has_room(self, sequence: Sequence) -> bool:
        """Whether there are a slot and blocks of the KV cache for a sequence."""
        return bool(self._free) and self._cache.has_room(*sequence.text(self._short_length))

    @property
    def most_beside(self) -> int:
        """How many tokens of prompts a step can read too; 0 where they take passes of their own."""
        return max(0, self._runner.most_mixed - len(self.running))

    def add(self, sequence: Sequence) -> bool:
        """Give a sequence a slot, its adapter one on the device, and what is known of its prompt.

        Returns False, with nothing changed, while there is no room for its adapter.
        """
        adapter = sequence.request.adapter
        if adapter is not None:
            sequence.lora_slot = self._runner.lora.acquire(adapter)
            if sequence.lora_slot is None:
                return False
        # The lowest slot: a step computes all rows up to the highest one in use.
        sequence.slot = slot = min(self._free)
        self._free.remove(slot)
        self._lengths[slot] = 0
        key, sequence.context_ids = sequence.text(self._short_length)
        sequence.num_computed_tokens = self._cache.place(slot, key, sequence.context_ids)
        return True

    def is_outgrown(self, sequence: Sequence) -> bool:
        """Whether the next step makes a running text long, and it was read as a short one."""
        return len(sequence.context_ids) <= self._short_length < self._lengths[sequence.slot]

    def most_ahead(self, sequence: Sequence, most: int) -> int:
        """Return how many tokens, up to so many, may be speculated: a short text stays one."""
        left = self._short_length - self._lengths[sequence.slot]
        return most if left < 0 else min(left, most)

    def grow(self, sequence: Sequence, num_tokens: int = 0) -> bool:
        """Give a sequence room for so many tokens more, or those of its next step.

        Returns False while all blocks are in use.
        """
        start = sequence.num_computed_tokens
        if self._rows[sequence.slot] is sequence:
            start = self._lengths[sequence.slot] - 1
            num_tokens += 1
        return self._cache.grow(sequence.slot, start + num_tokens, start)

    def prefill(self, parts: list[tuple[Sequence, int]]) -> torch.Tensor | None:
        """Read so many tokens more of each prompt, for which there is room, in one pass.

        Returns the scores after the prompts that are read to their end (prompts, vocabulary).
        """
        chunks = [sequence.chunk(num_tokens) for sequence, num_tokens in parts]
        logits = self._runner.prefill(chunks)
        self._learn(parts, chunks)
        return logits

    def _learn(self, parts: list[tuple[Sequence, int]], chunks: list[Chunk]) -> None:
        for (sequence, _), chunk in zip(parts, chunks, strict=True):
            self._cache.learn(sequence.slot, chunk.ids)
            sequence.num_computed_tokens = chunk.stop

    def start(self, sequence: Sequence, logits: torch.Tensor) -> StepOutput:
        """Draw the token after what was read of a sequence, by its scores (1, vocabulary).

        From then on it takes part in the steps.
        """
        request, slot, stop = sequence.request, sequence.slot, sequence.num_computed_tokens
        self._sampler.hide_unused_(logits)
        # Not before: in steps of the others this slot has been an idle row, and they draw for it.
        self._sampler.set(
            slot,
            request.sampling,
            prompt_ids=request.prompt_ids,
            output_ids=sequence.output_ids,
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
        return StepOutput.of(token, logits, [sequence])

    def apply_grammar(self, sequence: Sequence) -> None:
        """Allow only the tokens that a sequence's grammar lets through next."""
        if sequence.request.grammar is not None:
            sequence.request.grammar.fill(self._sampler.allowed[sequence.slot])

    def step(self) -> StepOutput:
        """Read the last token of every row and draw the next ones."""
        rows = self._rows_to_step()
        num_rows = len(rows)
        lengths = [0 if row is None else self._lengths[row.slot] for row in rows]

        def step() -> torch.Tensor:
            return self._step(num_rows, lengths)

        if self._graphs is None:
            logits = step()
        else:
            lora_key = None if self._lora is None else self._lora.key
            bucket = self._runner.length_bucket(max(lengths))
            logits = self._graphs.run((num_rows, self._features, lora_key, bucket), step)
        return self._stepped(rows, logits)

    def step_and_prefill(
        self, parts: list[tuple[Sequence, int]]
    ) -> tuple[StepOutput, torch.Tensor | None]:
        """Do what `step` and `prefill` do, in one pass, which reads the weights once."""
        rows = self._rows_to_step()
        chunks = [sequence.chunk(num_tokens) for sequence, num_tokens in parts]
        for row in self.running:
            position = self._lengths[row.slot] - 1
            chunks.append(Chunk(row.slot, [row.output_ids[-1]], position, row.lora_slot, 1))
        scores = self._runner.prefill(chunks)
        assert scores is not None  # of the rows
        num_running = len(chunks) - len(parts)
        logits = scores.new_zeros((len(rows), scores.shape[1]))
        logits[[row.slot for row in self.running]] = scores[-num_running:]
        self._draw(logits)
        self._learn(parts, chunks[: len(parts)])
        return self._stepped(rows, logits), scores[:-num_running]

    def _rows_to_step(self) -> list[Sequence | None]:
        """Return the rows up to the last that runs, about which all is known that a step reads."""
        num_rows = 1 + max(slot for slot, row in enumerate(self._rows) if row is not None)
        if self._graphs is not None:
            num_rows = min(1 << (num_rows - 1).bit_length(), len(self._rows))
        rows = self._rows[:num_rows]
        if self._is_changed:
            self._is_changed = False
            self._features = self._sampler.features(slice(num_rows))
            # An idle row has a neighbour's adapter: nobody reads what comes of it.
            lora_slots = [(row or self.running[0]).lora_slot for row in rows]
            self._lora = self._runner.lora.batch(lora_slots)
        return rows

    def _stepped(self, rows: list[Sequence | None], logits: torch.Tensor) -> StepOutput:
        for row in self.running:
            self._lengths[row.slot] += 1
        return StepOutput.of(self._tokens[: len(rows)], logits, rows)

    def verify(self, sequence: Sequence, proposed: list[int]) -> StepOutput:
        """Read a row's last token and those proposed to follow it; keep what steps would draw.

        There is room for them.
        The keys and values of rejected tokens stay in the cache until others replace them.
        """
        slot, start = sequence.slot, self._lengths[sequence.slot] - 1
        ids = [sequence.output_ids[-1], *proposed]
        logits = self._runner.prefill([Chunk(slot, ids, start, sequence.lora_slot, len(ids))])
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
        is_started, self._rows[slot] = self._rows[slot] is not None, None
        self._is_changed = True
        if is_valid and is_started:
            # The last token was drawn, and perhaps not read.
            num_read = len(sequence.context_ids) - len(sequence.request.prompt_ids)
            self._cache.learn(slot, sequence.output_ids[num_read:-1])
        self._cache.release(slot, is_valid=is_valid)
        self._sampler.clear(slot)
        self._positions[slot] = self._advance[slot] = 0
        sequence.slot, sequence.lora_slot = -1, None

    def _step(self, num_rows: int, lengths: list[int]) -> torch.Tensor:
        tokens, positions = self._tokens[:num_rows], self._positions[:num_rows]
        logits = self._runner.decode(tokens, positions, lengths, self._lora)
        self._draw(logits)
        return logits

    def _draw(self, logits: torch.Tensor) -> None:
        """Draw the next tokens of the first rows by their scores (rows, vocabulary)."""
        rows = slice(len(logits))
        self._sampler.hide_unused_(logits)
        positions = self._positions[rows].add_(self._advance[rows])
        drawn = self._sampler.draw(logits, positions, rows=rows, features=self._features)
        self._tokens[rows] = drawn
