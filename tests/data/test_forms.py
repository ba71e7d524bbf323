"""What other trainers read is read as one of the three kinds; any other form is told how to be."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from src.chat.conversation import Conversation
from src.data.reading.example import ChatExample, CompletionExample, Example
from src.data.reading.example_file import ExampleFile
from src.errors import UserError


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def part(text: str) -> list[dict]:
    return [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]


SYSTEM = message("system", "Be brief")
USER, ANSWER = message("user", "Hi"), message("assistant", "Hello")


def chat(*messages: dict, tools: tuple[dict, ...] = ()) -> ChatExample:
    return ChatExample(Conversation(messages, tools))


CHAT = chat(USER, ANSWER)
BRIEF = chat(SYSTEM, USER, ANSWER)
PAIR = CompletionExample("Hi", "Hello")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING, TOLD = message("assistant", "", tool_calls=[CALL]), message("tool", "42")
TOOL = {"type": "function", "function": {"name": "f"}}
WITH_TOOLS = chat(USER, CALLING, TOLD, ANSWER, tools=(TOOL,))


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


FORMS: dict[str, tuple[dict, Example]] = {
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello"}, PAIR),
    "alpaca-null": ({"instruction": "Hi", "input": None, "output": "Hello"}, PAIR),
    "alpaca-input": (
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        CompletionExample("Add\n\n1, 2", "3"),
    ),
    "alpaca-only-input": ({"instruction": "", "input": "Hi", "output": "Hello"}, PAIR),
    "system-beside-none": ({"system": "", "messages": [SYSTEM, USER, ANSWER]}, BRIEF),
    "system-key": (
        {"system": "s", "prompt": "Hi", "completion": "Hello"},
        CompletionExample("Hi", "Hello", "s"),
    ),
    "empty-text": ({"text": "", "prompt": "Hi", "completion": "Hello"}, PAIR),
    "sharegpt": ({"conversations": [turn("human", "Hi"), turn("gpt", "Hello")]}, CHAT),
    "sharegpt-system": (
        {"system": "Be brief", "conversations": [turn("human", "Hi"), turn("gpt", "Hello")]},
        BRIEF,
    ),
    "sharegpt-roles": ({"conversations": [USER, ANSWER]}, CHAT),
    "sharegpt-chatgpt": ({"conversations": [turn("human", "Hi"), turn("chatgpt", "Hello")]}, CHAT),
    "no-arguments": (
        {"messages": [USER, {**CALLING, "tool_calls": [{"name": "f", "arguments": ""}]}]},
        chat(
            USER, {**CALLING, "tool_calls": [{**TOOL, "function": {"name": "f", "arguments": {}}}]}
        ),
    ),
    "flat": (
        {
            "messages": [USER, {**CALLING, "tool_calls": [{"id": "1", **CALL["function"]}]}],
            "tools": [{"type": "function", "name": "f"}],
        },
        chat(USER, {**CALLING, "tool_calls": [{**CALL, "id": "1"}]}, tools=(TOOL,)),
    ),
    "sharegpt-tools": (
        {
            "conversations": [
                turn("human", "Hi"),
                turn("function_call", '{"name": "f", "arguments": {"x": 1}}'),
                turn("observation", "42"),
                turn("gpt", "Hello"),
            ],
            "tools": '[{"name": "f"}]',
        },
        WITH_TOOLS,
    ),
    "trl": ({"prompt": [USER], "completion": [ANSWER]}, CHAT),
    "trl-dialogue": (
        {"prompt": [USER, message("assistant", "Yes?"), USER], "completion": [ANSWER]},
        chat(USER, message("assistant", "Yes?", weight=0), USER, ANSWER),
    ),
    "parts": (
        {"messages": [{**USER, "content": part("Hi")}, {**ANSWER, "content": part("Hello")}]},
        CHAT,
    ),
    "developer": ({"messages": [message("developer", "Be brief"), USER, ANSWER]}, BRIEF),
    "roles": ({"messages": [message("human", "Hi"), message("model", "Hello")]}, CHAT),
    "weight": (
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
        chat(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
    ),
    "reasoning": (
        {"messages": [USER, {**ANSWER, "reasoning": "So."}]},
        chat(USER, {**ANSWER, "reasoning_content": "So."}),
    ),
    "tools": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                TOLD,
                ANSWER,
            ],
            "tools": [TOOL],
        },
        WITH_TOOLS,
    ),
    "functions": (
        {
            "messages": [
                USER,
                {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                message("function", "42"),
                ANSWER,
            ],
            "functions": [{"name": "f"}],
        },
        WITH_TOOLS,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_of_other_trainers_are_read(write_rows, name: str):
    row, expected = FORMS[name]
    file = ExampleFile(write_rows([row]))
    assert [example for _, example in file] == [expected]
    assert not file.unknown_keys


def test_what_is_not_read_of_a_message_is_counted(write_rows):
    file = ExampleFile(
        write_rows([{"messages": [{**USER, "name": "Bob", "audio": None}, {**ANSWER, "id": 7}]}])
    )
    assert [example for _, example in file] == [CHAT]
    assert file.unknown_keys == {"messages[].name": 1, "messages[].id": 1}


OTHER_FORMS = {
    "question": ({"question": "a", "answer": "b"}, 'rename "question" to "prompt" and "answer" to'),
    "input": ({"input": "a", "output": "b"}, 'rename "input" to "prompt" and "output" to'),
    "response": ({"prompt": "a", "response": "b"}, 'rename "response" to "completion"'),
    "case": ({"Prompt": "a", "Completion": "b"}, 'rename "Prompt" to "prompt" and "Completion"'),
    "dolly": (
        {"instruction": "a", "context": "c", "response": "b", "category": "d"},
        'rename "response" to "output" and "context" to "input"',
    ),
    "dialogue": ({"dialogue": [USER, ANSWER]}, 'rename "dialogue" to "messages"'),
    "content": ({"content": "a"}, 'rename "content" to "text"'),
    "unlike": ({"article": "a", "highlights": "b"}, 'found the keys "article", "highlights"'),
    "wrapped": ({"data": [{"text": "a"}] * 2}, 'found a list of 2 objects under "data"'),
    "two-kinds": (
        {"text": "a", "instruction": "b", "output": "c"},
        "keep those of one kind, for example with: jq -c '{instruction, output}' OLD",
    ),
    "two-halves": ({"prompt": "a", "output": "b"}, 'rename "output" to "completion"'),
    "ultrachat": ({"prompt": "Hi", "messages": [USER, ANSWER]}, "jq -c '{messages}' OLD"),
    "summary": ({"document": "a", "summary": "b"}, 'rename "document" to "prompt" and "summary"'),
    "structured": ({"prompt": "a", "completion": {"x": 1}}, "make it text with: jq -c"),
    "half-chat": ({"prompt": [USER], "completion": "a"}, "found a list and the text"),
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, '"chosen" to "completion"'),
    "preference-chat": ({"chosen": [USER, ANSWER], "rejected": []}, '"chosen" to "messages"'),
    "labels": ({"prompt": "a", "completion": "b", "label": False}, 'found "label" true or false'),
    "columns": ({"prompt": {"0": "a"}, "completion": {"0": "b"}}, "a table by its columns"),
    "column-lists": ({"prompt": ["a"], "completion": ["b"]}, "a table by its columns"),
    "no-role": ({"messages": [{"type": "human", "content": "a"}]}, 'found only "content", "type"'),
    "narrator": ({"messages": [{"role": "narrator", "content": "a"}]}, 'the text "narrator"'),
    "message": ({"role": "user", "content": "a"}, "one message alone"),
    "gemini": ({"contents": [{"role": "user", "parts": []}]}, "Gemini's form"),
    "text-of-messages": ({"messages": json.dumps([USER, ANSWER])}, "a text that holds one"),
    "number": ({"prompt": "a", "completion": 1}, "make it text with: jq -c '.completion |= tostr"),
    "last-user": ({"messages": [USER, ANSWER, USER]}, "found the user's; leave it out"),
    "two-users": ({"messages": [USER, USER, ANSWER]}, "join the two messages into one"),
    "assistant-first": ({"messages": [ANSWER, USER, ANSWER]}, "leave this message out"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_any_other_form_is_told_once_what_to_do(write_rows, name: str):
    row, sentence = OTHER_FORMS[name]
    with pytest.raises(UserError) as caught:
        ExampleFile(write_rows([row] * 30)).check()
    message = str(caught.value)
    assert message.startswith("data.jsonl, line 1: ")
    assert sentence in message
    assert message.endswith(" (the same in 29 more)")
    assert message.isprintable()
    assert len(message) < 400


BAD_MESSAGES = {
    "image": ([{**USER, "content": [{"type": "image_url"}]}], '"messages[0].content[0].type"'),
    "weight": ([USER, {**ANSWER, "weight": 0.5}], '"messages[1].weight": expected 0 or 1, found'),
    "no-weight": ([USER, {**ANSWER, "weight": 0}], "found only weights of 0"),
    "null": ([USER, {"role": "assistant", "content": None}], '"messages[1].content"'),
    "arguments": (
        [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}],
        '"messages[1].tool_calls[0].arguments": expected a JSON object, found the text "x"',
    ),
    "no-name": ([USER, {**ANSWER, "tool_calls": [{"id": "1"}]}], '"messages[1].tool_calls[0]"'),
    "args": (
        [USER, {**ANSWER, "tool_calls": [{"name": "f", "args": {"x": 1}}]}],
        '"messages[1].tool_calls[0]": expected the key "arguments", found only "args", "name"',
    ),
    "calls": ([USER, {**ANSWER, "tool_calls": "f"}], "expected a list of tool calls"),
    "call": ([USER, message("function_call", "f()")], "expected a function call as JSON"),
    "tool-first": ([TOLD], '"messages[0].role": expected "system" or "user"'),
    "surrogate": (
        [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"x": "\ud800"}}]}],
        "expected Unicode text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_is_named(write_rows, name: str):
    messages, sentence = BAD_MESSAGES[name]
    with pytest.raises(UserError) as caught:
        ExampleFile(write_rows([{"messages": messages}])).check()
    assert str(caught.value).startswith("data.jsonl, line 1: ")
    assert sentence in str(caught.value)


ROWS = [{"prompt": "Hi", "completion": "it's"}, {"prompt": "Ho, ho", "completion": "äh"}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
OTHER_FILES = {
    "objects over several lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects over several lines, too": "\n".join(line.replace(', "', ',\n"') for line in LINES),
    "array": json.dumps(ROWS),
    "array over several lines": json.dumps(ROWS, indent=2),
    "array, a line each": "[\n" + ",\n".join(LINES) + "\n]\n",
    "wrapped": json.dumps({"rows": ROWS}),
    "Python": "\n".join(map(str, ROWS)),
    "byte order marks": "\ufeff" + "\n\ufeff".join(LINES),
    "joined without a line break": "\ufeff" + "\ufeff".join(LINES),
    "CSV": 'prompt,completion\nHi,it\'s\n"Ho, ho",äh\n',
    "CSV of Excel": "\ufeffprompt;completion\r\nHi;it's\r\nHo, ho;äh\r\n",
    "TSV": "prompt\tcompletion\nHi\tit's\nHo, ho\täh\n",
    "commas": ",\n".join(LINES) + ",\r\n",
    "objects on one line": "".join(LINES),
    "line breaks of old": "\r".join(LINES),
    "objects as texts": "\n".join(map(json.dumps, LINES)),
    "zeros": "\n".join(LINES) + "\n" + "\0" * 300,
    "end sign": "\n".join(LINES) + "\n\x1a",
    "UTF-16": "\n".join(LINES).encode("utf-16"),
    "Windows": "\n".join(LINES).encode("cp1252"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_is_told_once_how_to_convert_it(tmp_path: Path, name: str):
    """The command that the sentence names is run, and what it makes is read."""
    data = OTHER_FILES[name]
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UserError) as caught:
        ExampleFile(old).check()
    sentence = str(caught.value)
    assert "\n" not in sentence
    command = re.search(r"((?:jq|python3|perl|sed|tr|iconv) .* NEW\.jsonl)", sentence)
    assert command, sentence
    if shutil.which(command[1].split()[0]) is None:
        pytest.skip("the command that converts is not installed here")
    shell = command[1].replace("OLD", str(old)).replace("NEW.jsonl", str(new))
    subprocess.run(shell, shell=True, check=True)
    expected = [CompletionExample(row["prompt"], row["completion"]) for row in ROWS]
    assert [example for _, example in ExampleFile(new)] == expected
