"""A compiled engine answers what an eager one answers, and compiles nothing while it does."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from src.serving.engine import model_runner
from src.serving.engine.engine import Engine
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.compiled import compile_between
from tests.model.compiler import BACKEND, num_variants
from tests.model.families import make_family
from tests.serving.clients import GREEDY, Client, random_prompts
from tests.serving.fake_graph import FakeCapture

pytestmark = pytest.mark.usefixtures("fresh_compiler")

NUM_VARIANTS = 5
"""One token or more: without adapters, and with those of rows; and a prompt with its adapter."""


def use_backend(backend: str | Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with = partial(compile_between, backend=backend)
    monkeypatch.setattr(model_runner, "compile_between", compile_with)


def ask_all(engine: Engine, loaded: dict[str, LoadedAdapter]) -> list[list[int]]:
    """Ask for answers one by one and several at once, with adapters and without."""
    adapters = [None, loaded["all"], loaded["few"], None, loaded["head"], loaded["rank-40"]]
    prompts = [[5], *random_prompts(11, engine.vocab_size, seed=4)]
    alone = [
        Client(engine, prompt, GREEDY, adapter=adapter).answer()
        for prompt in prompts[:2]
        for adapter in adapters[:2]
    ]
    together = [
        Client(engine, prompt, GREEDY, adapter=adapter)
        for prompt, adapter in zip(prompts, adapters * 2, strict=True)
    ]
    return alone + [client.answer() for client in together]


@pytest.mark.parametrize("is_captured", [False, True])
def test_answers_are_those_of_eager_layers(
    engine: Engine,
    new_engine: Callable[..., Engine],
    loaded: dict[str, LoadedAdapter],
    monkeypatch: pytest.MonkeyPatch,
    is_captured: bool,
):
    use_backend(BACKEND, monkeypatch)
    compiled = new_engine(compile=True, capture=FakeCapture() if is_captured else None)
    assert num_variants() == NUM_VARIANTS
    expected = ask_all(engine, loaded)
    assert len({tuple(answer) for answer in expected}) > 6
    assert ask_all(compiled, loaded) == expected
    if not is_captured:  # the compiler takes what records a step on a CPU for another kind of call
        assert num_variants() == NUM_VARIANTS


@pytest.mark.parametrize(
    "family", ["smollm3", "gemma3_text", "phi3", "ministral3", "gpt_oss", "qwen3_5_text"]
)
def test_families_share_few_variants(
    tmp_path: Path,
    base_dir: Path,
    new_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
):
    """Twice as many where some layers have no rotary embedding, or no attention."""
    make_family(tmp_path / "base", family)
    for file in base_dir.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    prompts = random_prompts(3, 100, seed=5)
    expected = [Client(new_engine(tmp_path / "base"), p, GREEDY).answer() for p in prompts]
    use_backend(BACKEND, monkeypatch)
    compiled = new_engine(tmp_path / "base", compile=True)
    most = NUM_VARIANTS * (2 if family in ("smollm3", "qwen3_5_text") else 1)
    assert num_variants() == most
    assert [Client(compiled, prompt, GREEDY).answer() for prompt in prompts] == expected
    assert num_variants() == most


def fails(graph, inputs):
    raise OSError("no space left\nmore")


def errs(graph, inputs):
    return lambda *inputs: [x if x is None else x * 1.1 for x in graph.forward(*inputs)]


@pytest.mark.parametrize(
    ("backend", "reason"),
    [(fails, "OSError: no space left"), (errs, "its results differ from those of eager steps")],
)
def test_a_compiler_that_fails_or_errs_leaves_eager_layers(
    engine: Engine,
    new_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backend: Callable,
    reason: str,
):
    use_backend(backend, monkeypatch)
    eager = new_engine(compile=True)
    assert f"the layers are not compiled: {reason}\n" in capsys.readouterr().out
    prompt = random_prompts(1, engine.vocab_size, seed=6)[0]
    assert Client(eager, prompt).answer() == Client(engine, prompt).answer()


def test_16_bits_under_sums_in_float32_are_compiled(
    new_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    use_backend(BACKEND, monkeypatch)
    new_engine(compile=True, dtype="bfloat16")
    assert "not compiled" not in capsys.readouterr().out
