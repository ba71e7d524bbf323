"""A model whose answers are known beforehand, so that a prompt can quote them."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FIRST_ID = 10
"""Above those that end an answer."""


def make_reciter(base_model: Path, folder: Path) -> list[int]:
    """Write a copy of a model that says its vocabulary in one order, over and over; return it.

    All layers do their work, and what they find is multiplied by zero: a step costs as much as in
    the model itself, and the head names the successor of the token that was read.
    """
    model = AutoModelForCausalLM.from_pretrained(base_model)
    order = list(range(FIRST_ID, model.config.vocab_size))
    random.Random(0).shuffle(order)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight
        model.lm_head.weight[order[1:] + order[:1]] = embedding[order]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
    return order


def quoting_prompt(order: Sequence[int], num_tokens: int, *, quote: int, own: int) -> list[int]:
    """Return a prompt whose answer is quotes from it, in another order, and own tokens between."""
    rng = random.Random(1)
    answer = order[1 : num_tokens + 1]
    quotes = [answer[at : at + quote] for at in range(0, num_tokens, quote + own)]
    rng.shuffle(quotes)
    noise = rng.sample(order[num_tokens + 1 :], 16)
    return [*(token for part in quotes for token in part), *noise, order[0]]
