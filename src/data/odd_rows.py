"""Rows that are as likely a mistake as they are meant, counted while a file is read."""

import re
from collections.abc import Iterator

from src.chat.chat_format import ChatFormat
from src.chat.conversation import reasoning_of
from src.data.reading.example import ChatExample, CompletionExample, Example, TextExample

_THINK_END = "</think>"


class OddRows:
    """The oddities of one file, each with the first line of it and how many there are."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._chat_format = chat_format
        self._met: dict[str, list[int]] = {}
        tokenizer = chat_format.tokenizer
        controls = tokenizer.silent_ids | tokenizer.end_ids
        names = [n for n in tokenizer.special_tokens if tokenizer.control_id(n) in controls]
        self._begins = {name[:2] for name in names}
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def look(self, line_number: int, example: Example) -> None:
        """Count what is odd about an example."""
        for remark in self.remarks(example):
            self._met.setdefault(remark, [line_number, 0])[1] += 1

    def warnings(self, name: str) -> Iterator[str]:
        """Yield a sentence for each oddity."""
        for remark, (first, count) in self._met.items():
            yield f"warning: {name}: {count:,} examples (the first is line {first:,}) {remark}"

    def remarks(self, example: Example) -> Iterator[str]:
        """Yield what a user should know of an example, as it reads after a number."""
        texts, answers = _written(example)
        if not isinstance(example, ChatExample) and self._chat_format.begins_with_bos(texts[0]):
            yield "begin with <s>, which is left out: every example is given its beginning"
            texts[0] = texts[0][3:]
        if isinstance(example, CompletionExample) and "[INST]" in example.prompt:
            texts[0] = ""  # between its turns they are no letters
        for text in texts:
            # Most texts hold not even the beginning of one.
            if any(begin in text for begin in self._begins) and (found := self._names.search(text)):
                yield (
                    f"write {found[0]}, which stays letters and is learned as such: every example "
                    "is given its own control tokens"
                )
                break
        if not all(map(str.strip, answers)):
            yield "have a blank answer"
        if _has_text_beside_calls(example) and self._chat_format.prompt_format.loses_text_of_calls:
            yield "have text beside calls of tools, which the chat template leaves out"
        if self._chat_format.prompt_format.is_thinking and not _has_reasons(example, texts):
            yield (
                "answer without the reasons that this model gives first, and teach it to give "
                "none; they belong in reasoning_content, or in the answer between <think> and "
                "</think>"
            )


def _written(example: Example) -> tuple[list[str], list[str]]:
    """Return all texts of an example, and those of them that are learned."""
    match example:
        case TextExample(text):
            return [text], [text]
        case CompletionExample(prompt, completion):
            return [prompt, completion], [completion]
        case ChatExample(conversation):
            messages = conversation.messages
            learned = [m for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
            return (
                [message["content"] for message in messages],
                [m["content"] for m in learned if not m.get("tool_calls")],
            )


def _has_reasons(example: Example, texts: list[str]) -> bool:
    match example:
        case TextExample():
            return True
        case CompletionExample():
            return _THINK_END in example.completion
        case ChatExample(conversation):
            return any(_THINK_END in text for text in texts) or any(
                map(reasoning_of, conversation.messages)
            )


def _has_text_beside_calls(example: Example) -> bool:
    return isinstance(example, ChatExample) and any(
        message.get("tool_calls") and message["content"]
        for message in example.conversation.messages
    )
