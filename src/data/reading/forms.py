"""The forms that a row may have, each read as one of the three kinds of examples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from src.chat.conversation import Conversation, Message
from src.data.reading.example import ChatExample, CompletionExample, Example, TextExample
from src.data.reading.fields import (
    BadFormError,
    BadValueError,
    Record,
    describe,
    excerpt,
    read_text,
    show_keys,
)
from src.data.reading.json_line import KINDS
from src.data.reading.messages import CountUnused, read_messages
from src.data.reading.tools import read_tools
from src.files.printable import printable


@dataclass(frozen=True)
class Form:
    """A form of rows: the keys that it must have, those that it may have, and how it is read."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Record, CountUnused], Example]

    @cached_property
    def keys(self) -> frozenset[str]:
        """All keys that are read."""
        return frozenset((*self.required, *self.optional))


def _read_text(record: Record, _: CountUnused) -> Example:
    return TextExample(read_text(record, "text", may_be_empty=False))


def _read_pair(record: Record, count_unused: CountUnused) -> Example:
    pair = (record["prompt"], record["completion"])
    if all(map(_is_chat, pair)):
        return _read_message_pair(record, count_unused)
    if any(map(_is_chat, pair)):
        raise BadFormError(
            '"prompt" and "completion": expected two texts or two lists of messages, found a list '
            f"and {' and '.join(describe(value) for value in pair if not _is_chat(value))}",
            group="a list and a text",
        )
    if isinstance(record.get("label"), bool):
        raise BadFormError(
            'found "label" true or false, as data of good and bad answers have it; keep the good '
            "ones, without the label: jq -c 'select(.label) | del(.label)' OLD > NEW.jsonl"
        )
    if all(isinstance(value, dict | list) for value in pair):
        raise BadFormError(
            "expected one row a line, found a table by its columns, as pandas writes it; write it "
            "with to_json(..., orient='records', lines=True)"
        )
    return CompletionExample(
        read_text(record, "prompt"),
        read_text(record, "completion", may_be_empty=False),
        _system(record),
    )


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def _read_message_pair(record: Record, count_unused: CountUnused) -> Example:
    """Read TRL's prompt and completion: of the messages the completion's are learned."""
    num_before = len(record["prompt"])
    both = read_messages(
        record["prompt"] + record["completion"], count_unused, label="prompt + completion"
    )
    for message in both[:num_before]:
        if message["role"] == "assistant":
            message["weight"] = 0
    return _chat(record, both, label="completion")


def _read_instruction(record: Record, _: CountUnused) -> Example:
    """Read Alpaca's row: the prompt is the instruction, and below it the input if there is one."""
    more = "" if record.get("input") is None else read_text(record, "input")
    prompt = "\n\n".join(filter(None, (read_text(record, "instruction"), more)))
    answer = read_text(record, "output", may_be_empty=False)
    return CompletionExample(prompt, answer, _system(record))


def _read_chat(record: Record, count_unused: CountUnused, *, key: str) -> Example:
    return _chat(record, read_messages(record[key], count_unused, label=key), label=key)


def _chat(record: Record, messages: list[Message], *, label: str) -> ChatExample:
    system = _system(record)
    if messages[0]["role"] == "system":
        if system:
            raise BadValueError(
                f'"{label}": expected one system prompt, found one here and one beside it'
            )
    elif system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    if messages[-1]["role"] != "assistant":
        raise BadFormError(
            f'"{label}": expected the last message to be the assistant\'s, found the '
            f"{messages[-1]['role']}'s; leave it out, or add the answer to it"
        )
    learned = [m for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
    if not learned:
        raise BadValueError(f'"{label}": expected an answer to learn, found only weights of 0')
    for message in learned:
        if not message["content"] and not message.get("tool_calls"):
            raise BadValueError(f'"{label}": expected text, found an empty string for an answer')
    functions = record.get("functions")
    key = "functions" if functions else "tools"
    return ChatExample(Conversation(tuple(messages), read_tools(record.get(key), key)))


def _system(record: Record) -> str | None:
    key = "system" if record.get("system") is not None else "system_prompt"
    return None if record.get(key) is None else read_text(record, key)


_SYSTEM = ("system", "system_prompt")
_TOOLS = (*_SYSTEM, "tools", "functions")
FORMS = (
    Form(("instruction", "output"), ("input", *_SYSTEM), _read_instruction),
    Form(("prompt", "completion"), _TOOLS, _read_pair),
    Form(("messages",), _TOOLS, partial(_read_chat, key="messages")),
    Form(("conversations",), _TOOLS, partial(_read_chat, key="conversations")),
    Form(("text",), (), _read_text),
)
_FORM_OF = {key: form for form in FORMS for key in form.required}

_OTHER_NAMES = {
    "prompt": (
        *("question", "query", "input", "inputs", "input_text", "text_input", "user", "human"),
        *("problem", "request", "source", "article", "document"),
    ),
    "completion": (
        *("answer", "response", "output", "output_text", "reply", "assistant", "solution"),
        *("target", "targets", "target_text", "summary", "highlights"),
    ),
    "output": ("response", "answer", "completion"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "text": ("content", "document", "body", "sentence"),
    "input": ("context",),
}
_NOT_LEARNED = {
    ("chosen", "rejected"): "preference data, which are not for this training; to learn the chosen "
    'answers rename "chosen" to "{kind}" and remove "rejected"',
    ("role", "content"): "one message alone; put all messages of a conversation into one row",
    ("contents",): 'Gemini\'s form; rename "contents" to "messages" and "parts" to "content"',
    ("images",): "images; only text is learned",
    ("image",): "an image; only text is learned",
}


def find_form(record: Record) -> Form:
    """Return the form of a row; raises BadFormError that says how the row would get one."""
    named = record.keys() & _FORM_OF.keys()
    forms = {_FORM_OF[key] for key in named}
    if len(forms) > 1:
        # Tables of mixed kinds fill their holes with null or nothing.
        forms = {_FORM_OF[key] for key in named if record[key] not in (None, "")}
        if not forms:
            raise BadValueError(
                f"expected one of {KINDS}, found only null in the keys {show_keys(record)}"
            )
    if len(forms) == 1:
        (form,) = forms
        if all(key in record for key in form.required):
            return form
    raise BadFormError(_explain(record, forms))


def _explain(record: Record, forms: set[Form]) -> str:
    """Return what was found in place of a form, and how it becomes one."""
    found = f"expected one of {KINDS}, found"
    for keys, sentence in _NOT_LEARNED.items():
        if record.keys() >= set(keys):
            kind = "messages" if isinstance(record.get("chosen"), list) else "completion"
            return f"{found} {sentence.format(kind=kind)}"
    for form in FORMS:
        if form in forms and record.keys() >= set(form.required):
            kept = ", ".join(key for key in (*form.required, *form.optional) if key in record)
            return (
                f"{found} the keys {show_keys(record)}; keep those of one kind, for example with: "
                f"jq -c '{{{kept}}}' OLD > NEW.jsonl"
            )
    for form in FORMS:
        if names := _renamed(record, form):
            changed = {key: name for key, name in names.items() if key != name}
            renames = " and ".join(f'{excerpt(o)} to "{n}"' for n, o in changed.items())
            way = ", ".join(f"{key}: .{name}" for key, name in names.items())
            plain = all(name.isidentifier() and name.isascii() for name in names.values())
            command = f" (jq -c '{{{way}}}' OLD > NEW.jsonl)" if plain else ""
            return f"{found} the keys {show_keys(record)}; rename {renames}{command}"
    for form in (form for form in FORMS if form in forms):
        missing = next(key for key in form.required if key not in record)
        return f'expected the key "{missing}", found only {show_keys(record)}'
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return (
                f"{found} a list of {len(value):,} objects under {excerpt(key)}; convert it with: "
                f"jq -c '.{printable(key, 40)}[]' OLD > NEW.jsonl"
            )
    return f"{found} the keys {show_keys(record)}; rename those to be learned"


def _renamed(record: Record, form: Form) -> dict[str, str]:
    """Return which key of a row stands for which of a form; none where one is missing."""
    names: dict[str, str] = {}
    written = {key.strip().lower(): key for key in record}
    for key in (*form.required, *form.optional):
        for name in (key, *_OTHER_NAMES.get(key, ())):
            if name in written and _may_be(key, record[written[name]]):
                names[key] = written[name]
                break
    return names if names.keys() >= set(form.required) else {}


def _may_be(key: str, value: object) -> bool:
    is_list = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return is_list if key in ("messages", "conversations", "tools") else isinstance(value, str)
