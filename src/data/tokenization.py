"""An example as token ids, with what the model should predict at each position."""

from collections.abc import Iterable
from dataclasses import dataclass

from src.chat.chat_format import ChatFormat, LearnedAnswer
from src.data.reading.example import ChatExample, CompletionExample, Example, TextExample

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

    @property
    def target_ids(self) -> list[int]:
        """The tokens that are learned."""
        return [i for i, m in zip(self.labels, self.loss_mask, strict=True) if m]


def tokenize(example: Example, chat_format: ChatFormat) -> list[TokenizedExample]:
    """Return an example as token ids.

    It is one sequence, or several where serving shows an earlier answer otherwise than it was
    learned: a model reads before each answer what it will read when it is served.
    """
    match example:
        case TextExample(text):
            answers = [chat_format.learned_text(text)]
        case CompletionExample(prompt, completion, system):
            answers = [chat_format.learned_completion(prompt, completion, system)]
        case ChatExample(conversation):
            answers = chat_format.learned_answers(conversation)
    return _sequences(answers)


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
