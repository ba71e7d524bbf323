"""A Phi-3 for long texts answers as transformers does, below, above and across its short length."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from src.chat.tokenizer import Tokenizer
from src.serving.engine.engine import Engine
from src.serving.engine.ngram import NgramProposer
from src.serving.sampling import SamplingParams
from src.weights.adapter.adapter import read_adapter
from tests.model.families import LONGROPE, SHORT_LENGTH, make_family
from tests.serving.clients import GREEDY, Client
from tests.serving.fake_graph import FakeCapture
from tests.serving.test_families import write_adapter
from tests.serving.test_preemption import cache_bytes

ASKED = replace(GREEDY, max_new_tokens=20, min_new_tokens=20)
STAYS_SHORT = SHORT_LENGTH - ASKED.max_new_tokens + 1
"""A prompt of so many tokens, whose last token is drawn and not read."""
NUM_TOKENS = [STAYS_SHORT, STAYS_SHORT + 1, 14, SHORT_LENGTH, SHORT_LENGTH + 1, 70]
KINDS: dict[str, dict[str, Any]] = {
    "compiled step": {"can_speculate": False},
    "plain steps": {"can_speculate": False, "compile": False},
    "captured steps": {"capture": FakeCapture()},
    "ranks": {"tensor_parallel": 2},
}


def prompt_of(num_tokens: int) -> list[int]:
    """Return a prompt that begins as the shorter ones do."""
    return [3 + number * number % 89 for number in range(num_tokens)]


class Truth:
    """What transformers and PEFT answer."""

    def __init__(self, folder: Path, saved: Path) -> None:
        self.folder, self.saved = folder, saved
        self._unused = Tokenizer(folder).unused_rows(400)
        self._answers: dict[tuple[bool, int, tuple[int, ...]], list[int]] = {}

    def answer(
        self, prompt: list[int], params: SamplingParams = ASKED, *, is_adapted: bool = False
    ) -> list[int]:
        key = is_adapted, params.max_new_tokens, tuple(prompt)
        if key not in self._answers:
            model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            if is_adapted:
                model = PeftModel.from_pretrained(model, self.saved)
            output = model.eval().generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
                max_new_tokens=params.max_new_tokens, min_new_tokens=params.min_new_tokens,
                do_sample=False, pad_token_id=2, suppress_tokens=self._unused,
            )  # fmt: skip
            self._answers[key] = output[0, len(prompt) :].tolist()
        return self._answers[key]


@pytest.fixture(scope="module")
def truth(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    root = tmp_path_factory.mktemp("longrope")
    make_family(root / "phi3", "phi3", **LONGROPE, initializer_range=0.3)
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, root / "phi3")
    write_adapter(root / "phi3", root / "adapter")
    return Truth(root / "phi3", root / "adapter")


Make = Callable[..., Engine]


@pytest.fixture
def make(truth: Truth, new_engine: Make) -> Make:
    return lambda **options: new_engine(truth.folder, **options)


def ask(
    engine: Engine, truth: Truth, params: SamplingParams = ASKED, *, at_once: bool
) -> list[Client]:
    """Ask for every answer, and compare it."""
    adapter = engine.load_adapter(read_adapter(truth.saved, engine.linear_shapes), key="random")
    asked = [(prompt_of(n), is_adapted) for n in NUM_TOKENS for is_adapted in (False, True)]
    clients = []
    for prompt, is_adapted in asked:
        clients.append(Client(engine, prompt, params, adapter=adapter if is_adapted else None))
        if not at_once:
            clients[-1].answer()
    for client, (prompt, is_adapted) in zip(clients, asked, strict=True):
        assert client.answer() == truth.answer(prompt, params, is_adapted=is_adapted), len(prompt)
    return clients


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(make: Make, truth: Truth, kind: str, at_once: bool):
    """Alone and in company; who begins as another did does not go on from it at another length."""
    engine = make(**KINDS[kind])
    assert engine.runner.is_static
    for client in ask(engine, truth, at_once=at_once):
        num_tokens = len(client.sequence.request.prompt_ids)
        # Who stays short, or is long from the beginning, is read once.
        assert client.sequence.num_preempted == (STAYS_SHORT < num_tokens <= SHORT_LENGTH)


def test_answers_are_the_same_where_the_cache_is_full(make: Make, truth: Truth):
    """Who is read again as a long text, and who waits, are not mixed up."""
    num_crossing = 2 * sum(n <= SHORT_LENGTH for n in NUM_TOKENS)
    small = make(cache_bytes=cache_bytes(make(), 6), max_context=192)
    ask(small, truth, replace(ASKED, max_new_tokens=100, min_new_tokens=100), at_once=True)
    assert small.totals.num_preempted > num_crossing


def test_prompts_are_read_in_pieces(make: Make, truth: Truth, monkeypatch):
    """A prompt beyond the short length is that of a long text from its first piece on."""
    for name in ("FEWEST", "FIRST", "MOST", "TOKENS_ALONE"):
        monkeypatch.setattr(f"src.serving.engine.prefill_queue.{name}", 8)
    for kind in KINDS.values():
        ask(make(**kind), truth, at_once=True)


@pytest.mark.parametrize("is_captured", [False, True])
def test_tokens_are_speculated_up_to_the_short_length_and_beyond(
    make: Make, truth: Truth, monkeypatch, is_captured: bool
):
    """Whatever is proposed: here what comes true, and more."""
    rest = {tuple(prompt_of(n)): truth.answer(prompt_of(n)) for n in NUM_TOKENS}
    engine = make(can_speculate=True, capture=FakeCapture() if is_captured else None)
    for num_right in (0, 4, 15):

        def propose(self: NgramProposer, ids: list[int], most: int, num_right=num_right):
            right = rest[tuple(self._ids)][len(ids) :][:num_right]
            return [*right, *[7] * 15][: min(15, most)]

        monkeypatch.setattr(NgramProposer, "propose", propose)
        for client in ask(engine, truth, at_once=False):
            assert client.sequence.num_proposed > 8


def test_a_context_that_is_never_long_has_only_short_texts(make: Make, truth: Truth, capsys):
    engine = make(max_context=SHORT_LENGTH)
    assert "is read again" not in capsys.readouterr().out
    answer = Client(engine, prompt_of(14), ASKED).answer()
    assert answer == truth.answer(prompt_of(14))[: SHORT_LENGTH - 14]
    assert engine.totals.num_preempted == 0
