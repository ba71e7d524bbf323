"""The engine says what transformers and PEFT say, and no adapter ever touches the base model."""

import hashlib
import shutil
import threading
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
from src.serving.engine.batch import Batch
from src.serving.engine.engine import Engine
from src.serving.lora.weights import LoadedAdapter
from src.serving.sampling import SamplingParams
from src.weights.adapter.adapter import read_adapter
from tests.serving.clients import Client

GREEDY = SamplingParams(max_new_tokens=48, temperature=0, repetition_penalty=1.0, top_p=1.0)


def ask(engine: Engine, ids: list[int], adapter: LoadedAdapter | None) -> list[int]:
    return Client(engine, ids, GREEDY, adapter=adapter).answer()


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
        path: engine.load_adapter(read_adapter(path, engine.linear_shapes), key=str(path))
        for path in adapters.values()
    }
    answers = set()
    for ids in prompts:
        for path in (None, *adapters.values(), None):
            answer = ask(engine, ids, loaded[path])
            assert answer == reference(base_dir, path, ids), path
            answers.add(tuple(answer))
    assert len(answers) > len(prompts) * len(adapters)
    assert base_hash(engine) == before


def test_requests_that_take_turns_do_not_mix(engine, adapters):
    """Two at once, a token each in turn, with different adapters."""
    ids = engine.tokenizer.encode("What is it?\n")
    one, two = (
        engine.load_adapter(read_adapter(path, engine.linear_shapes), key=str(path))
        for path in (adapters["all"], adapters["few"])
    )
    expected = [ask(engine, ids, adapter) for adapter in (one, two)]
    clients = [Client(engine, ids, GREEDY, adapter=adapter) for adapter in (one, two)]
    for number in range(1, 49):
        for client in clients:
            client.read(number)
    assert [client.ids for client in clients] == expected


def test_a_prompt_that_fills_the_context_is_refused(engine):
    with pytest.raises(UserError, match="prompt: expected fewer than 256 tokens"):
        ask(engine, [5] * 256, None)
    assert len(ask(engine, [5] * 255, None)) == 1


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "tied", "gpt-neox"])
def test_other_layouts_answer_as_in_transformers(base_dir: Path, tmp_path: Path, kind: str, capsys):
    """A short sliding window, biases, a tied head, and a stranger to our attention."""
    sizes = {
        "vocab_size": AutoConfig.from_pretrained(base_dir).vocab_size,
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
    engine = Engine(folder, dtype="float32")
    assert ("in transformers" in capsys.readouterr().out) == (kind == "gpt-neox")
    for prompt in ("What is it?", "What is the colour of number 7? " * 3):
        ids = engine.tokenizer.encode(prompt)
        answer = ask(engine, ids, None)
        assert answer == reference(folder, None, ids)
        assert len(set(answer)) > 1


def test_a_base_model_in_4bit_answers_as_peft_on_it(base_dir: Path, adapters):
    from peft import PeftModel

    from src.model.base_model import load_base_model

    cpu, float32 = torch.device("cpu"), torch.float32
    engine = Engine(base_dir, dtype="float32", in_4bit=True)
    model = load_base_model(base_dir, dtype=float32, device=cpu, in_4bit=True)
    model = PeftModel.from_pretrained(model, adapters["all"])
    adapter = engine.load_adapter(read_adapter(adapters["all"], engine.linear_shapes), key="all")
    ids = engine.tokenizer.encode("What is it?\n")
    for active in (adapter, None):
        answer = ask(engine, ids, active)
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
    engine = Engine(folder, dtype="float32")
    assert ("its rotary embedding is" in capsys.readouterr().out) == (scaling == "dynamic")
    for text in ("What?", "What is the colour of number 7? " * 2):
        ids = engine.tokenizer.encode(text)
        answer = ask(engine, ids, None)
        assert answer == reference(folder, None, ids)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fails", ["step", "prefill"])
def test_a_lost_device_leaves_nobody_waiting(new_engine, monkeypatch, fails):
    """No kernel runs any more, so that slots cannot be cleared either, and the process ends."""

    are_there = threading.Event()

    def fail(*_: object, **__: object) -> None:
        are_there.wait(60)
        raise torch.AcceleratorError("an illegal memory access was encountered")

    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr("src.serving.engine.engine.os._exit", leave)
    monkeypatch.setattr(Batch, fails, fail)
    monkeypatch.setattr(Batch, "remove", fail)
    engine = new_engine(max_slots=2)
    clients = [Client(engine, [5, 6, number], GREEDY) for number in range(7, 11)]
    are_there.set()
    for lost in clients:
        with pytest.raises(RuntimeError, match=r"the engine is closed|illegal memory access"):
            lost.answer()
    assert codes == [1]
    engine.close()
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        engine.check_alive()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        Client(engine, [5, 6, 7], GREEDY)


def test_an_error_that_leaves_the_device_alive_ends_those_who_run_and_no_others(
    new_engine, monkeypatch
):
    engine = new_engine()
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", lambda _: [][0])
        with pytest.raises(IndexError):
            ask(engine, [5, 6, 7], None)
    assert len(ask(engine, [5, 6, 7], None)) > 1


def test_close_answers_everybody(new_engine, monkeypatch):
    """Also who is still in the inbox when the engine has taken its last look into it."""
    engine = new_engine()
    step, is_stepping, may_go_on = Batch.step, threading.Event(), threading.Event()

    def slow_step(batch: Batch) -> object:
        is_stepping.set()
        assert may_go_on.wait(60)
        return step(batch)

    monkeypatch.setattr(Batch, "step", slow_step)
    running = Client(engine, [5, 6, 7], GREEDY)
    assert is_stepping.wait(60)
    waiting = [Client(engine, [5, 6, number], GREEDY) for number in range(20)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not is_refused(engine):
        pass
    may_go_on.set()
    for client in (running, *waiting):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            client.answer()
    closing.join()


def is_refused(engine: Engine) -> bool:
    try:
        Client(engine, [5, 6, 7], GREEDY)
    except RuntimeError:
        return True
    return False
