"""Refuses a prompt that is sure to be too long before all of it is encoded."""

from collections.abc import Sequence

from src.chat.segments import Segment, Text
from src.chat.tokenizer import Tokenizer
from src.errors import UserError

MAX_CHARACTERS_PER_TOKEN = 64
FREE_CHARACTERS_PER_TOKEN = 16
"""A text of no more than these is encoded as it is, in no time."""
MARGIN = 2
"""A text that is encoded in slices has a few tokens more at each cut."""


def check_prompt_length(
    segments: Sequence[Segment], tokenizer: Tokenizer, *, max_seq_len: int
) -> None:
    """Raise UserError for a prompt that cannot fit in the context, after a bounded part of it."""
    texts = [segment for segment in segments if isinstance(segment, Text)]
    num_characters = sum(len(segment.text) for segment in texts)
    if num_characters > max_seq_len * MAX_CHARACTERS_PER_TOKEN:
        raise UserError(
            f"prompt: expected at most {max_seq_len * MAX_CHARACTERS_PER_TOKEN:,} characters with "
            f"all that goes with it, found {num_characters:,}"
        )
    if num_characters <= max_seq_len * FREE_CHARACTERS_PER_TOKEN:
        return
    num_tokens = 0
    for segment in texts:
        for start in range(0, len(segment.text), max_seq_len):
            part = segment.text[start : start + max_seq_len]
            num_tokens += len(tokenizer.encode(part, continues=segment.continues or start > 0))
            if num_tokens > max_seq_len * MARGIN:
                raise UserError(
                    f"prompt: expected fewer than {max_seq_len:,} tokens, the base model's "
                    f"context; found more than {max_seq_len * MARGIN:,}"
                )
