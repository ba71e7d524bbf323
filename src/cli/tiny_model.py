"""A small Llama-shaped base model with a tokenizer of its own, made on the spot."""

from collections.abc import Iterable
from pathlib import Path

from src.files.atomic import replacing_folder
from src.model.shape import ModelShape


def make_base_model(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 2000,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    num_key_value_heads: int = 4,
    max_seq_len: int = 1024,
    seed: int = 0,
    shape: ModelShape | None = None,
) -> None:
    """Write a random base model, whole or not at all; its tokenizer learns from the texts.

    The wide initialisation lets the frozen head be confident, so that LoRA alone can learn. A
    shape names all sizes at once, and has its weights made on a GPU if there is one.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(seed)
    on_gpu = shape is not None and torch.cuda.is_available()
    if shape is None:
        shape = ModelShape(
            hidden_size,
            hidden_size * 11 // 4,
            num_layers,
            num_heads,
            num_key_value_heads,
            hidden_size // num_heads,
            backend.get_vocab_size(),
            is_tied=False,
        )
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.is_tied,
        max_position_embeddings=max_seq_len,
        initializer_range=0.1,
        bos_token_id=backend.token_to_id("<s>"),
        eos_token_id=backend.token_to_id("</s>"),
    )
    with torch.device("cuda" if on_gpu else "cpu"):
        model = LlamaForCausalLM._from_config(
            config, dtype=torch.bfloat16 if on_gpu else torch.float32
        )
    with replacing_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
