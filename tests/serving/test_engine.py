"""The engine says what transformers and PEFT say, and no adapter ever touches the base model."""

import hashlib
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from src.errors import UserError
from src.serving.engine.engine import Engine
from src.serving.sampling.params import SamplingParams
from src.weights.adapter.adapter import read_adapter

GREEDY = SamplingParams(max_new_tokens=48, temperature=0, repetition_penalty=1.0, top_p=1.0)


def reference(base_dir: Path, adapter: Path | None, ids: list[int]) -> list[int]:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base_dir)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    output = model.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


def base_hash(engine: Engine) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(engine.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_greedy_answers_are_those_of_transformers_and_peft(engine, base_dir, adapters):
    before = base_hash(engine)
    prompts = [engine.tokenizer.encode(text) for text in ("What is it?\n", "It", "number 7" * 9)]
    loaded = {None: None} | {
        path: engine.load_adapter(read_adapter(path, engine.linear_shapes))
        for path in adapters.values()
    }
    answers = set()
    for ids in prompts:
        for path in (None, *adapters.values(), None):
            answer = list(engine.generate(ids, GREEDY, adapter=loaded[path]))
            assert answer == reference(base_dir, path, ids), path
            answers.add(tuple(answer))
    assert len(answers) > len(prompts) * len(adapters)
    assert base_hash(engine) == before


def test_requests_that_take_turns_do_not_mix(engine, adapters):
    """Two generators at once, a token each in turn, with different adapters."""
    ids = engine.tokenizer.encode("What is it?\n")
    one, two = (
        engine.load_adapter(read_adapter(path, engine.linear_shapes))
        for path in (adapters["all"], adapters["few"])
    )
    expected = [list(engine.generate(ids, GREEDY, adapter=adapter)) for adapter in (one, two)]
    streams = [engine.generate(ids, GREEDY, adapter=adapter) for adapter in (one, two)]
    found = list(zip(*streams, strict=False))
    assert [token for token, _ in found] == expected[0][: len(found)]
    assert [token for _, token in found] == expected[1][: len(found)]


def test_a_prompt_that_fills_the_context_is_refused(engine):
    with pytest.raises(UserError, match="prompt: expected fewer than 256 tokens"):
        next(engine.generate([5] * 256, GREEDY, adapter=None))
    assert len(list(engine.generate([5] * 255, GREEDY, adapter=None))) == 1


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "tied", "gpt-neox"])
def test_other_layouts_answer_as_in_transformers(base_dir: Path, tmp_path: Path, kind: str, capsys):
    """A short sliding window, biases, a tied head, and a stranger to our attention."""
    sizes = {
        "vocab_size": Engine(base_dir).model.config.vocab_size,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2,
        "eos_token_id": 2,
    }  # fmt: skip
    config = {
        "mistral": lambda: MistralConfig(num_key_value_heads=2, sliding_window=8, **sizes),
        "qwen2": lambda: Qwen2Config(num_key_value_heads=2, **sizes),
        "tied": lambda: LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **sizes),
        "gpt-neox": lambda: GPTNeoXConfig(**sizes),
    }[kind]()
    torch.manual_seed(5)
    folder = tmp_path / kind
    shutil.copytree(base_dir, folder, ignore=shutil.ignore_patterns("model*", "config.json"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine = Engine(folder)
    assert ("in transformers" in capsys.readouterr().out) == (kind == "gpt-neox")
    for prompt in ("What is it?", "What is the colour of number 7? " * 3):
        ids = engine.tokenizer.encode(prompt)
        answer = list(engine.generate(ids, GREEDY, adapter=None))
        assert answer == reference(folder, None, ids)
        assert len(set(answer)) > 1


def test_a_base_model_in_4bit_answers_as_peft_on_it(base_dir: Path, adapters):
    from peft import PeftModel

    from src.model.base_model import load_base_model

    cpu, float32 = torch.device("cpu"), torch.float32
    engine = Engine(base_dir, in_4bit=True)
    model = load_base_model(base_dir, dtype=float32, device=cpu, in_4bit=True)
    model = PeftModel.from_pretrained(model, adapters["all"])
    adapter = engine.load_adapter(read_adapter(adapters["all"], engine.linear_shapes))
    ids = engine.tokenizer.encode("What is it?\n")
    for active in (adapter, None):
        answer = list(engine.generate(ids, GREEDY, adapter=active))
        with torch.inference_mode(), nullcontext() if active else model.disable_adapter():
            scores = model(torch.tensor([ids + answer[:-1]])).logits[0, len(ids) - 1 :]
        assert scores.argmax(-1).tolist() == answer
    engine.close()


@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn", "dynamic"])
def test_scaled_rotary_embeddings_are_transformers_own(base_dir, tmp_path, scaling, capsys):
    """Beyond the length that the model was trained for; what changes with it falls back."""
    folder = tmp_path / scaling
    shutil.copytree(base_dir, folder, ignore=shutil.ignore_patterns("model*", "config.json"))
    parameters = {"rope_type": scaling, "factor": 4.0, "rope_theta": 10000.0}
    if scaling == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=AutoConfig.from_pretrained(base_dir).vocab_size, hidden_size=32,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.2, eos_token_id=2,
        rope_parameters={**parameters, "original_max_position_embeddings": 32},
    )  # fmt: skip
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine = Engine(folder)
    assert ("its rotary embedding is" in capsys.readouterr().out) == (scaling == "dynamic")
    for text in ("What?", "What is the colour of number 7? " * 2):
        ids = engine.tokenizer.encode(text)
        answer = list(engine.generate(ids, GREEDY, adapter=None))
        assert answer == reference(folder, None, ids)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_device_leaves_nobody_waiting(base_dir, monkeypatch):
    """No kernel runs any more, so that slots cannot be cleared either; Cog starts a new worker."""

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr("src.serving.engine.engine.os._exit", leave)
    engine = Engine(base_dir, max_slots=2)
    steps = engine._scheduler._steps
    whole_steps = iter([steps.run] * 3)
    monkeypatch.setattr(steps, "run", lambda *values: next(whole_steps, fail)(*values))
    monkeypatch.setattr(steps, "stop", fail)
    answer = engine.generate([5, 6, 7], GREEDY, adapter=None)
    next(answer)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        list(answer)
    assert codes == [1]
    engine._thread.join()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        list(engine.generate([5, 6, 7], GREEDY, adapter=None))
