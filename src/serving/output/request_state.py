"""One request while it runs: its answers, and what is reported of it."""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from src.serving.engine.engine import Engine
from src.serving.engine.request import Event, Grammar, Request, Sequence
from src.serving.inputs import RequestInputs
from src.serving.lora.host_cache import Adapter
from src.serving.output.answer import Answer, Output


class RequestState:
    """As many answers as were asked for, generated side by side; each has a seed of its own."""

    def __init__(
        self,
        engine: Engine,
        inputs: RequestInputs,
        adapter: Adapter,
        prompt_ids: list[int],
        *,
        prefix: str,
        grammars: list[Grammar | None],
        received_at: float,
    ) -> None:
        self.inputs, self.adapter = inputs, adapter
        self._engine, self._prompt_ids, self._grammars = engine, prompt_ids, grammars
        self._received_at = received_at
        self._answers = [
            Answer(
                engine.tokenizer,
                prompt_ids,
                stop_sequences=inputs.stop_sequences,
                prefix=prefix,
                min_new_tokens=inputs.sampling.min_new_tokens,
                shows_calls=bool(inputs.tools),
            )
            for _ in range(inputs.num_outputs)
        ]
        self._output = Output(self._answers)
        self._sequences: list[Sequence] = []

    def submit(self, on_output: Callable[[int, Event], Any]) -> None:
        """Ask the engine; raises UserError for a prompt that fills the context."""
        sampling = self.inputs.sampling
        for number, grammar in enumerate(self._grammars):
            request = Request(
                self._prompt_ids,
                replace(sampling, seed=sampling.seed + number),
                partial(on_output, number),
                adapter=self.adapter.loaded,
                grammar=grammar,
                num_logprobs=self.inputs.num_logprobs,
            )
            self._sequences.append(self._engine.submit(request))

    @property
    def is_over(self) -> bool:
        """Whether there is no more text to come."""
        return self._output.is_over

    def push(self, number: int, event: Event) -> str:
        """Return the text to show after an event; raises the error of a failed answer."""
        answer = self._answers[number]
        if answer.is_over:
            return ""
        text = self._output.push(number, event)
        if answer.is_over:
            self._engine.cancel(self._sequences[number])
            self._report_cut(number)
        return text

    def _report_cut(self, number: int) -> None:
        """Print that an answer to a schema is no whole JSON, where it was cut."""
        answer, grammar = self._answers[number], self._grammars[number]
        if grammar is None or answer.finish_reason not in ("length", "stop"):
            return
        if answer.finish_reason == "stop" or not grammar.is_whole:
            print(
                f"answer {number + 1} of {len(self._answers)} is no whole JSON: it was cut after "
                f"{answer.num_tokens:,} tokens ({answer.finish_reason}); expected a larger "
                "max_new_tokens, and no stop_sequences with a json_schema",
                flush=True,
            )

    def cancel(self) -> None:
        """Let the engine go on without this request."""
        for sequence in self._sequences:
            self._engine.cancel(sequence)

    def metrics(self) -> dict[str, Any]:
        """Return what is reported of the request."""
        now = time.monotonic()
        num_tokens = sum(answer.num_tokens for answer in self._answers)
        sequences = self._sequences
        started = [s.started_at for s in sequences if s.started_at is not None]
        first = [s.first_token_at for s in sequences if s.first_token_at is not None]
        metrics = {
            "input_token_count": len(self._prompt_ids),
            "cached_input_token_count": max((s.num_cached_tokens for s in sequences), default=0),
            "output_token_count": num_tokens,
            "proposed_token_count": sum(s.num_proposed for s in sequences),
            "accepted_token_count": sum(s.num_accepted for s in sequences),
            "queue_seconds": round(min(started, default=now) - self._received_at, 4),
            "time_to_first_token": round(min(first, default=now) - self._received_at, 4),
            "tokens_per_second": round(num_tokens / max(now - self._received_at, 1e-9), 2),
            "finish_reason": self._answers[0].finish_reason,
            "seed": self.inputs.sampling.seed,
        }
        if self.adapter.loaded is not None:
            metrics["adapter_was_loaded"] = self.adapter.was_loaded
        if len(self._answers) > 1:
            metrics["finish_reasons"] = [answer.finish_reason for answer in self._answers]
        if self.inputs.num_logprobs >= 0:
            metrics["logprobs"] = [answer.logprobs for answer in self._answers]
        return metrics

    def log_costs(self) -> None:
        """Print the metrics and the memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = time.monotonic() - self._received_at
        print(f"{seconds:.2f} s, peak memory {peak:.2f} GB, {self.metrics()}", flush=True)
