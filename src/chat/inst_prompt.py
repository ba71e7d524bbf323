"""A prompt that holds a complete conversation, its user turns in [INST] tags."""

import re
from dataclasses import replace

from src.chat.conversation import Conversation, Turn

# Begins only where white space begins and never gives any back: a prompt of spaces takes no longer.
_TURN_START = re.compile(r"(?<!\s)\s*+(?:</s>\s*+)?(?:<s>\s*+)?\[INST\]")


def read_inst_prompt(prompt: str) -> Conversation | None:
    """Read an [INST] prompt as a conversation; None if it is none.

    The last [/INST] of a turn closes it: those before it are the user's own words.
    """
    start = _TURN_START.match(prompt)
    if start is None:
        return None
    turns = []
    for part in _TURN_START.split(prompt[start.end() :]):
        user, closed, answer = part.rpartition("[/INST]")
        turns.append(Turn(user.strip(), answer.strip()) if closed else Turn(part.strip()))
    *finished, last = turns
    if last.answer:
        begun = prompt.rpartition("[/INST]")[2].removeprefix(" ")
        return Conversation([*finished, replace(last, answer=begun)], is_open=True)
    return Conversation([*finished, replace(last, answer=None)])
