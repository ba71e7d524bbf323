"""Answers that are JSON of a given schema: which tokens may come next."""

import json
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer

from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.serving.grammar.bounds import check_bounds
from src.serving.unicode_text import check_unicode

MAX_CHARACTERS = 64_000
MAX_DIGITS = 300
LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000,
    max_grammar_size=100_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
"""They bound most of the work and the memory, but not all: see `schema_bounds`."""


class JsonGrammars:
    """Makes the grammar of a schema; the vocabulary is read at the first one."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = sorted(end_ids)
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def start(self, schema: str) -> "JsonGrammar":
        """Return the grammar of a JSON schema; raises UserError for one that cannot be followed."""
        value = _parse(schema)
        check_bounds(value)
        # Written anew, so that what is followed is what was checked.
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(value))
        matcher = LLMatcher(self._words(), grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise UserError(
                "json_schema: expected a schema that can be followed, "
                f"found: {_reason(matcher.get_error())}"
            )
        return JsonGrammar(matcher, self._vocab_size)

    def _words(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = from_tokenizer(
                    self._tokenizer.tokenizer, n_vocab=self._vocab_size, eos_token=self._end_ids
                )
            return self._vocabulary


class JsonGrammar:
    """Follows one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> "JsonGrammar":
        """Return another one that has come as far, for another answer."""
        return JsonGrammar(self._matcher.deep_copy(), self._vocab_size)

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
            reason = _reason(self._matcher.get_error())
            raise UserError(f"json_schema: could not be followed to the end: {reason}")


def _parse(schema: str) -> dict[str, Any]:
    if len(schema) > MAX_CHARACTERS:
        raise UserError(
            f"json_schema: expected at most {MAX_CHARACTERS:,} characters, found {len(schema):,}"
        )
    check_unicode("json_schema", schema)
    try:
        value = json.loads(schema, parse_int=_parse_int)
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError("json_schema: expected JSON, found text that is none") from None
    if not isinstance(value, dict):
        raise UserError("json_schema: expected a JSON object, found something else")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UserError(
            f"json_schema: expected numbers of at most {MAX_DIGITS} digits, found {len(digits):,}"
        )
    return int(digits)


def _reason(error: str) -> str:
    if error.startswith("NoExtension"):
        return "there is no text that goes on from here"
    if error.startswith("panic"):
        return "it is too large"
    return " ".join(error.split("<non-verbose")[0].split())[:200]
