"""What a model learns of calls and reasons is what a caller gets when it writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.chat.chat_format import build_chat_format
from src.chat.conversation import Conversation
from src.chat.tokenizer import Tokenizer
from src.service.openai.parsing.answer import Answer, AnswerParser
from src.service.openai.parsing.family import find_family
from src.serving.output.detokenizer import Detokenizer
from tests.chat.known_tokenizers import CHAT_TEMPLATES, make_tokenizer, needs_templates
from tests.service.openai.parsing.families import TEMPLATES

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "units": {"type": "array", "items": {"type": "string"}},
}
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": PROPERTIES},
        },
    }
    for name in ("weather", "history")
)
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("weather", {"city": 'Pa"ris}\n</tool', "days": 3, "units": ["C", "]"]}),
    ("history", {"city": "7"}),
]


def message(calls: list[tuple[str, dict[str, Any]]], **beside: str) -> dict[str, Any]:
    listed = [
        {"id": f"call0000{n}", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": listed, **beside}


def read_back(tokenizer: Tokenizer, said: dict[str, Any], *, has_tools: bool = True) -> Answer:
    """Return what a caller gets when a model writes the tokens that training would learn."""
    chat_format = build_chat_format("a/b", tokenizer)
    tools = TOOLS if has_tools else ()
    conversation = Conversation(({"role": "user", "content": "Hi"}, said), tools)
    (learned,) = chat_format.learned_answers(conversation)
    family = find_family(
        tokenizer.tokenizer.chat_template,  # pyright: ignore[reportArgumentType]
        chat_format.prompt_format.generation_prompt,
    )
    detokenizer = Detokenizer(tokenizer, learned.prompt_ids, shows_calls=has_tools)
    parser, answer = AnswerParser(family, tools), Answer()
    for token in learned.answer_ids:
        for delta in parser.push(detokenizer.push(token)):
            answer.add(delta)
    for delta in [*parser.push(detokenizer.flush()), *parser.finish()]:
        answer.add(delta)
    return answer


def check_calls(tokenizer: Tokenizer, calls: list[tuple[str, dict[str, Any]]]) -> None:
    answer = read_back(tokenizer, message(calls))
    found = [(call.name, json.loads(call.arguments)) for call in answer.calls]
    assert (found, answer.content, answer.reasoning) == (calls, "", "")
    assert len({call.id for call in answer.calls}) == len(calls)


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_that_are_learned_are_read_back(tmp_path: Path, name: str):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES[name])
    check_calls(tokenizer, CALLS)
    said = message(CALLS, content="I look.", reasoning_content="Both?\n\nBoth.")
    answer = read_back(tokenizer, said)
    assert (answer.content, answer.reasoning) == ("I look.", "Both?\n\nBoth.")
    assert [call.name for call in answer.calls] == ["weather", "history"]


@needs_templates
@pytest.mark.parametrize(
    ("name", "num_calls"), [("qwen3", 2), ("qwen3_5_nothink", 2), ("glm4moe", 2), ("llama3_1", 1)]
)
def test_calls_in_real_templates_are_read_back(tmp_path: Path, name: str, num_calls: int):
    template = (CHAT_TEMPLATES / f"{name}.jinja").read_text()
    check_calls(make_tokenizer(tmp_path, template), CALLS[:num_calls])


@needs_templates
@pytest.mark.parametrize("name", ["qwen3", "glm4moe"])
def test_reasons_in_real_templates_are_read_back(tmp_path: Path, name: str):
    template = (CHAT_TEMPLATES / f"{name}.jinja").read_text()
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Why\nnot?"}
    answer = read_back(make_tokenizer(tmp_path, template), said, has_tools=False)
    assert (answer.content, answer.reasoning) == ("Yes.", "Why\nnot?")


def test_marks_of_calls_are_text_beside_tools_alone(tmp_path: Path):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES["mistral, a list"])
    mark = tokenizer.control_id("[TOOL_CALLS]")
    assert mark is not None
    texts = [
        Detokenizer(tokenizer, [], shows_calls=shows_calls).push(mark)
        for shows_calls in (True, False)
    ]
    assert texts == ["[TOOL_CALLS]", ""]
