"""Every value of a request has a bound that is checked at once; the next request is unharmed."""

import json
import time
from collections.abc import Iterator

import pytest

from src.cli.tiny_model import make_base_model
from src.errors import UserError
from src.serving.predictor import TextPredictor
from src.serving.refusal import refuse_trainings
from tests.serving.request import REQUEST, answer

NAN, INF = float("nan"), float("inf")
OUT_OF_BOUNDS = [
    *(("temperature", value) for value in (NAN, INF, -INF, -1, 5.1)),
    *(("top_p", value) for value in (NAN, INF, -0.1, 1.1)),
    *(("top_k", value) for value in (-2, 10**30)),
    *(("repetition_penalty", value) for value in (NAN, INF, -1, 1e300)),
    *(("max_new_tokens", value) for value in (0, -5, 10**30)),
    *(("min_new_tokens", value) for value in (-2, 10**30)),
    *((name, text) for name in ("prompt", "system_prompt", "prompt_template")
      for text in ("{prompt}" + "a" * 10**7, "{prompt}\ud800", "{prompt}\udfff")),
    ("prompt", "a" * 4000),
    *(("num_outputs", value) for value in (0, 17, 10**30)),
    *(("logprobs", value) for value in (-1, 21, 10**30)),
    *(("json_schema", text) for text in (
        "{", "[" * 900_000, "1", "{}" * 500_000, '{"type": "nothing"}', '{"$ref": "#/x"}', "\ud800",
        '{"const": "\ud800"}', '{"const": ' + "9" * 5000 + "}", '{"$ref": "#"}',
    )),
    *(("messages", text) for text in (
        "[]", "{}", "[" * 900_000, "[1]", '[{"role": "user"}]', '[{"role": "x", "content": ""}]',
        "\ud800", '[{"role": "assistant", "content": "a"}]',
    )),
    *(("tools", text) for text in ("{", "1", "[1]", "[" * 900, "\ud800", '[{"name": "f"}]')),
    ("prompt_template", "{prompt}" * 100_000),
    ("prompt_template", "none"),
    ("prompt_template", "{prompt.__class__}"),
    ("stop_sequences", "ab," * 500_000),
    ("stop_sequences", json.dumps(["ab"] * 500_000)),
    ("stop_sequences", json.dumps(["a"] * 65)),
    ("stop_sequences", "[" * 900_000),
    ("stop_sequences", "a" * 1001),
    ("stop_sequences", json.dumps([1])),
    ("stop_sequences", "[null]"),
    ("stop_sequences", "[NaN]"),
    *(("replicate_weights", source) for source in (
        "\0", "x" * 10**6, "\ud800", "/etc/passwd", "../x", "http://\ud800/", "file:///etc/passwd",
        "data:,x", "data:;base64,!", "ftp://example.org/x", "data:," + "%41" * 2_000_000,
        "http://" + "a" * 2_000_000 + "/", "http://example.org/" + "a" * 2_000_000,
        "http://example.org/?" + "é" * 2_000_000, "http://" + "a@" * 2_000_000 + "x/",
        "a" * 2_000_000 + "://x", "data:;base64," + "A" * 10_000_000,
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextPredictor]:
    folder = tmp_path_factory.mktemp("values")
    make_base_model(
        folder / "base", ["What is it?"] * 9, vocab_size=300, hidden_size=16, num_layers=1,
        num_heads=2, num_key_value_heads=1, max_seq_len=64,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASE_MODEL", str(folder / "base"))
        patch.setenv("WEIGHTS_CACHE", str(folder / "cache"))
        predictor = TextPredictor(None)
    yield predictor
    predictor.close()


@pytest.mark.parametrize("number", range(len(OUT_OF_BOUNDS)))
def test_values_out_of_bounds_are_refused_at_once(predictor: TextPredictor, number: int):
    name, value = OUT_OF_BOUNDS[number]
    before = answer(predictor, None)
    request = {**REQUEST, "prompt": "" if name == "messages" else "a", name: value}
    started = time.thread_time()
    with pytest.raises(UserError) as caught:
        list(predictor.stream(request, record_metric=lambda *_, **__: None))
    assert time.thread_time() - started < 0.2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert answer(predictor, None) == before


def test_a_template_cannot_multiply_a_long_prompt(predictor: TextPredictor):
    request = {**REQUEST, "prompt": "a" * 100, "prompt_template": "{prompt}" * 500}
    with pytest.raises(UserError, match="prompt_template: expected a text of at most"):
        list(predictor.stream(request, record_metric=lambda *_, **__: None))


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_template", "none"), ("messages", "[1]")],
)
def test_no_weights_are_fetched_for_a_request_that_is_wrong_with_any(
    predictor: TextPredictor, monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    monkeypatch.setattr(predictor._store, "acquire", lambda *_, **__: pytest.fail("fetched"))
    request = {**REQUEST, "prompt": "", "replicate_weights": "https://example.org/x.tar"}
    with pytest.raises(UserError, match=f"{name}: "):
        list(predictor.stream({**request, name: value}, record_metric=lambda *_, **__: None))


def test_texts_that_are_too_long_together_are_refused(predictor: TextPredictor):
    texts = {"prompt": "a" * 2000, "system_prompt": "b" * 2000}
    request = {**REQUEST, **texts, "prompt_template": "{system_prompt}{prompt}" + "c" * 2000}
    with pytest.raises(UserError, match="prompt: expected fewer than 64 tokens"):
        list(predictor.stream(request, record_metric=lambda *_, **__: None))


def test_an_inst_prompt_has_as_many_turns_as_messages(
    predictor: TextPredictor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predictor._engine, "max_seq_len", 1024)
    request = {**REQUEST, "prompt": "[INST]a[/INST]b" * 1001, "prompt_template": "[INST]{prompt}"}
    with pytest.raises(UserError, match=r"at most 1,000 turns in \[INST\] tags, found 1,001"):
        list(predictor.stream(request, record_metric=lambda *_, **__: None))


ODD = [
    ("temperature", 5e-324), ("top_p", 0), ("top_p", 1e-300), ("top_k", 0), ("seed", 2**70),
    ("seed", -(2**63)), ("repetition_penalty", 0), ("repetition_penalty", 1e-300), ("prompt", ""),
    ("prompt", "\0"), ("stop_sequences", ",,,"), ("stop_sequences", "[INST],foo"),
    ("stop_sequences", '["\\ud800"]'), ("prompt_template", "{{prompt}} {0} {x!r:>9} {prompt}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ODD)
def test_odd_values_are_answered(predictor: TextPredictor, name: str, value: object):
    list(
        predictor.stream(
            {**REQUEST, "temperature": 0.5, name: value}, record_metric=lambda *_, **__: None
        )
    )


def text_of(predictor: TextPredictor, **inputs: object) -> str:
    request = {**REQUEST, **inputs}
    return "".join(predictor.stream(request, record_metric=lambda *_, **__: None))


OPTIONAL = ("system_prompt", "prompt_template", "stop_sequences", "messages", "json_schema")


@pytest.mark.parametrize("name", [*OPTIONAL, "replicate_weights"])
def test_an_empty_text_is_none(predictor: TextPredictor, name: str):
    assert text_of(predictor, **{name: ""}) == text_of(predictor, **{name: None})


@pytest.mark.parametrize("seed", [None, -1])
def test_a_random_seed_is_logged_and_gives_the_answer_again(
    predictor: TextPredictor, capsys: pytest.CaptureFixture[str], seed: int | None
):
    asked = {"temperature": 1, "max_new_tokens": 20}
    answers, seeds = [], []
    for _ in range(3):
        answers.append(text_of(predictor, **asked, seed=seed))
        name, _, number = capsys.readouterr().out.strip().partition(" ")
        assert name == "seed"
        seeds.append(int(number))
    assert len(set(seeds)) == len(set(answers)) == 3
    assert text_of(predictor, **asked, seed=seeds[0]) == answers[0]


def test_a_training_is_told_which_server_takes_it():
    called = []
    run = refuse_trainings(lambda **inputs: called.append(inputs))
    run(prompt="a")
    with pytest.raises(UserError, match="this server answers prompts; expected a training at a"):
        run(train_data="d.jsonl")
    assert called == [{"prompt": "a"}]
