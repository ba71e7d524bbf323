"""Makes a grammar in a process of its own first, where it does no harm: `python trial.py < SCHEMA`.

Some schemas of a few kilobytes take minutes, gigabytes, or more stack than there is, and only the
library that follows them knows which. The process ends by a signal where a bound is passed.
"""

import os
import resource
import signal
import sys
from contextlib import suppress

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000,
    max_grammar_size=100_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
BLANKS = r"( |\r?\n[ \t]{0,16})?"
"""Between two tokens of JSON. Without an end to them, a model that likes blanks writes no more."""
CPU_SECONDS = 0.5
MEMORY_BYTES = 100 * 2**20
STACK_BYTES = 2**20
"""Half of the smallest stack that a thread of a server has."""


def make_matcher(tokenizer: LLTokenizer, schema: str) -> LLMatcher:
    """Return what follows a JSON schema, or holds the error why it cannot.

    Raises ValueError for text that the library does not read.
    """
    grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": BLANKS})
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)


def main() -> None:
    """Make the grammar, right or wrong, and find what may come first."""
    with open("/proc/self/statm") as file:
        max_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    with suppress(ValueError):
        make_matcher(LLTokenizer("byte"), sys.stdin.read()).compute_bitmask()


if __name__ == "__main__":
    main()
