"""From the engine's tokens to the text of an answer."""

import json
from typing import Any

from src.chat.tokenizer import Tokenizer
from src.serving.engine.request import Event, Token
from src.serving.output.detokenizer import Detokenizer
from src.serving.output.stopping import StopBuffer


class Answer:
    """One answer, from tokens to text that is sure to stand."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: list[int],
        *,
        stop_sequences: tuple[str, ...],
        prefix: str,
        min_new_tokens: int,
        shows_calls: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_ids, shows_calls=shows_calls)
        self._stop = StopBuffer(stop_sequences) if stop_sequences else None
        self._prefix, self._begun, self._min_new_tokens = prefix, "", min_new_tokens
        self.num_tokens = 0
        self.finish_reason: str = "canceled"
        self.is_over = False
        self.logprobs: list[dict[str, Any]] = []

    def push(self, event: Event) -> str:
        """Return the text that an event makes sure; raises the error of a failed answer."""
        if self.is_over:
            return ""
        if isinstance(event, Token):
            return self._push_token(event)
        text = self._settled(self._detokenizer.flush(), can_stop=True, is_last=True)
        if self.is_over:
            return text
        self.is_over, self.finish_reason = True, event.reason
        if event.error is not None:
            raise event.error
        return text + (self._stop.flush() if self._stop else "")

    def _push_token(self, token: Token) -> str:
        self.num_tokens += 1
        if token.logprob is not None:
            best = [self._logprob(*scored) for scored in token.best]
            self.logprobs.append({**self._logprob(token.id, token.logprob), "top": best})
        if token.id in self._tokenizer.end_ids:
            return ""
        text = self._detokenizer.push(token.id)
        return self._settled(text, can_stop=self.num_tokens > self._min_new_tokens)

    def _settled(self, text: str, *, can_stop: bool, is_last: bool = False) -> str:
        if self._prefix:
            # What the format puts before an answer is no part of it.
            text = self._begun = self._begun + text
            if not is_last and self._prefix.startswith(text):
                return ""
            text, self._prefix = text.removeprefix(self._prefix), ""
        if can_stop and self._stop:
            text, is_stopped = self._stop.push(text)
            if is_stopped:
                self.is_over, self.finish_reason = True, "stop"
        return text

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        text = self._tokenizer.tokenizer.decode([token])
        return {"token": text, "logprob": round(value, 6)}


class Output:
    """The text of a request: one answer as it is, several as a JSON list of strings."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers
        self._waiting = [""] * len(answers)
        self._current = 0
        self._mark = '["'

    @property
    def is_over(self) -> bool:
        """Whether all answers have ended."""
        return all(answer.is_over for answer in self._answers)

    def push(self, number: int, event: Event) -> str:
        """Return the text to show now: of several answers the first unfinished one streams."""
        text = self._answers[number].push(event)
        if len(self._answers) == 1:
            return text
        self._waiting[number] += text
        shown = ""
        while self._current < len(self._answers):
            shown += self._mark + json.dumps(self._waiting[self._current])[1:-1]
            self._waiting[self._current] = self._mark = ""
            if not self._answers[self._current].is_over:
                break
            self._current += 1
            self._mark = '", "'
            if self._current == len(self._answers):
                shown += '"]'
        return shown
