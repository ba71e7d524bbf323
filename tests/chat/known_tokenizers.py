"""Tokenizers and chat templates that tests of chat share."""

import re
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from src.chat.tokenizer import Tokenizer
from tests.conftest import SHARED_DATA

TOKENIZER_MODEL = SHARED_DATA / "llama-2-tokenizer" / "tokenizer.model"
CHAT_TEMPLATES = SHARED_DATA / "chat-templates"
CONTROL_TOKEN = re.compile(
    r"<[|｜][\w▁/]+[|｜]>|<\w+_of_\w+>|\[/?[A-Za-z]+MASK\]|\[TOOL_CALLS\]|</?think>|<s>|</s>"
)

needs_llama = pytest.mark.skipif(
    not TOKENIZER_MODEL.is_file(), reason="the Llama 2 tokenizer is not beside the project"
)
needs_templates = pytest.mark.skipif(
    not CHAT_TEMPLATES.is_dir(), reason="chat templates of real models are not beside the project"
)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    folder: Path,
    template: object,
    *,
    eos: str = "<|eos|>",
    bos: str | None = "<|bos|>",
    merges: tuple[tuple[str, str], ...] = (),
    also: str = "",
) -> Tokenizer:
    """Write a tokenizer of bytes with a chat template, whose control tokens it has, and read it.

    As in the real ones <think> and </think> are not flagged as special.
    """
    vocabulary = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for token in dict.fromkeys(CONTROL_TOKEN.findall(f"{template}{also}")):
        is_special = "think" not in token
        added = AddedToken(token, special=is_special, normalized=False)
        tokenizer.add_tokens([added], special_tokens=is_special)
    tokenizer.add_special_tokens({"eos_token": eos} | ({"bos_token": bos} if bos else {}))
    tokenizer.chat_template = template  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(folder)
    return Tokenizer(folder)
