"""How a run goes: lines for the log, and the same numbers as JSON lines."""

import json
import math
import time
from pathlib import Path
from typing import Any


def format_duration(seconds: float) -> str:
    """Return a duration as people say it, such as 45 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


ALWAYS_LOGGED = 10
"""First steps that are all logged, so that a long run shows at once how it goes."""


class Progress:
    """Prints one line per logged step and validation, and keeps the same numbers as JSON lines."""

    def __init__(self, path: Path | None, *, num_steps: int, in_float8: bool = False) -> None:
        """Without a path, as on all ranks but one, nothing is printed or kept."""
        self._weights = "float8 weights | " if in_float8 else ""
        self.path = path
        self.num_steps = num_steps
        self.log_every = max(1, num_steps // 100)
        self.begun = self.started = self.last_logged = time.monotonic()
        self.loss_sum = self.weight_sum = 0.0
        self.tokens = self.done = 0
        self.train_loss: float | None = None
        self.validation_loss: float | None = None

    def start(self, done: int) -> None:
        """Start the clock of the steps, when the first one after those done is about to begin."""
        self.started = self.last_logged = time.monotonic()
        self.done = done

    def state(self) -> dict[str, float | None]:
        """Return what a resumed run needs to log the same numbers."""
        sums = {"loss_sum": self.loss_sum, "weight_sum": self.weight_sum, "tokens": self.tokens}
        losses = {"train_loss": self.train_loss, "validation_loss": self.validation_loss}
        return {**sums, **losses}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.loss_sum, self.weight_sum = state["loss_sum"], state["weight_sum"]
        self.tokens = state["tokens"]
        self.train_loss, self.validation_loss = state["train_loss"], state["validation_loss"]

    def step(
        self,
        *,
        step: int,
        epoch: float,
        loss_sum: float,
        weight_sum: float,
        tokens: int,
        learning_rate: float,
        gradient_norm: float,
    ) -> None:
        """Record one optimizer step; a logged one shows the mean loss since the one before.

        Where no token was a target since then, there is no mean, and the next one shows it.
        """
        if weight_sum:
            self.train_loss = loss_sum / weight_sum
        self.loss_sum += loss_sum
        self.weight_sum += weight_sum
        self.tokens += tokens
        is_due = step <= ALWAYS_LOGGED or step % self.log_every == 0 or step == self.num_steps
        if not is_due or not self.weight_sum:
            return
        now = time.monotonic()
        loss = self.loss_sum / self.weight_sum
        tokens_per_second = self.tokens / max(now - self.last_logged, 1e-9)
        left = (now - self.started) / (step - self.done) * (self.num_steps - step)
        self._log(
            f"step {step}/{self.num_steps} | loss {loss:.4f} | learning rate {learning_rate:.2e} | "
            f"{tokens_per_second:,.0f} tokens/s | {format_duration(left)} left"
            f"{self._of_whole(now, left, step)}",
        )
        self._write(
            step=step,
            epoch=round(epoch, 4),
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            tokens_per_second=round(tokens_per_second, 1),
        )
        self.last_logged, self.loss_sum, self.weight_sum, self.tokens = now, 0.0, 0.0, 0

    def validation(self, *, step: int, epoch: float, loss: float | None, reply: str | None) -> None:
        """Record one validation; without examples for it there is no loss, and maybe a reply."""
        record: dict[str, object] = {"step": step, "epoch": round(epoch, 4)}
        if loss is not None:
            self.validation_loss = record["eval_loss"] = loss
            self._log(
                f"validation at step {step}/{self.num_steps} | {self._weights}loss {loss:.4f} | "
                f"perplexity {math.exp(min(loss, 700)):.2f}",
            )
        if reply is not None:
            record["sample"] = reply
            self._log(f"validation sample at step {step}: {reply!r}")
        if loss is not None or reply is not None:
            self._write(**record)

    def _of_whole(self, now: float, left: float, step: int) -> str:
        """Return the time of the whole run, once ten steps have shown it."""
        is_known = step - self.done >= ALWAYS_LOGGED
        return f" of {format_duration(now - self.begun + left)}" if is_known else ""

    def resume_clock(self, seconds: float) -> None:
        """Leave the time of a validation out of the steps' speed."""
        self.started += seconds
        self.last_logged += seconds

    def _write(self, **record: object) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _log(self, line: str) -> None:
        if self.path is not None:
            print(line, flush=True)
