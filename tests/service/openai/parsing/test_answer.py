"""Parts of an answer come out the same however its text is cut, and nothing is lost."""

import json
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.service.openai.parsing.answer import Answer, AnswerParser, parse_answer
from src.service.openai.parsing.deltas import CallArguments, Content
from src.service.openai.parsing.families import (
    deepseek,
    glm,
    granite,
    hermes,
    lfm,
    llama,
    mistral,
    qwen_coder,
)
from src.service.openai.parsing.family import Family, find_family
from src.service.openai.parsing.reasoning import THINK
from tests.service.openai.parsing.families import TEXTS

READERS = {
    module.__name__.rpartition(".")[2]: module.read_answer
    for module in (deepseek, glm, granite, hermes, lfm, llama, mistral, qwen_coder)
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"b": {"type": "string"}}},
        },
    }
]
PIECES = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|tool_call_start|>"),
    *("<|tool_call_end|>", "<function=add>", "</function>", "<parameter=a>", "</parameter>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁calls▁begin｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    *('{"name": "add", "arguments": {"a": 1}}', '{"name": "add", "arguments": ', '{"a": "\\"}"}'),
    *('{"name": "x"}', '{"a": 1}', "add", "[", "]", "{", "}", ",", ";", "<", '"', "\\", "\n", " "),
]


def family_of(name: str, *, begins_in_reasoning: bool = False) -> Family:
    numbers = count()
    return Family(READERS[name], THINK, begins_in_reasoning, lambda: f"call {next(numbers)}")


def read_in_pieces(text: str, cuts: list[int], family: Family) -> Answer:
    parser, answer = AnswerParser(family, TOOLS), Answer()
    places = [0, *sorted(place for place in cuts if place < len(text)), len(text)]
    for start, stop in pairwise(places):
        for delta in parser.push(text[start:stop]):
            assert getattr(delta, "text", "x")
            answer.add(delta)
    for delta in parser.finish():
        answer.add(delta)
    return answer


def check_cuts(text: str, cuts: list[int], name: str, *, is_open: bool) -> None:
    whole = parse_answer(text, family_of(name, begins_in_reasoning=is_open), TOOLS)
    family = family_of(name, begins_in_reasoning=is_open)
    assert read_in_pieces(text, cuts, family) == whole


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), cuts=st.lists(st.integers(0, 150)))
def test_any_cut_gives_the_same_parts(name: str, pieces: list[str], cuts: list[int]):
    check_cuts("".join(pieces), cuts, name, is_open=len(cuts) % 2 == 0)


@pytest.mark.parametrize("name", READERS)
def test_real_answers_are_the_same_at_every_cut(name: str):
    text = f"<think>\nWhy\n</think>\n\n{TEXTS[name]}"
    for place in range(len(text)):
        check_cuts(text, [place], name, is_open=False)
    check_cuts(text, list(range(len(text))), name, is_open=False)


@pytest.mark.parametrize(
    ("name", "content", "calls"),
    [
        ("hermes", "So:end ", [{"a": [1, "}"]}]),
        ("qwen_coder", "", [{"a": 12, "b": "<b>\n"}]),
        ("glm", "I add.", [{"a": 12, "b": "x < y"}]),
        ("llama", "", [{"a": '"}'}, {}]),
        ("mistral", "", [{"a": 1}, {}, {}]),
        ("granite", "and", [{"a": 1}]),
        ("deepseek", "", [{"a": 1}, {}]),
        ("lfm", "Done.", [{"a": 1, "b": "x", "c": {"d": True}}]),
    ],
)
def test_what_is_easily_read_wrong(name: str, content: str, calls: list[object]):
    answer = parse_answer(TEXTS[name], family_of(name), TOOLS)
    assert answer.content == content
    assert [json.loads(call.arguments) for call in answer.calls] == calls


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "Write <tool_call> before"),
        ("hermes", '<tool_call>{"name": "ad'),
        ("hermes", " \n text with blanks \n"),
        ("llama", '{"name": "Ada", "age": 36}'),
        ("llama", "\n{1, 2} is a set"),
        ("mistral", "[TOOL_CALLS] is a token"),
        ("granite", "<|tool_call|>[]"),
        ("lfm", "<|tool_call_start|>x + 1<|tool_call_end|>"),
        ("qwen_coder", "<tool_call>add</tool_call>"),
    ],
)
def test_what_is_no_call_stays_as_it_is(name: str, text: str):
    assert parse_answer(text, family_of(name), TOOLS) == Answer(content=text)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [*TEXTS.values(), "\n <think> a"])
def test_without_tools_and_reasons_an_answer_stays_as_it_is(name: str, text: str):
    assert parse_answer(text, Family(READERS[name])) == Answer(content=text)


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nWhy\n</think>\n\nSo.", False, "Why", "So."),
        ("Why\n</think>\n\nSo.", True, "Why", "So."),
        ("<think>Why</think>So.", True, "Why", "So."),
        ("<think>\n\n</think>\n\nSo.", False, "", "So."),
        ("cut in the middle", True, "cut in the middle", ""),
        (" So. <think>", False, "", " So. <think>"),
    ],
)
def test_reasons_end_where_their_mark_is(text: str, is_open: bool, reasoning: str, content: str):
    answer = parse_answer(text, Family(None, THINK, is_open))
    assert (answer.reasoning, answer.content) == (reasoning, content)


def test_arguments_are_shown_as_they_come():
    parser = AnswerParser(family_of("hermes"), TOOLS)
    parser.push('<tool_call>{"name": "add", "arguments": {"a": "')
    assert parser.push("long") == [CallArguments(0, "long")]
    assert parser.push(" text") == [CallArguments(0, " text")]


def test_text_is_shown_as_soon_as_it_is_sure():
    parser = AnswerParser(family_of("hermes"), TOOLS)
    assert parser.push("a <tool") == [Content("a")]
    assert parser.push("s>") == [Content(" <tools>")]


@pytest.mark.parametrize(
    ("template", "prompt", "reader", "is_open"),
    [
        (None, "", None, False),
        ("{{ '<think>' }}</think>", "<|assistant|><think>\n", None, True),
        ("<tool_call> </think>", "<think>\n\n</think>\n\n", hermes, False),
        ("<tool_call><function=", "", qwen_coder, False),
        ("<tool_call><arg_key>", "", glm, False),
        ("[TOOL_CALLS]", "", mistral, False),
        ("<|python_tag|>", "", llama, False),
    ],
)
def test_the_template_tells_the_family(template, prompt: str, reader, is_open: bool):
    family = find_family(template, prompt)
    assert family.read_calls is (reader and reader.read_answer)
    assert family.begins_in_reasoning == is_open


def test_ids_are_of_the_form_that_templates_take():
    assert len(find_family("[TOOL_CALLS]").new_call_id()) == 9
    assert find_family("<tool_call>").new_call_id().startswith("call_")
