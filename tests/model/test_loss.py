"""How the work is laid out changes neither the loss nor a gradient."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from src.model import head_loss
from src.model.adapter import adapter_parameters, attach_adapter, resolve_target_modules
from src.model.base_model import linear_shapes, load_base_model
from tests.model.batches import CPU, assert_same, build_model, cut, gradients, make_batch, run
from tests.model.families import make_family


@pytest.mark.parametrize("is_ours", [False, True])
def test_packed_is_unpacked(base_dir: Path, is_ours: bool):
    module = build_model(base_dir)
    if is_ours:
        assert module.use_decoder() is None
    batch = make_batch(5, 19, 1, 33)
    packed, unpacked = gradients(module, [batch]), gradients(module, cut(batch))
    assert len(packed[1]) == 2 * 7 * 2
    assert_same(packed, unpacked)


def test_the_comparison_would_notice_a_leak(base_dir: Path):
    module = build_model(base_dir)
    batch = make_batch(5, 19, 1, 33)
    leaking = replace(batch, boundaries=(0, 58))
    assert float(run(module, batch).detach()) != pytest.approx(
        float(run(module, leaking).detach()), rel=1e-4
    )


def test_isolated_attention_is_transformers_own(base_dir: Path):
    """The plain path: each example alone through the whole model, all logits, torch's own loss."""
    module = build_model(base_dir)
    batch = make_batch(7, 12, 30)
    plain = 0.0
    module.model.set_attn_implementation("sdpa")
    for part in cut(batch):
        logits = module.model(part.input_ids).logits[0, part.target_positions]
        nll = torch.nn.functional.cross_entropy(logits, part.labels, reduction="none")
        plain += float((nll * part.loss_weights).sum())
    module.model.set_attn_implementation("isolated")
    assert float(run(module, batch).detach()) == pytest.approx(plain, rel=1e-5)


SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.1,
}  # fmt: skip
OTHER_TYPES = {
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16},
    "gpt_neox": {"initializer_range": 0.5},
    "granite": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "olmo2": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
}


@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_other_architectures_are_kept_apart_by_position_ids(tmp_path: Path, model_type: str):
    """Those that our own attention does not serve: transformers' masks see where examples begin."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **OTHER_TYPES[model_type]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / model_type)
    module = build_model(tmp_path / model_type)
    assert not module.is_isolated
    batch = make_batch(7, 12, 30)
    own = gradients(module, [batch])
    assert_same(own, gradients(module, cut(batch)))
    one_example = replace(batch, position_ids=torch.arange(49)[None])
    assert gradients(module, [one_example])[0] != pytest.approx(own[0], rel=1e-4)


def test_a_sliding_window_is_kept(tmp_path: Path):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8, initializer_range=0.1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    module = build_model(tmp_path / "mistral")
    batch = make_batch(20, 6, 31)
    own = gradients(module, [batch])
    module.model.set_attn_implementation("eager")
    module.is_isolated = False
    assert_same(own, gradients(module, cut(batch)))


@pytest.mark.parametrize("is_ours", [False, True])
def test_nothing_to_learn_is_no_loss_and_no_gradient(base_dir: Path, is_ours: bool):
    module = build_model(base_dir)
    if is_ours:
        assert module.use_decoder() is None
    batch = make_batch(5)
    none = torch.zeros(0)
    empty = replace(batch, target_positions=none.long(), labels=none.long(), loss_weights=none)
    loss, named = gradients(module, [empty])
    assert loss == 0
    assert len(named) == 2 * 7 * 2
    assert not any(gradient.any() for gradient in named.values())


def test_only_the_adapter_is_trained_and_new_it_changes_nothing(base_dir: Path):
    plain = AutoModelForCausalLM.from_pretrained(base_dir)
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    names = resolve_target_modules(model, "all-linear")
    assert names == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.0, seed=0)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    ids = torch.randint(3, 250, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_a_4_bit_base_model_learns(base_dir: Path):
    module = build_model(base_dir, in_4bit=True)
    plain = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    in_4bit = load_base_model(base_dir, dtype=torch.float32, device=CPU, in_4bit=True)
    assert linear_shapes(in_4bit) == linear_shapes(plain)
    assert {"Linear4bit"} == {
        type(m.base_layer).__name__ for m in module.model.modules() if hasattr(m, "base_layer")
    }
    batch = make_batch(5, 19)
    assert_same(gradients(module, [batch]), gradients(module, cut(batch)))


def test_the_head_in_pieces_is_the_head_at_once(base_dir: Path, monkeypatch):
    module = build_model(base_dir)
    batch = make_batch(5, 19, 33)
    plain = gradients(module, [batch])
    assert module.use_decoder() is None
    assert_same(plain, gradients(module, [batch]))
    # Seven rows at a time: 38 learned tokens are five pieces and a rest.
    monkeypatch.setattr(head_loss, "LOGITS_PER_PIECE", 7 * 400)
    assert_same(plain, gradients(module, [batch]))


def test_what_comes_after_the_loss_scales_its_gradient(base_dir: Path):
    module = build_model(base_dir)
    assert module.use_decoder() is None
    batch = make_batch(9)
    _, plain = gradients(module, [batch])
    module.zero_grad()
    (run(module, batch) * 2.5).backward()
    for name, parameter in adapter_parameters(module.model):
        torch.testing.assert_close(parameter.grad, plain[name] * 2.5, msg=name)


@pytest.mark.parametrize(("family", "expected"), [("llama", True), ("gemma2", False)])
def test_passes_that_are_done_span_by_span_are_not_captured(
    tmp_path: Path, family: str, expected: bool
):
    make_family(tmp_path, family)
    module = build_model(tmp_path)
    assert not module.can_be_captured  # in transformers' layers
    assert module.use_decoder() is None
    assert module.can_be_captured == expected
