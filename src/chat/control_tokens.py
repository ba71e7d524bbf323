"""Which tokens steer a model, and so are never made of what people wrote."""

import re
from collections.abc import Iterator
from typing import Any

_SAMPLE = [
    {"role": "system", "content": "a"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
_MARK = re.compile(r"</?([\w:.-]+)>")
_HTML = re.compile(
    "blockquote|caption|code|em|h[1-6]|strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|[bisu]"
)
"""Words of some vocabularies, as Gemma's, that people write too."""
CALL_MARKS = (
    *("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "<|/tool_call|>"),
    *("<|tool_call_start|>", "<|tool_call_end|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
)
"""Around calls of tools: flagged as special in many tokenizers, but a caller must see them."""
_ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")


def find_control_tokens(tokenizer: Any, end_ids: frozenset[int]) -> list[str]:
    """Return the tokens that are flagged or named as special, that end an answer, or that the chat
    template writes: in some tokenizers those are added without a flag."""
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    written = "".join(_written(tokenizer))
    tokens = [
        token
        for token, special in added.items()
        # Runs of white space are words of some vocabularies, as are some plain words.
        if special or (token in written and token.strip() and not token.isalnum())
    ]
    ends = [tokenizer.convert_ids_to_tokens(token) for token in end_ids]
    found = dict.fromkeys([*tokens, *tokenizer.all_special_tokens, *ends])
    return [token for token in found if token]


def find_marks(tokenizer: Any) -> list[str]:
    """Return the added tokens that come in pairs, as <think> and </think>: the model's own words
    for the parts of an answer."""
    named = {getattr(tokenizer, f"{role}_token") for role in _ROLES}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} - named
    names = [match[1] for token in added if (match := _MARK.fullmatch(token))]
    names = [name for name in names if not _HTML.fullmatch(name)]
    pairs = [(f"<{name}>", f"</{name}>") for name in names]
    return sorted({token for pair in pairs if added.issuperset(pair) for token in pair})


def _written(tokenizer: Any) -> Iterator[str]:
    """Yield the text of the chat templates, and what they make of a few messages."""
    templates = tokenizer.chat_template or {}
    templates = {"": templates} if isinstance(templates, str) else templates
    for template in templates.values():
        yield template
        for messages in (_SAMPLE, _SAMPLE[1:], _SAMPLE[:2], _SAMPLE[1:3]):
            try:
                yield tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=messages[-1]["role"] == "user",
                )
            except Exception:  # a template refuses messages with an error of its own choosing
                continue
