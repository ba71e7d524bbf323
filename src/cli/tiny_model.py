"""A small Llama-shaped base model with a tokenizer of its own, made on the spot."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.files.atomic import replacing_folder


def make_base_model(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 2000,
    model_vocab_size: int | None = None,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    num_key_value_heads: int = 4,
    max_seq_len: int = 1024,
    seed: int = 0,
    device: str = "cpu",
    **sizes: Any,
) -> None:
    """Write a random base model, completely or not at all; its tokenizer learns from the texts.

    The wide initialisation lets the frozen head be confident, so that LoRA alone can learn. More
    sizes are those of a `LlamaConfig`; a model that is made on a GPU has bf16 weights.
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
    config = LlamaConfig(
        **{
            "vocab_size": model_vocab_size or backend.get_vocab_size(),
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 11 // 4,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "max_position_embeddings": max_seq_len,
            "initializer_range": 0.1,
            "bos_token_id": backend.token_to_id("<s>"),
            "eos_token_id": backend.token_to_id("</s>"),
            **sizes,
        }
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    with replacing_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
