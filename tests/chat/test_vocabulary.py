"""A tokenizer with more tokens than the embedding has rows, and an embedding with more rows."""

import pytest
from tokenizers import AddedToken

from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.model.shape import UNLIMITED_CONTEXT, max_sequence_length


def test_tokens_without_a_row_are_named(base_dir, tmp_path):
    tokenizer = Tokenizer(base_dir)
    num_tokens = len(tokenizer)
    tokenizer.check_rows(num_tokens)
    tokenizer.tokenizer.add_tokens([AddedToken("<PROD>"), AddedToken("[PAD]", special=True)])
    tokenizer.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match=rf"2 tokens beyond the {num_tokens} rows .*<PROD> \({num_tokens}\), \[PAD\]",
    ):
        Tokenizer(tmp_path).check_rows(num_tokens)


def test_rows_without_a_token_are_known(base_dir):
    tokenizer = Tokenizer(base_dir)
    assert tokenizer.unused_rows(len(tokenizer)) == []
    assert tokenizer.unused_rows(len(tokenizer) + 2) == [len(tokenizer), len(tokenizer) + 1]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ('{"max_position_embeddings": 77}', 77),
        ('{"n_positions": 77, "n_ctx": 99}', 77),
        ('{"max_seq_len": 77}', 77),
        ('{"text_config": {"max_position_embeddings": 77}}', 77),
        ("{}", UNLIMITED_CONTEXT),
    ],
)
def test_architectures_name_their_context_otherwise(tmp_path, config: str, length: int):
    (tmp_path / "config.json").write_text(config)
    assert max_sequence_length(tmp_path) == length
