"""Which tokens steer a model, and so are never made of what people wrote."""

from collections.abc import Iterator
from typing import Any

_SAMPLE = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]


def find_control_tokens(tokenizer: Any, end_ids: frozenset[int]) -> list[str]:
    """Return the tokens that are flagged or named as special, that end an answer, or that the chat
    template writes: in some tokenizers those are added without a flag."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    rendered = "".join(_renderings(tokenizer))
    tokens = [token for token, special in added.items() if special or token in rendered]
    ends = [tokenizer.convert_ids_to_tokens(token) for token in end_ids]
    found = dict.fromkeys([*tokens, *tokenizer.all_special_tokens, *ends])
    return [token for token in found if token]


def _renderings(tokenizer: Any) -> Iterator[str]:
    if not isinstance(tokenizer.chat_template, str):
        return
    for messages in (_SAMPLE, _SAMPLE[1:], _SAMPLE[:2], _SAMPLE[1:3]):
        try:
            yield tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=messages[-1]["role"] == "user"
            )
        except Exception:  # a template refuses messages with an error of its own choosing
            continue
