"""A gated delta layer computes the same in chunks, on from a state, and token by token."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from src.model.core.attention import Spans
from src.model.core.blocks.gated_delta import GatedDelta, mix_on, mix_rows_, mix_spans
from src.model.core.layers import Norm

CPU = torch.device("cpu")
KEY_HEADS, HEADS, KEY_SIZE, VALUE_SIZE, TAPS = 2, 4, 6, 10, 4
NUM_FEATURES = 2 * KEY_HEADS * KEY_SIZE + HEADS * VALUE_SIZE


@pytest.fixture
def delta() -> GatedDelta:
    torch.manual_seed(0)
    taps = torch.randn(TAPS, NUM_FEATURES, dtype=torch.float64)
    rate, norm = torch.zeros(HEADS), Norm(torch.ones(VALUE_SIZE), 1e-6)
    return GatedDelta(taps, rate, rate, norm, KEY_HEADS, HEADS, KEY_SIZE, VALUE_SIZE)


def draw(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs of tokens that forget little: what was read long ago still counts."""
    torch.manual_seed(num_tokens)
    qkv = torch.randn(num_tokens, NUM_FEATURES, dtype=torch.float64)
    decay = -0.05 * torch.rand(num_tokens, HEADS, dtype=torch.float64)
    return qkv, decay, torch.rand(num_tokens, HEADS, dtype=torch.float64)


def empty(delta: GatedDelta) -> tuple[Tensor, Tensor]:
    kind = {"dtype": torch.float64}
    return torch.zeros(delta.tail_shape, **kind), torch.zeros(delta.state_shape, **kind)


def read_one_by_one(delta: GatedDelta, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return outputs and the last state by the definition, token by token and head by head."""
    qkv, decay, strength = inputs
    read = torch.cat((empty(delta)[0], qkv))
    states = [*empty(delta)[1]]
    outputs = []
    for token in range(len(qkv)):
        features = silu((read[token : token + TAPS] * delta.taps).sum(0))
        sizes = (KEY_HEADS * KEY_SIZE, KEY_HEADS * KEY_SIZE, HEADS * VALUE_SIZE)
        queries, keys, values = (x.view(-1, n) for x, n in zip(
            features.split(sizes), (KEY_SIZE, KEY_SIZE, VALUE_SIZE), strict=True
        ))  # fmt: skip
        for head in range(HEADS):
            group = head * KEY_HEADS // HEADS
            key, query = (
                x[group] / (x[group].square().sum() + 1e-6).sqrt() for x in (keys, queries)
            )
            state = states[head] * decay[token, head].exp()
            told = strength[token, head] * (values[head] - key @ state)
            states[head] = state + key.outer(told)
            outputs.append(query @ states[head] * KEY_SIZE**-0.5)
    return torch.cat(outputs).view(len(qkv), -1), torch.stack(states)


def test_a_row_goes_on_token_by_token(delta: GatedDelta):
    inputs = draw(9)
    tail, state = (x[None] for x in empty(delta))
    is_idle = torch.tensor([False])
    rows = (x.split(1) for x in inputs)
    outputs = [mix_rows_(*row, delta, tail, state, is_idle) for row in zip(*rows, strict=True)]
    expected = read_one_by_one(delta, inputs)
    torch.testing.assert_close((torch.cat(outputs), state[0]), expected)


@pytest.mark.parametrize("lengths", [(1,), (2, 1), (64,), (65,), (3, 128, 1, 70)])
def test_pieces_of_a_text_are_read_as_its_tokens_are(delta: GatedDelta, lengths: tuple[int, ...]):
    inputs = draw(sum(lengths))
    tail, state = empty(delta)
    outputs = []
    for qkv, decay, strength in zip(*(x.split(lengths) for x in inputs), strict=True):
        output, tail, state = mix_on(qkv, decay, strength, delta, tail, state)
        outputs.append(output)
    torch.testing.assert_close((torch.cat(outputs), state), read_one_by_one(delta, inputs))
    assert torch.equal(tail, torch.cat((empty(delta)[0], inputs[0]))[1 - TAPS :])


@pytest.mark.parametrize("lengths", [(200,), (5, 19, 1, 33), (64, 64, 2), (63, 1, 130, 1, 1, 90)])
@pytest.mark.parametrize("is_known", [True, False])
def test_spans_of_a_row_are_what_each_is_alone(
    delta: GatedDelta, lengths: tuple[int, ...], is_known: bool
):
    """Gradients too; with lengths that the host knows, and as a captured pass has them."""
    inputs = [x.requires_grad_() for x in draw(sum(lengths))]
    spans = Spans.between((0, *accumulate(lengths)), CPU)
    if not is_known:
        spans = Spans(None, spans.offsets, spans.longest)
    found = mix_spans(*inputs, delta, spans)
    parts = zip(*(x.split(lengths) for x in inputs), strict=True)
    expected = torch.cat([read_one_by_one(delta, part)[0] for part in parts])
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    slopes = [torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_no_number_stays_in_its_row(delta: GatedDelta):
    """In the state of a row that steps, and in none of one that does not."""
    inputs, (tail, state) = draw(4), empty(delta)
    is_idle = torch.tensor([False, False, True, True])

    def step() -> tuple[Tensor, Tensor, Tensor]:
        tails, states = tail.repeat(4, 1, 1) + 1, state.repeat(4, 1, 1, 1) + 1
        return mix_rows_(*inputs, delta, tails, states, is_idle), tails, states

    expected = step()
    inputs[0][[1, 3]] = torch.nan
    found = step()
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one[[0, 2]], right[[0, 2]])
        assert one[1].isnan().any()
    for kept in found[1:]:
        assert (kept[2:] == 1).all()
