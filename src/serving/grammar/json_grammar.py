"""Answers that are JSON of a given schema: which tokens may come next."""

import json
import math
import re
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from src.chat.tokenizer import Tokenizer, check_unicode
from src.errors import UserError
from src.serving.grammar import trial

MAX_CHARACTERS = 64_000
MAX_MULTIPLE = 2**31
"""llguidance computes with 32 bits, and follows another schema where those overflow."""
NUM_REMEMBERED = 256
TOO_MUCH: dict[int, str] = {
    signal.SIGPROF: f"one that takes more than {trial.CPU_SECONDS} s to follow",
    signal.SIGABRT: f"one that takes more than {trial.MEMORY_BYTES >> 20} MB to follow",
    signal.SIGSEGV: "too many properties, or levels of nesting and references",
}
"""By the signal that ended the trial."""


class JsonGrammars:
    """Makes the grammar of a schema; the vocabulary is read at the first one."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def start(self, schema: str) -> "JsonGrammar":
        """Return the grammar of a JSON schema; raises UserError for one that cannot be followed."""
        _check_text(schema)
        if found := _found_in_trial(schema):
            raise UserError(f"json_schema: expected a smaller or simpler schema, found {found}")
        try:
            matcher = trial.make_matcher(self._words(), schema)
            if matcher.is_error():
                raise ValueError(matcher.get_error())
        except ValueError as error:
            raise UserError(
                f"json_schema: expected a schema that can be followed, found: {_reason(str(error))}"
            ) from None
        return JsonGrammar(matcher, self._vocab_size)

    def _words(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = from_tokenizer(
                    self._tokenizer.tokenizer,
                    n_vocab=self._vocab_size,
                    eos_token=sorted(self._tokenizer.end_ids),
                )
            return self._vocabulary


class JsonGrammar:
    """Follows one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> "JsonGrammar":
        """Return another one that has come as far, for another answer."""
        return JsonGrammar(self._matcher.deep_copy(), self._vocab_size)

    @property
    def is_whole(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

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


def _check_text(schema: str) -> None:
    """Raise UserError for what is no JSON object, or too large to be looked at."""
    if len(schema) > MAX_CHARACTERS:
        raise UserError(
            f"json_schema: expected at most {MAX_CHARACTERS:,} characters, found {len(schema):,}"
        )
    check_unicode("json_schema", schema)
    multiples: list[Any] = []

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        multiples.extend(value for key, value in pairs if key == "multipleOf")
        return dict(pairs)

    try:
        value = json.loads(
            schema, object_pairs_hook=read_object, parse_int=Decimal, parse_float=Decimal
        )
    except (ValueError, RecursionError):
        raise UserError("json_schema: expected JSON, found text that is none") from None
    if not isinstance(value, dict):
        raise UserError("json_schema: expected a JSON object, found something else")
    if not _fit_together([number for number in multiples if isinstance(number, Decimal)]):
        raise UserError(
            "json_schema: expected 'multipleOf' with a least common multiple of at most "
            f"{MAX_MULTIPLE:,} (without the point), found a larger one"
        )


def _fit_together(multiples: list[Decimal]) -> bool:
    numbers = [number.normalize() for number in multiples if number]
    if any(abs(number.adjusted()) > 10 for number in numbers):
        return False
    places = max((-int(number.as_tuple().exponent) for number in numbers), default=0)
    return math.lcm(*(int(number.scaleb(max(0, places))) for number in numbers)) <= MAX_MULTIPLE


@lru_cache(NUM_REMEMBERED)
def _found_in_trial(schema: str) -> str:
    """Return what is too much in a schema; "" where nothing is."""
    done = subprocess.run(
        [sys.executable, "-I", trial.__file__], input=schema.encode(), capture_output=True
    )
    if done.returncode > 0:
        raise RuntimeError(f"json_schema: the trial failed: {done.stderr.decode()[-300:]}")
    return TOO_MUCH.get(-done.returncode, "one that ends its process") if done.returncode else ""


def _reason(error: str) -> str:
    if error.startswith("NoExtension"):
        return "there is no text that goes on from here"
    if error.startswith("panic"):
        return "it is too large"
    # The position would be one in the text that llguidance makes of the schema.
    error = re.sub(r" at line \d+ column \d+", "", error.split("<non-verbose")[0])
    return " ".join(error.split())[:200]
