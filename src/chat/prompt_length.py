"""Refuses a prompt that is sure to be too long before all of it is encoded."""

from src.chat.conversation import Conversation
from src.chat.tokenizer import Tokenizer
from src.errors import UserError

MAX_CHARACTERS_PER_TOKEN = 64
FREE_CHARACTERS_PER_TOKEN = 16
"""A text of no more than these is encoded as it is, in no time."""
MARGIN = 2
"""A text that is encoded in slices has a few tokens more at each cut."""


def check_prompt_length(
    conversation: Conversation, tokenizer: Tokenizer, *, max_seq_len: int
) -> None:
    """Raise UserError for a prompt that cannot fit in the context, after a bounded part of it."""
    text = "".join(message["content"] or "" for message in conversation.messages)
    if len(text) > max_seq_len * MAX_CHARACTERS_PER_TOKEN:
        raise UserError(
            f"prompt: expected at most {max_seq_len * MAX_CHARACTERS_PER_TOKEN:,} characters with "
            f"all that goes with it, found {len(text):,}"
        )
    if len(text) <= max_seq_len * FREE_CHARACTERS_PER_TOKEN:
        return
    num_tokens = 0
    for start in range(0, len(text), max_seq_len):
        part = text[start : start + max_seq_len]
        num_tokens += len(tokenizer.encode(part, continues=start > 0))
        if num_tokens > max_seq_len * MARGIN:
            raise UserError(
                f"prompt: expected fewer than {max_seq_len:,} tokens, the context "
                f"that is served; found more than {max_seq_len * MARGIN:,}"
            )
