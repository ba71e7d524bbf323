"""A prompt that holds a complete conversation, its user turns in [INST] tags."""

import re

from src.chat.conversation import Conversation, Message

# Begins only where white space begins and never gives any back: a prompt of spaces takes no longer.
_TURN_START = re.compile(r"(?<!\s)\s*+(?:</s>\s*+)?(?:<s>\s*+)?\[INST\]")


def read_inst_prompt(prompt: str) -> Conversation | None:
    """Read an [INST] prompt as a conversation; None if it is none.

    The last [/INST] of a turn closes it: those before it are the user's own words.
    """
    start = _TURN_START.match(prompt)
    if start is None:
        return None
    messages: list[Message] = []
    for part in _TURN_START.split(prompt[start.end() :]):
        user, closed, answer = part.rpartition("[/INST]")
        messages.append({"role": "user", "content": (user if closed else part).strip()})
        if closed:
            messages.append({"role": "assistant", "content": answer.strip()})
    last = messages[-1]
    if last["role"] == "assistant":
        begun = prompt.rpartition("[/INST]")[2].removeprefix(" ")
        messages[-1:] = [{**last, "content": begun}] if last["content"] else []
    return Conversation(tuple(messages))
