"""A learned answer follows the tokens that serving puts before it, with any chat template."""

from pathlib import Path

import pytest

from src.chat.chat_format import ChatFormat, build_chat_format, build_train_format
from src.chat.conversation import Conversation
from src.chat.tokenizer import Tokenizer
from src.data.reading.example import ChatExample
from src.data.tokenization import TokenizedExample, tokenize
from src.serving.engine.request import Token
from src.serving.output.answer import Answer
from tests.chat.known_tokenizers import CHAT_TEMPLATES, make_tokenizer, needs_templates
from tests.chat.templates import CONTROL_TOKENS, TEMPLATES

ANSWERS = (
    "It is red.",
    "    return 1\n",
    "\n",
    "  both ends  ",
    "a\n\n\nb\r\n\tc",
    "\n\nZwölf 🍎",
    "<think>\nwhy\n</think>\n\nso",
    "<|end|> as letters </s>",
)
MOVED = [text for name, text in TEMPLATES.items() if "the system text" in name or "refuses" in name]
"""With these a system text goes into the first prompt."""
LLAMA_ENDS = ("llama-2-chat", "mistral-instruct", "zephyr")


def learned(sequence: TokenizedExample) -> list[tuple[list[int], list[int]]]:
    """Return of each answer of a sequence what stands before it, and its tokens with the end."""
    answers: list[tuple[list[int], list[int]]] = []
    for place, is_target in enumerate(sequence.loss_mask):
        if not is_target:
            continue
        if not (place and sequence.loss_mask[place - 1]):
            answers.append((sequence.input_ids[: place + 1], []))
        answers[-1][1].append(sequence.labels[place])
    return answers


def served(chat_format: ChatFormat, prompt_ids: list[int], ids: list[int]) -> tuple[str, list[int]]:
    """Return the text that serving makes of tokens up to the first that ends an answer, and the
    tokens that are left."""
    prefix = chat_format.prompt_format.answer_prefix
    answer = Answer(
        chat_format.tokenizer, prompt_ids, stop_sequences=(), prefix=prefix, min_new_tokens=-1
    )
    text = ""
    for number, token in enumerate(ids):
        if token in chat_format.tokenizer.end_ids:
            return text, ids[number + 1 :]
        text += answer.push(Token(token, None, ()))
    return text, []


def check(tokenizer: Tokenizer, *, system: str = "", loops_over_tools: bool = False) -> None:
    """Prove of dialogues of two turns that each answer is learned as it will be served, after the
    tokens that Transformers renders."""
    train_format, serve_format = (
        build("some/model", tokenizer) for build in (build_train_format, build_chat_format)
    )
    for number, first in enumerate(ANSWERS):
        second = ANSWERS[(number + 1) % len(ANSWERS)]
        said = Conversation.of("Hi", first, "And\nthen?", second, system=system)
        found = [
            answer
            for sequence in tokenize(ChatExample(said), train_format)
            for answer in learned(sequence)
        ]
        assert len(found) == 2
        num_before = len(said.messages) - 3
        for (prompt_ids, ids), text in zip(found, (first, second), strict=True):
            asked = said.until(num_before)
            num_before += 2
            assert prompt_ids == serve_format.prompt_ids(asked)
            assert served(serve_format, prompt_ids, ids) == (text, [])
            if (system and tokenizer.tokenizer.chat_template in MOVED) or "<|end|>" in first:
                continue
            nothing = [] if loops_over_tools else None
            assert prompt_ids == tokenizer.tokenizer.apply_chat_template(
                list(asked.messages),
                tools=nothing,
                documents=nothing,
                add_generation_prompt=True,
                return_dict=False,
            )


@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_learned_as_they_are_served(tmp_path: Path, name: str, system: str):
    tokenizer = make_tokenizer(tmp_path, TEMPLATES[name], also=CONTROL_TOKENS)
    check(tokenizer, system=system, loops_over_tools="documents" in name)


@needs_templates
@pytest.mark.parametrize("system", ["", "Be kind."])
@pytest.mark.parametrize("path", sorted(CHAT_TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_answers_are_learned_as_real_models_are_served(tmp_path: Path, path: Path, system: str):
    names = {"bos": "<s>", "eos": "</s>"} if path.stem in LLAMA_ENDS else {}
    check(make_tokenizer(tmp_path, path.read_text(), **names), system=system)


@pytest.mark.parametrize(
    ("kind", "num_sequences"), [("plain", 1), ("trims", 1), ("strips", 3), ("channel", 3)]
)
def test_a_dialogue_is_one_sequence_where_it_can_be(tmp_path: Path, kind: str, num_sequences: int):
    name = next(name for name in TEMPLATES if kind in name)
    tokenizer = make_tokenizer(tmp_path, TEMPLATES[name], also=CONTROL_TOKENS)
    said = Conversation.of("a", "b", "c", "d", "e", "f")
    sequences = tokenize(ChatExample(said), build_train_format("some/model", tokenizer))
    assert len(sequences) == num_sequences
