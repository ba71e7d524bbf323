"""Tiny random base models of the architectures that people bring."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.1, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
GPT_2 = {
    "vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
    "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR_ATTENTION = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "shared_expert_intermediate_size": 32,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

ARCHITECTURES = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 64},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 16},
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1},
    "gpt_neox": {**SIZES, "initializer_range": 0.3},
    "gpt2": GPT_2,
    "gemma2": {**SIZES, "head_dim": 16, "sliding_window": 64},
    "gemma3_text": {**SIZES, "head_dim": 16, "sliding_window": 64},
    "phi3": SIZES,
    "olmo2": SIZES,
    "granite": SIZES,
    "smollm3": SIZES,
    "mixtral": {**SIZES, **EXPERTS},
    "qwen3_moe": {**SIZES, **EXPERTS, "head_dim": 16},
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {**SIZES, **EXPERTS, **LINEAR_ATTENTION, "head_dim": 16},
    "qwen3_5_text": {**SIZES, **LINEAR_ATTENTION, "head_dim": 16},
    "bloom": {"vocab_size": 400, "hidden_size": 64, "n_layer": 2, "n_head": 4,
              "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_oss": {**SIZES, **EXPERTS, "head_dim": 16, "sliding_window": 64},
    "cohere2": {**SIZES, "sliding_window": 64},
    "glm4": {**SIZES, "head_dim": 16},
    "falcon_h1": {**SIZES, "head_dim": 16, "mamba_d_ssm": 64, "mamba_n_heads": 4,
                  "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32},
}  # fmt: skip


def make_architecture(folder: Path, model_type: str, **options: object) -> None:
    """Write a random model of an architecture, its norms and biases away from 0 and 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**ARCHITECTURES.get(model_type, {}), **options})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if ("norm" in name and parameter.dim() == 1) or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
        elif name.endswith("A_log"):  # states that last, as those of real models do
            torch.nn.init.normal_(parameter, mean=-3, std=1)
    model.save_pretrained(folder)
