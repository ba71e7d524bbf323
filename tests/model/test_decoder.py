"""Our decoder computes what transformers and PEFT compute, for each family."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from src.model.adapter import adapter_parameters, attach_adapter
from src.model.base_model import dense_weight, keep_dequantized, load_base_model
from src.model.core.attention import Spans
from src.model.core.decoder import Decoder, open_decoder
from src.model.core.families.table import FAMILIES
from src.model.core.layers import RotaryTable, rotate
from src.model.core.lora import draw_mask
from src.model.core.proof import draw_ids, find_difference, open_proven
from src.model.loss import SummedLoss
from tests.model.batches import (
    CPU,
    assert_same,
    build_model,
    bytes_kept,
    cut,
    gradients,
    make_batch,
    run,
)
from tests.model.families import CONFIGS, make_family


def build_decoder(folder: Path, **options) -> SummedLoss:
    module = build_model(folder, **options)
    assert module.use_decoder() is None
    return module


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path: Path) -> Path:
    make_family(tmp_path / request.param, request.param)
    return tmp_path / request.param


def test_scores_and_gradients_of_packed_examples_are_those_of_each_alone(folder: Path):
    module = build_model(folder)
    batch = make_batch(5, 19, 1, 33)
    alone = gradients(module, cut(batch))
    assert module.use_decoder() is None
    assert_same(gradients(module, [batch]), alone)
    assert_same(gradients(module, cut(batch)), alone)
    # The comparison would notice examples that see each other.
    assert gradients(module, [replace(batch, boundaries=(0, 58))])[0] != pytest.approx(
        alone[0], rel=1e-4
    )


def test_a_layer_that_differs_is_seen_beside_a_token_with_large_states(base_dir: Path):
    """As the first token of real models has; in bfloat16 much of a norm is rounding."""
    model = load_base_model(base_dir, dtype=torch.bfloat16, device=CPU)
    model.get_input_embeddings().weight[draw_ids(model, CPU)[0, 0]] *= 1000
    decoder = open_decoder(model)
    assert isinstance(decoder, Decoder)
    assert find_difference(model, decoder) is None
    decoder.layers[1] = replace(decoder.layers[1], rope=None)
    assert find_difference(model, decoder) is not None


def test_a_captured_pass_reads_the_table_of_positions_that_it_saw(base_dir: Path):
    decoder = open_decoder(load_base_model(base_dir, dtype=torch.float32, device=CPU))
    assert isinstance(decoder, Decoder)
    decoder.grow(10)
    (table,) = decoder._tables.values()
    seen = weakref.ref(table._tables[-1])
    for size in range(11, 200):
        decoder.grow(size)
    assert seen() is not None
    assert len(table._tables) < 8  # and all of them take twice the last


def test_a_sum_in_float32_loses_less_by_16_bits(tmp_path: Path):
    make_family(tmp_path / "qwen3", "qwen3", num_hidden_layers=12)
    ids, positions = torch.arange(3, 60), torch.arange(57)
    scores = []
    for dtype, sum_dtype in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ):
        model = load_base_model(tmp_path / "qwen3", dtype=dtype, device=CPU)
        model.get_input_embeddings().weight *= 30  # large states, as real models have
        decoder = open_decoder(model)
        assert isinstance(decoder, Decoder)
        decoder.sum_dtype = sum_dtype
        decoder.grow(57)
        with torch.no_grad():
            hidden = decoder.hidden(ids, positions, Spans.between((0, 57), CPU))
            scores.append(decoder.scores(hidden))
    exact, narrow, wide = scores
    assert wide.dtype == torch.float32
    best = exact.topk(10).indices
    errors = [(found.float() - exact).gather(1, best).norm() for found in (narrow, wide)]
    assert 0 < errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("has_experts", [False, True])
def test_the_text_model_of_one_that_sees_is_ours(tmp_path: Path, has_experts: bool):
    """The file has other names for its weights, beside those that see."""
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
              "out_hidden_size": 64, "patch_size": 4, "num_position_embeddings": 16}  # fmt: skip
    parts = {"vision_config": vision}
    torch.manual_seed(0)
    if has_experts:
        moe_config = Qwen3_5MoeConfig(text_config=CONFIGS["qwen3_5_moe_text"], **parts)
        whole = Qwen3_5MoeForConditionalGeneration(moe_config).eval()
    else:
        config = Qwen3_5Config(text_config=CONFIGS["qwen3_5_text"], **parts)
        whole = Qwen3_5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    decoder = open_proven(load_base_model(tmp_path, dtype=torch.float32, device=CPU), Decoder)
    assert isinstance(decoder, Decoder)
    ids = torch.arange(3, 80)
    decoder.grow(len(ids))
    spans = Spans.between((0, len(ids)), CPU)
    with torch.no_grad():
        scores = decoder.scores(decoder.hidden(ids, torch.arange(len(ids)), spans))
        torch.testing.assert_close(scores, whole(ids[None]).logits[0], rtol=1e-4, atol=1e-5)


def test_a_window_that_transformers_ignores_is_none(tmp_path: Path):
    make_family(tmp_path / "llama", "llama", sliding_window=5)
    module = build_model(tmp_path / "llama")
    batch = make_batch(5, 19)
    alone = gradients(module, cut(batch))
    assert module.use_decoder() is None
    assert_same(gradients(module, [batch]), alone)


def test_a_model_that_computes_something_else_runs_in_transformers(base_dir: Path):
    module = build_model(base_dir)
    norm = module.model.get_decoder().layers[1].post_attention_layernorm
    plain = norm.forward
    norm.forward = lambda x: plain(x) * 1.01
    assert module.use_decoder() == "this llama differs from those that ours knows"
    assert module.decoder is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_act": "relu"}, "its activation is relu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "its rotary embedding is dynamic",
        ),
    ],
)
def test_a_switch_that_is_not_known_is_named(tmp_path: Path, options: dict, reason: str):
    make_family(tmp_path / "base", "llama", **options)
    model = load_base_model(tmp_path / "base", dtype=torch.float32, device=CPU)
    assert open_decoder(model) == reason


def test_layers_without_adapter_and_recomputed_ones(base_dir: Path):
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    attach_adapter(
        model, target_modules=["q_proj", "down_proj"], rank=4, alpha=8, dropout=0.0, seed=0
    )
    for _, parameter in adapter_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    module, batch = SummedLoss(model), make_batch(5, 19)
    plain = gradients(module, [batch])
    assert len(plain[1]) == 2 * 2 * 2
    assert module.use_decoder() is None
    kept = []
    for count in (0, 1, 2):
        module.recompute(count)
        model.train()
        assert_same(plain, gradients(module, [batch]))
        kept.append(bytes_kept(module, batch))
    assert kept[0] > 1.3 * kept[1] > 1.5 * kept[2]


def test_in_bfloat16_the_error_is_that_of_bfloat16(base_dir: Path):
    exact_module = build_model(base_dir)
    batch = make_batch(5, 19, 33)
    exact = gradients(exact_module, [batch])
    errors = []
    for is_ours in (False, True):
        module = build_model(base_dir).to(torch.bfloat16)
        if is_ours:
            assert module.use_decoder() is None
        found = gradients(module, [batch])
        assert found[0] == pytest.approx(exact[0], rel=5e-3)
        errors.append(
            sum(float((found[1][name].float() - g).norm()) for name, g in exact[1].items())
        )
    assert 0 < errors[1] < 1.1 * errors[0]


def test_4_bit_layers_may_be_kept_unpacked(base_dir: Path):
    module = build_model(base_dir, in_4bit=True)
    batch = make_batch(5, 19)
    plain = gradients(module, [batch])
    assert module.use_decoder() is None
    assert_same(plain, gradients(module, [batch]))

    model = load_base_model(base_dir, dtype=torch.float32, device=CPU, in_4bit=True)
    packed = {name: dense_weight(m) for name, m in model.named_modules() if is_4bit(m)}
    assert len(packed) == 14
    keep_dequantized(model)
    assert not any(is_4bit(m) for m in model.modules())
    for name, weight in packed.items():
        assert torch.equal(model.get_submodule(name).weight, weight)


def is_4bit(module: torch.nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def test_dropout_draws_what_it_should(base_dir: Path):
    model = load_base_model(base_dir, dtype=torch.float32, device=CPU)
    names = ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.5, seed=0)
    for name, parameter in adapter_parameters(model):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    module, batch = SummedLoss(model), make_batch(40)
    assert module.use_decoder() is None
    with torch.no_grad():
        model.eval()
        without = float(run(module, batch))
        assert float(run(module, batch)) == without
        model.train()
        drawn = [float(run(module, batch)) for _ in range(30)]
    assert len(set(drawn)) == 30
    assert sum(drawn) / 30 == pytest.approx(without, rel=0.02)


@pytest.mark.parametrize("count", [0, 2])
def test_gradients_under_dropout_are_the_slopes_of_the_loss(base_dir: Path, count: int):
    """What is run again for the backward pass drops the same inputs."""
    model = load_base_model(base_dir, dtype=torch.float64, device=CPU)
    names = ["q_proj", "o_proj", "up_proj", "down_proj"]
    attach_adapter(model, target_modules=names, rank=4, alpha=8, dropout=0.5, seed=0)
    parameters = dict(adapter_parameters(model))
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    module, batch = SummedLoss(model), make_batch(9, 14)
    assert module.use_decoder() is None
    module.recompute(count)
    model.train()

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return run(module, batch)

    slopes = torch.autograd.grad(loss(), list(parameters.values()))
    for parameter, slope in zip(parameters.values(), slopes, strict=True):
        direction = torch.randn_like(parameter)
        step = 1e-3 * direction
        with torch.no_grad():
            parameter += step
            higher = loss()
            parameter -= 2 * step
            lower = loss()
            parameter += step
        expected = float((slope * direction).sum())
        assert float(higher - lower) / 2e-3 == pytest.approx(expected, rel=0.02, abs=0.02)


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_a_rotation_depends_on_distances_alone(is_interleaved: bool):
    def embed(like, positions):
        angles = positions[..., None].float() / 10 ** (torch.arange(4) / 4)
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    table = RotaryTable(embed, "", torch.empty(0), is_interleaved=is_interleaved)
    table.grow(50)
    torch.manual_seed(0)
    one, other = torch.randn(2, 1, 1, 10)

    def score(p: int, q: int) -> float:
        turned = [
            rotate(x, table.rows(torch.tensor([at])), is_interleaved)
            for x, at in ((one, p), (other, q))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 1) == pytest.approx(score(44, 42), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(4, 1), abs=1e-3)


@pytest.mark.parametrize("dropout", [0.05, 0.5, 0.999])
def test_a_mask_drops_its_share_and_every_number_by_itself(dropout: float):
    torch.manual_seed(0)
    mask = draw_mask(501, 333, dropout, CPU)
    assert mask.shape == (501, 333)
    assert set(mask.unique().tolist()) == {0, 1}
    deviation = (dropout * (1 - dropout) / mask.numel()) ** 0.5
    assert float((mask == 0).float().mean()) == pytest.approx(dropout, abs=5 * deviation)
    # Those that come from one random number have nothing to do with each other.
    dropped = (mask == 0).flatten()[: mask.numel() // 4 * 4].view(-1, 4).float()
    correlation = torch.corrcoef(dropped.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / len(dropped) ** 0.5


def test_a_mask_drops_nearly_all_where_the_share_is_nearly_one():
    assert float((draw_mask(501, 333, 0.9999999, CPU) == 0).float().mean()) > 0.999
