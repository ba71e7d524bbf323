"""A prompt that is too long is refused after a bounded part of it, and no other one is."""

import pytest

from src.chat.conversation import Conversation
from src.chat.prompt_length import check_prompt_length
from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from tests.chat.known_tokenizers import needs_llama

CONTEXT = 512


class Counted:
    """A tokenizer that counts the characters it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.num_encoded = tokenizer, 0

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        self.num_encoded += len(text)
        return self._tokenizer.encode(text, continues=continues)


@needs_llama
@pytest.mark.parametrize("text", ["🍎", "a", "hello world ", "\n", "</s>", "[INST] a [/INST]"])
def test_a_long_prompt_is_encoded_in_part(llama: Tokenizer, text: str):
    whole = (text * 64 * CONTEXT)[: 64 * CONTEXT]
    counted = Counted(llama)
    with pytest.raises(UserError, match=r"expected fewer than 512 tokens.*found more than 1,024"):
        check_prompt_length(Conversation.of(whole), counted, max_seq_len=CONTEXT)
    assert counted.num_encoded <= len(whole) / 3


@needs_llama
@pytest.mark.parametrize("num_messages", [1, 7, 101])
@pytest.mark.parametrize("text", [" " * 16, "\u3000", "internationally "])
def test_a_prompt_that_fits_is_never_refused(llama: Tokenizer, text: str, num_messages: int):
    """Sixteen spaces are the longest token that Llama 2 has."""
    whole = text * (CONTEXT * 20 // len(text))
    while len(llama.encode(whole)) > CONTEXT:
        whole = whole[: len(whole) * 9 // 10]
    size = -(-len(whole) // num_messages)
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    check_prompt_length(Conversation.of(*parts), llama, max_seq_len=CONTEXT)


def test_too_many_characters_are_named(tokenizer: Tokenizer):
    texts = ["a" * 16 * CONTEXT for _ in range(5)]
    with pytest.raises(UserError, match=r"at most 32,768 characters .* found 40,960"):
        check_prompt_length(Conversation.of(*texts), tokenizer, max_seq_len=CONTEXT)
