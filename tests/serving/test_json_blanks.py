"""A model that likes blanks comes to an end of its JSON, and one that was cut is told of."""

import json

import pytest
import torch

from src.serving.grammar.json_grammar import JsonGrammars
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "no": {"enum": [1, 2]}},
    "required": ["name", "no"],
    "additionalProperties": False,
}
MOST_BLANKS = 19
"""A line break of two characters, and indentation."""


def test_a_model_that_prefers_blanks_comes_to_an_end(tokenizer):
    size = len(tokenizer)
    blanks = [token for token in range(size) if tokenizer.decode([token]).strip(" \n\t\r") == ""]
    grammar = JsonGrammars(tokenizer, vocab_size=size).start(json.dumps(SCHEMA))
    text: list[int] = []
    for _ in range(300):
        allowed = torch.zeros(size, dtype=torch.bool)
        grammar.fill(allowed)
        choices = allowed.nonzero().flatten().tolist()
        wanted = [token for token in choices if token in blanks and token not in tokenizer.end_ids]
        token = (wanted or choices)[0]
        if token in tokenizer.end_ids:
            break
        grammar.push(token)
        text.append(token)
    assert grammar.is_whole
    answer = tokenizer.decode(text)
    assert json.loads(answer).keys() == {"name", "no"}
    assert "\n" in answer
    assert len(answer) < 9 * MOST_BLANKS + 40


@pytest.mark.parametrize("most", [3, 200])
def test_a_cut_answer_says_that_it_is_no_whole_json(base_dir, monkeypatch, capsys, most: int):
    monkeypatch.setenv("BASE_MODEL", str(base_dir))
    predictor = TextPredictor(None)
    try:
        request = {**REQUEST, "json_schema": json.dumps(SCHEMA), "max_new_tokens": most}
        answer = "".join(predictor.stream(request, record_metric=lambda *_, **__: None))
    finally:
        predictor.close()
    said = "answer 1 of 1 is no whole JSON: it was cut after 3 tokens" in capsys.readouterr().out
    assert said == (most == 3)
    if not said:
        json.loads(answer)
