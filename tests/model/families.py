"""Tiny random base models of each family that our decoder knows, with its switches in use."""

from pathlib import Path

from tests.model.architectures import EXPERTS, SIZES, make_architecture

HEADS = {**SIZES, "head_dim": 24}
"""Heads that are wider than their share of the hidden size."""
WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
PART_ROTATED = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
    }
}  # fmt: skip
STRETCHED = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }
}  # fmt: skip
GROWING = {
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 8, "beta_fast": 32.0, "beta_slow": 1.0,
    }
}  # fmt: skip
SHORT_LENGTH = 24
LONGROPE = {
    "original_max_position_embeddings": SHORT_LENGTH,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.2, 3.0, 9.0, 20.0],
    },
}  # fmt: skip
"""Of a Phi-3 for long texts."""

GATED_DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 12,
    "linear_value_head_dim": 20, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    # With wider weights gradients through the states are large, and so is their rounding.
    "initializer_range": 0.03,
}  # fmt: skip

CONFIGS = {
    "llama": {**HEADS, **STRETCHED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**HEADS, "sliding_window": 5},
    "ministral": {**HEADS, **WINDOWED},
    "ministral3": {**HEADS, **GROWING},
    "qwen2": {**SIZES, **WINDOWED, "use_sliding_window": True},
    "qwen3": HEADS,
    "smollm3": {**SIZES, "num_hidden_layers": 4},
    "phi3": {**SIZES, **PART_ROTATED, "sliding_window": 7},
    "gemma": {**HEADS, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {**HEADS, **WINDOWED, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 3.0},
    "gemma3_text": {**HEADS, **WINDOWED, "query_pre_attn_scalar": 32},
    "olmo2": SIZES,
    "olmo3": {**SIZES, **WINDOWED},
    "glm": {**HEADS, **PART_ROTATED, "attention_bias": True},
    "glm4": {**HEADS, **PART_ROTATED},
    "helium": {**SIZES, "head_dim": 16},
    "ernie4_5": {**HEADS, "use_bias": True},
    "exaone4": {**HEADS, **WINDOWED},
    "granite": {**SIZES, "attention_multiplier": 0.1, "embedding_multiplier": 3.0,
                "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "seed_oss": {**HEADS, "attention_bias": True},
    "mixtral": {**HEADS, **EXPERTS, "sliding_window": 5},
    "qwen3_moe": {**HEADS, **EXPERTS, "norm_topk_prob": True},
    "gpt_oss": {**HEADS, **EXPERTS, **WINDOWED},
    "qwen3_5_text": {**HEADS, **PART_ROTATED, **GATED_DELTA, "num_hidden_layers": 3},
    "qwen3_5_moe_text": {**HEADS, **EXPERTS, **PART_ROTATED, **GATED_DELTA,
                         "layer_types": ["linear_attention", "full_attention"],
                         "shared_expert_intermediate_size": 48},
}  # fmt: skip


def make_family(folder: Path, model_type: str, **options: object) -> None:
    """Write a model of a family."""
    make_architecture(folder, model_type, **{**CONFIGS[model_type], **options})
