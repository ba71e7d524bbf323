"""An example as token ids, with what the model should predict at each position."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from src.chat.chat_format import ChatFormat, LearnedAnswer
from src.chat.conversation import reasoning_of
from src.data.examples import ChatExample, CompletionExample, Example, TextExample

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedExample:
    input_ids: list[int]
    labels: list[int]
    """The token that comes after each position; IGNORE_INDEX where none is predicted."""
    loss_mask: list[bool]
    """True where the label belongs to a completion, and to no prompt."""
    num_cut: int = 0
    """Tokens that did not fit."""


def tokenize(example: Example, chat_format: ChatFormat) -> list[TokenizedExample]:
    """Return an example as token ids.

    It is one sequence, or several where serving shows an earlier answer otherwise than it was
    learned: a model reads before each answer what it will read when it is served.
    """
    match example:
        case TextExample(text):
            answers = [chat_format.learned_text(text)]
        case CompletionExample(prompt, completion):
            answers = [chat_format.learned_completion(prompt, completion)]
        case ChatExample(conversation):
            answers = chat_format.learned_answers(conversation)
    return _sequences(answers)


def remarks(example: Example, chat_format: ChatFormat) -> Iterator[str]:
    """Yield what a user should know of an example, worded so that a number can stand before it."""
    match example:
        case TextExample(text) | CompletionExample(prompt=text):
            if chat_format.begins_with_bos(text):
                yield "begin with <s>, which is left out: every example is given its beginning"
    match example:
        case CompletionExample(completion=answer):
            has_reasons = "</think>" in answer
        case ChatExample(conversation):
            has_reasons = any(
                reasoning_of(message) or "</think>" in (message["content"] or "")
                for message in conversation.messages
            )
        case TextExample():
            has_reasons = True
    if chat_format.prompt_format.is_thinking and not has_reasons:
        yield (
            "answer without the reasons that this model gives first, and teach it to give none; "
            "they belong in reasoning_content, or in the answer between <think> and </think>"
        )


def _sequences(answers: Iterable[LearnedAnswer]) -> list[TokenizedExample]:
    sequences: list[TokenizedExample] = []
    for prompt_ids, answer_ids, end_id in answers:
        ids = prompt_ids + answer_ids
        labels = [*ids[1:], end_id, IGNORE_INDEX]
        loss_mask = [*[False] * (len(prompt_ids) - 1), *[True] * (len(answer_ids) + 1), False]
        loss_mask = loss_mask[-len(labels) :]
        if sequences:
            # An answer before it that stands there as it was learned is learned along with it.
            before = sequences[-1]
            length = len(before.input_ids) - 1
            if before.input_ids[:length] == ids[:length]:
                labels[:length], loss_mask[:length] = before.labels[:-1], before.loss_mask[:-1]
                sequences.pop()
        sequences.append(TokenizedExample([*ids, end_id], labels, loss_mask))
    return sequences


def cut(example: TokenizedExample, *, max_length: int) -> TokenizedExample:
    """Cut an example to `max_length` tokens; it keeps something to learn and its last token.

    The end is cut first. Where no target would be left, the prompt loses its beginning.
    """
    num_tokens = len(example.input_ids)
    if num_tokens <= max_length:
        return example
    first_target, end_id = example.loss_mask.index(True), example.input_ids[-1]
    start = 0
    if first_target >= max_length - 1:
        start = min(first_target - max_length // 2, num_tokens - max_length)
    stop = start + max_length
    input_ids = example.input_ids[start:stop]
    labels = example.labels[start:stop]
    loss_mask = example.loss_mask[start:stop]
    if stop < num_tokens:
        input_ids[-1] = end_id
        labels[-1], loss_mask[-1] = IGNORE_INDEX, False
        if max_length > 1:
            labels[-2] = end_id
    if start > 0:
        input_ids[0] = example.input_ids[0]
    return TokenizedExample(input_ids, labels, loss_mask, num_tokens - max_length)
