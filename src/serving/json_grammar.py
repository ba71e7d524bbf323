"""Answers that are JSON of a given schema: which tokens may come next."""

import json
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from src.errors import UserError
from src.text.tokenizer import Tokenizer

MAX_CHARACTERS = 100_000


class JsonGrammars:
    """Makes the grammar of a schema; the vocabulary is read at the first one."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = sorted(end_ids)
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def check(self, schema: str) -> str:
        """Return the grammar of a JSON schema; raises UserError for one that cannot be followed."""
        if len(schema) > MAX_CHARACTERS:
            raise UserError(
                f"json_schema: expected at most {MAX_CHARACTERS:,} characters, "
                f"found {len(schema):,}"
            )
        try:
            value = json.loads(schema)
        except (ValueError, RecursionError):
            raise UserError("json_schema: expected JSON, found text that is none") from None
        if not isinstance(value, dict):
            raise UserError("json_schema: expected a JSON object, found something else")
        grammar = LLMatcher.grammar_from_json_schema(schema)
        error = LLMatcher.validate_grammar(grammar, self._words())
        if error and not error.startswith("WARNING"):
            reason = " ".join(error.split())[:200]
            raise UserError(f"json_schema: expected a schema that can be followed, found: {reason}")
        return grammar

    def start(self, grammar: str) -> "JsonGrammar":
        """Return a grammar at its beginning, for one answer."""
        return JsonGrammar(LLMatcher(self._words(), grammar, log_level=0), self._vocab_size)

    def _words(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = from_tokenizer(
                    self._tokenizer.tokenizer, n_vocab=self._vocab_size, eos_token=self._end_ids
                )
            return self._vocabulary


class JsonGrammar:
    """Follows one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def fill(self, allowed: torch.Tensor) -> None:
        """Write into a boolean row of the vocabulary which tokens are allowed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        flags = np.unpackbits(bits, bitorder="little", count=self._vocab_size).astype(bool)
        self._check()
        allowed.copy_(torch.from_numpy(flags))

    def push(self, token: int) -> None:
        """Take the token that was drawn."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:200]
            raise UserError(f"json_schema: could not be followed to the end: {reason}")
