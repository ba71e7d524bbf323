"""What OpenAI's clients send becomes inputs of `predict`, and what cannot be meant is named."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import predict
from src.service.openai.errors import ApiError
from src.service.openai.generation import chat_request
from src.service.openai.generation.chat_request import ChatRequest, read_chat_request
from src.service.openai.generation.completion_request import read_completion_request
from src.service.openai.generation.request import MAX_TOKENS
from src.service.openai.parsing.answer import Answer, parse_answer
from src.service.openai.parsing.family import find_family
from src.serving.messages import parse_messages

ROOT = Path(__file__).resolve().parents[4]
MESSAGES = [{"role": "user", "content": "Hi"}]
PARAMETERS = {"properties": {"city": {"$ref": "#/$defs/C"}}, "$defs": {"C": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time"}},
]


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": MESSAGES, **fields}
    return read_chat_request(body)


def refusal_of(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert refused.value.status == 400
    return refused.value


def test_the_defaults_are_openais():
    asked = chat()
    assert asked.generation.inputs == {
        "messages": json.dumps(MESSAGES),
        "max_new_tokens": MAX_TOKENS,
        "min_new_tokens": -1,
        "temperature": 1,
        "top_p": 1,
        "top_k": -1,
        "repetition_penalty": 1,
    }
    assert asked.generation.num_choices == 1
    assert not asked.generation.is_streamed


def test_what_one_role_says_in_a_row_is_read_as_one_message():
    said = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": "f"},
    ]
    read = parse_messages(chat(messages=said).generation.inputs["messages"]).messages
    assert [(message["role"], message["content"]) for message in read] == [
        ("system", "a\n\nb"),
        ("user", "c\n\nd"),
        ("assistant", "e"),
        ("user", "f"),
    ]


@pytest.mark.parametrize(
    "odd", [3, {}, {"role": 3}, {"role": "user"}, {"role": "user", "content": 3}]
)
def test_odd_messages_are_left_to_whoever_reads_them(odd: object):
    said = [*MESSAGES, odd, odd]
    assert json.loads(chat(messages=said).generation.inputs["messages"]) == said


def test_every_input_is_one_of_predict():
    asked = chat(
        stop=["a,b", "c"],
        logprobs=True,
        top_logprobs=2,
        tools=TOOLS,
        tool_choice="required",
        seed=3,
    )
    names = set(inspect.signature(predict.Predictor.run).parameters)
    assert asked.generation.inputs_of(0).keys() <= names
    assert json.loads(asked.generation.inputs["stop_sequences"]) == ["a,b", "c"]
    assert asked.generation.inputs["logprobs"] == 2


def test_each_choice_has_a_seed_of_its_own_that_can_be_asked_for():
    asked = chat(n=3, seed=2**31 - 2).generation
    seeds = [asked.inputs_of(number)["seed"] for number in range(asked.num_choices)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [chat(n=3, seed=2**31 - 2).generation.inputs_of(n)["seed"] for n in range(3)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_completion_tokens": 8, "max_tokens": None}, 8),
    ],
)
def test_limits_of_tokens(fields: dict[str, Any], expected: int):
    assert chat(**fields).generation.inputs["max_new_tokens"] == expected


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}, {"a": 1}),
    ],
)
def test_response_formats(response_format: dict[str, Any], schema: object):
    found = chat(response_format=response_format).generation.inputs.get("json_schema")
    assert (found and json.loads(found)) == schema


def test_tools_are_told_unless_none_is_to_be_called():
    assert json.loads(chat(tools=TOOLS).generation.inputs["tools"]) == TOOLS
    assert "tools" not in chat(tools=TOOLS, tool_choice="none").generation.inputs
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]}
    asked = chat(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert json.loads(asked.generation.inputs["tools"]) == TOOLS[1:]


def test_an_answer_that_follows_a_schema_has_no_reasons():
    asked = chat(response_format={"type": "json_object"})
    family = asked.read_by(find_family("</think>", "<think>\n"))
    assert parse_answer('{"a": 1}', family) == Answer(content='{"a": 1}')


def test_a_call_that_must_be_made_follows_a_schema():
    asked = chat(tools=TOOLS, tool_choice="required")
    schema = json.loads(asked.generation.inputs["json_schema"])
    assert [one["properties"]["name"]["const"] for one in schema["anyOf"]] == ["weather", "time"]
    assert schema["$defs"] == PARAMETERS["$defs"]
    family = asked.read_by(find_family("<tool_call></think>", "<think>"))
    text = '{"name": "weather", "arguments": {"city": "Paris"}}'
    (call,) = parse_answer(text, family, TOOLS).calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')


def test_the_arguments_of_a_named_tool_are_the_answer():
    named = {"type": "function", "function": {"name": "weather"}}
    asked = chat(tools=TOOLS, tool_choice=named)
    assert json.loads(asked.generation.inputs["json_schema"]) == {"type": "object", **PARAMETERS}
    family = asked.read_by(find_family("[TOOL_CALLS]"))
    answer = parse_answer('{"city": "Paris"}', family, TOOLS)
    assert [(c.name, c.arguments) for c in answer.calls] == [("weather", '{"city": "Paris"}')]
    assert answer == Answer(calls=answer.calls)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"model": None}, "model"),
        ({"model": "a\0b"}, "model"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [3]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_meant_is_named(fields: dict[str, Any], param: str):
    refused = refusal_of(**fields)
    assert refused.param == param
    assert param.partition("[")[0] in refused.message
    assert set(refused.body()["error"]) == {"message", "type", "param", "code"}


def test_fields_without_effect_are_taken():
    asked = chat(
        user="me", metadata={"a": "b"}, store=True, presence_penalty=0, logit_bias={},
        parallel_tool_calls=False, reasoning_effort="low", seed=None, functions=None,
    )  # fmt: skip
    assert asked.is_one_call
    assert asked.generation.ignored == ("reasoning_effort",)


def test_completions():
    asked = read_completion_request({"model": "m", "prompt": ["a", "b"], "n": 2, "logprobs": 0})
    assert asked.prompts == ("a", "b")
    assert asked.generation.inputs["max_new_tokens"] == 16
    assert asked.generation.has_logprobs
    for name, value in {"prompt": [[1, 2]], "echo": True, "suffix": "x", "best_of": 3}.items():
        with pytest.raises(ApiError) as refused:
            read_completion_request({"model": "m", "prompt": "a", name: value})
        assert refused.value.param == name


def test_the_page_lists_every_field():
    page = (ROOT / "docs" / "openai.md").read_text().split("## chat/completions")[1]
    listed = set()
    for row in page.split("\n\n")[1].splitlines()[2:]:
        listed |= set(re.findall(r"`(\w+)`", row.split(" | ")[0]))
    assert listed == chat_request.KNOWN - {"model"}
