"""What is odd about the data is said, once, and where it is first seen."""

import json
import re
from pathlib import Path

import pytest

from src.chat.prompt_encoder import open_prompt_encoder
from src.data.marked import show_runs
from src.data.prepare import open_datasets, prepare_data, read_report
from src.data.report import DataReport


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


@pytest.fixture
def report(make_settings, tmp_path: Path):
    """Return a function that returns the report of rows, and the warnings about them."""

    def make(rows: list, **values) -> tuple[DataReport, list[str]]:
        said: list[str] = []
        settings = make_settings(rows, **values)
        encoder = open_prompt_encoder(settings)
        prepare_data(settings, encoder, folder=tmp_path / "data", log=said.append)
        return read_report(tmp_path / "data"), [line for line in said if "warning" in line]

    return make


GOOD = [pair(f"Number {n}?", f"It is {n}.") for n in range(10)]


def test_nothing_is_said_of_good_data(report):
    assert report(GOOD)[1] == []


def test_duplicates_and_rows_in_both_parts_are_counted(report):
    rows = [GOOD[0], GOOD[1], GOOD[0], GOOD[0], *GOOD[2:], GOOD[1]]
    found, said = report(rows, num_validation_samples=2)
    assert (found.duplicates, found.in_both, found.validation_examples) == (2, 1, 2)
    assert (
        "2 training examples are exact duplicates of earlier ones (the first: data.jsonl, "
        "line 3)" in said[0]
    )
    assert "1 of 2 validation examples stand in the training data too" in said[1]


def test_rows_of_two_files_are_compared(report, write_rows):
    path = write_rows([GOOD[1], pair("Other?", "Yes.")], "validation.jsonl")
    found, _ = report(GOOD, validation_data=str(path), validation_data_name="validation.jsonl")
    assert (found.duplicates, found.in_both, found.validation_examples) == (0, 1, 2)


def test_another_form_of_the_same_row_is_a_duplicate(report):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [pair("Hi", "Hello"), {"messages": messages}, {"instruction": "Hi", "output": "Hello"}]
    assert report(rows, run_validation=False)[0].duplicates == 2


def test_the_most_frequent_answer_is_named(report):
    rows = [*GOOD[:5], *(pair(f"Is {n}?", "Yes, it is") for n in range(4))]
    found, said = report(rows, run_validation=False)
    assert found.frequent_answers == 4
    assert '4 of 9 training examples have the same answer, "Yes, it is"' in said[0]


def test_blank_answers_and_control_tokens_as_letters_are_counted(report):
    rows = [
        *GOOD[:2],
        pair("What?", " \n"),
        pair("Which?", "red</s>"),
        {"text": "<s>Blue.</s>"},
        {"text": "a < b"},
    ]
    _, said = report(rows, run_validation=False)
    assert len(said) == 3
    for sentence in (
        "data.jsonl: 1 examples (the first is line 5) begin with <s>, which is left out",
        "data.jsonl: 2 examples (the first is line 4) write </s>, which stays letters",
        "data.jsonl: 1 examples (the first is line 3) have a blank answer",
    ):
        assert any(sentence in line for line in said), sentence


def test_lengths_and_examples_are_those_of_the_training_data(report, tmp_path: Path):
    found, _ = report([*GOOD, pair("Long?", "word " * 40)], num_validation_samples=2)
    train, _ = open_datasets(tmp_path / "data")
    assert sum(found.length_counts) == len(train) == 9
    assert found.length_edges[0] == 0
    assert found.length_edges[-1] > train.lengths.max()
    assert len(found.examples) == 3
    shown = [show_runs(runs, in_color=False) for runs in found.examples]
    assert shown[0] == "⟨<s>⟩Number 0?\n⟦It is 0.⟨</s>⟩⟧"
    assert json.dumps(found.examples)


def test_colors_mark_the_same(report):
    runs = report(GOOD)[0].examples[0]
    shown = show_runs(runs, in_color=True)
    assert re.sub("\x1b\\[.*?m", "", shown) == "".join(run.text for run in runs)
    assert "\x1b[1;32mIt is 0.\x1b[0m" in shown
