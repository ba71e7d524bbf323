"""Tokenizers and chat templates that tests of chat share."""

import pytest

from tests.conftest import SHARED_DATA

TOKENIZER_MODEL = SHARED_DATA / "llama-2-tokenizer" / "tokenizer.model"


needs_llama = pytest.mark.skipif(
    not TOKENIZER_MODEL.is_file(), reason="the Llama 2 tokenizer is not beside the project"
)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
