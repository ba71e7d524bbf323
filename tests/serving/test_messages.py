"""Messages are a conversation in the order that models are trained on; all else is refused."""

import json

import pytest

from src.chat.conversation import Conversation
from src.errors import UserError
from src.serving.messages import parse_messages, parse_tools


def message(role: str, content: object) -> dict:
    return {"role": role, "content": content}


USER, ASSISTANT, SYSTEM = (message(role, role[0]) for role in ("user", "assistant", "system"))


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "42", "tool_call_id": "1"}
TEXT_PART = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], Conversation.of("u")),
        ([SYSTEM, USER], Conversation.of("u", system="s")),
        ([message("system", ""), USER], Conversation((message("system", ""), USER))),
        ([USER, ASSISTANT, USER], Conversation.of("u", "a", "u")),
        ([USER, ASSISTANT], Conversation.of("u", "a")),
        ([{**USER, "tool_calls": None}], Conversation.of("u")),
        ([{**USER, "tool_calls": []}], Conversation.of("u")),
        ([message("user", [TEXT_PART, {"text": "b"}])], Conversation.of("ab")),
        ([message("developer", "s"), USER], Conversation.of("u", system="s")),
        ([USER, CALLING, TOLD], Conversation((USER, CALLING, TOLD))),
        ([USER, message("assistant", ""), USER], Conversation.of("u", "", "u")),
    ],
)
def test_messages_become_a_conversation(messages: list, expected: Conversation):
    assert parse_messages(json.dumps(messages)) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "found text that is no JSON"),
        ("[" * 100_000, "found text that is no JSON"),
        ("{}", "messages: expected a JSON list of 1 to 1,000 messages, found no list"),
        ("[]", "found 0"),
        (json.dumps([USER] * 1001), "found 1,001"),
        ("[1]", 'messages: "\\[0]": expected {"role", "content"}, found the number 1'),
        (json.dumps([USER, USER]), '"\\[1].role": expected "assistant", found the text "user"'),
        (json.dumps([SYSTEM, ASSISTANT]), '"\\[1].role": expected "user", found the text "assist'),
        (json.dumps([USER, SYSTEM]), '"\\[1].role": expected "assistant", found the text "system"'),
        (json.dumps([SYSTEM]), "expected a message of the user, found a system message alone"),
        (json.dumps([TOLD]), '"\\[0].role": expected "system" or "user", found the text "tool"'),
        (json.dumps([USER, CALLING]), "expected what the tools returned below the calls"),
        (
            json.dumps([message("x\x1b[2J\ud800", "x")]),
            r'"\[0].role": expected "system" or "user", found the text "x\?\[2J\?"$',
        ),
        (
            json.dumps([USER, {**ASSISTANT, "reasoning": "r"}]),
            "no reasons beside an answer that is",
        ),
        (json.dumps([message("user", None)]), '"\\[0].content": expected text, found null'),
        (json.dumps([message("user", {})]), '"\\[0].content": expected text, found an object'),
        *(
            (
                json.dumps([*before, message(role, content)]),
                rf'"\[{len(before)}].content.*": expected Unicode text, found half of a surrogate',
            )
            for before, role in (([], "user"), ([], "system"), ([USER], "assistant"))
            for content in ("\ud800", [{"type": "text", "text": "a\udfff"}])
        ),
        (json.dumps([message("user", [1])]), "expected a part with text, found the number 1"),
        (
            json.dumps([message("user", [{"type": "text"}])]),
            'the key "\\[0].content\\[0].text"',
        ),
        (
            json.dumps([message("user", [TEXT_PART, {"type": "image_url", "text": "a"}])]),
            '"\\[0].content\\[1].type": expected "text"',
        ),
        (
            json.dumps([USER, {**ASSISTANT, "tool_calls": [{"id": "a"}]}]),
            '"\\[1].tool_calls\\[0]": expected',
        ),
    ],
)
def test_anything_else_is_refused(text: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        parse_messages(text)


def test_tools_are_read_and_anything_else_is_refused():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert parse_tools(json.dumps([tool, tool["function"]])) == (tool, tool)
    assert parse_tools("") == parse_tools("[]") == ()
    for text, sentence in (
        ("f", "expected a JSON list of tools"),
        ("[" * 100_000, "expected a JSON list of tools"),
        ("1", "expected a list of tools, found the number 1"),
        ('[{"type": "function"}]', 'found only "type"'),
        ('[{"name": "\\ud800"}]', "half of a surrogate pair"),
    ):
        with pytest.raises(UserError, match=f"^tools: .*{sentence}"):
            parse_tools(text)
