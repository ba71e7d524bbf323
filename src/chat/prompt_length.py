"""Whether a prompt is sure to be too long, told before all of it is encoded."""

from collections.abc import Sequence

from src.chat.segments import Piece, Text
from src.chat.tokenizer import Tokenizer
from src.errors import UserError

MAX_CHARACTERS_PER_TOKEN = 64
FREE_CHARACTERS_PER_TOKEN = 16
"""A text of no more than these is encoded as it is, in no time."""
MARGIN = 2
"""A text that is encoded in slices has a few tokens more at each cut."""


def check_prompt_length(pieces: Sequence[Piece], tokenizer: Tokenizer, *, context: int) -> None:
    """Raise UserError for a prompt that cannot fit in the context, after a bounded part of it."""
    texts = [piece for piece in pieces if isinstance(piece, Text)]
    num_characters = sum(len(piece.text) for piece in texts)
    if num_characters > context * MAX_CHARACTERS_PER_TOKEN:
        raise UserError(
            f"prompt: expected at most {context * MAX_CHARACTERS_PER_TOKEN:,} characters with all "
            f"that goes with it, found {num_characters:,}"
        )
    if num_characters <= context * FREE_CHARACTERS_PER_TOKEN:
        return
    num_tokens = 0
    for piece in texts:
        for start in range(0, len(piece.text), context):
            part = piece.text[start : start + context]
            num_tokens += len(tokenizer.encode(part, continues=piece.continues or start > 0))
            if num_tokens > context * MARGIN:
                raise UserError(
                    f"prompt: expected fewer than {context:,} tokens, the base model's context; "
                    f"found more than {context * MARGIN:,}"
                )
