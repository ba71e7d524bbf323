"""The reply to the validation prompt, generated greedily while training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from src.chat.prompt_encoder import PromptEncoder
from src.model.shape import vocabulary_rows
from src.out_of_memory import is_out_of_memory, release_memory
from src.settings import TrainSettings

MAX_NEW_TOKENS = 128


def build_reply_generator(
    settings: TrainSettings,
    encoder: PromptEncoder,
    model: Any,
    device: torch.device,
    *,
    is_sharded: bool,
) -> Callable[[], str | None]:
    """Return what generates the reply; under ZeRO-3 all ranks call it together."""
    if settings.validation_prompt is None or not settings.run_validation:
        return lambda: None
    tokenizer, chat_format = encoder.tokenizer, encoder.chat_format
    ids = encoder.prompt_ids(settings.validation_prompt)
    prefix = chat_format.answer_prefix(chat_format.of_prompt(settings.validation_prompt))
    input_ids = torch.tensor([ids], device=device)
    unused = tokenizer.unused_rows(vocabulary_rows(Path(settings.base_model_dir)) or 0)

    def generate_reply() -> str | None:
        try:
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=min(MAX_NEW_TOKENS, encoder.max_seq_len - len(ids)),
                use_cache=True,
                eos_token_id=sorted(tokenizer.end_ids),
                pad_token_id=tokenizer.eos_id,
                suppress_tokens=unused or None,
            )
        except (RuntimeError, MemoryError) as error:
            # Where the weights are shared out, the other ranks wait for this one's part.
            if is_sharded or not is_out_of_memory(error):
                raise
            release_memory()
            print("the validation prompt is not answered: out of memory", flush=True)
            return None
        reply = tokenizer.decode(output[0].tolist())[len(tokenizer.decode(ids)) :]
        return reply.removeprefix(prefix)

    return generate_reply
