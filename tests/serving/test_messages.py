"""Messages are a conversation in the order that models are trained on; all else is refused."""

import json

import pytest

from src.chat.conversation import Conversation
from src.errors import UserError
from src.serving.messages import parse_messages


def message(role: str, content: object) -> dict:
    return {"role": role, "content": content}


USER, ASSISTANT, SYSTEM = (message(role, role[0]) for role in ("user", "assistant", "system"))


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
        ("[1]", "message 1: expected an object with role and content, found a number"),
        (json.dumps([USER, USER]), "message 2: expected role assistant, found user"),
        (json.dumps([SYSTEM, ASSISTANT]), "message 2: expected role user, found assistant"),
        (json.dumps([USER, SYSTEM]), "message 2: expected role assistant, found system"),
        (json.dumps([SYSTEM]), "expected a message of the user, found a system message alone"),
        (json.dumps([message("tool", "x")]), "role system, user or assistant, found tool"),
        (
            json.dumps([message("x\x1b[2J\ud800", "x")]),
            r"role system, user or assistant, found x\?\[2J\?$",
        ),
        (
            json.dumps([message("user", None)]),
            "message 1: expected content that is text, found nothing",
        ),
        (json.dumps([message("user", {})]), "expected content that is text, found an object"),
        *(
            (
                json.dumps([*before, message(role, content)]),
                f"message {len(before) + 1}: expected Unicode text, found half of a surrogate pair",
            )
            for before, role in (([], "user"), ([], "system"), ([USER], "assistant"))
            for content in ("\ud800", [{"type": "text", "text": "a\udfff"}])
        ),
        (json.dumps([message("user", ["a"])]), "part 1: expected an object with text, found text"),
        (json.dumps([message("user", [{"type": "text"}])]), "part 1: expected text, found nothing"),
        (
            json.dumps([message("user", [TEXT_PART, {"type": "image_url", "text": "a"}])]),
            "message 1: part 2: expected type text, found image_url",
        ),
        (
            json.dumps([USER, {**ASSISTANT, "tool_calls": [{"id": "a"}]}]),
            "message 2: expected role and content alone, found tool_calls",
        ),
    ],
)
def test_anything_else_is_refused(text: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        parse_messages(text)
