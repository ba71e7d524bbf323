"""An example as the model reads it, with control tokens and what is learned marked."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from src.chat.tokenizer import Tokenizer
from src.data.tokenization import IGNORE_INDEX, TokenizedExample

_CONTROL, _LEARNED, _PLAIN = "\x1b[36m", "\x1b[1;32m", "\x1b[0m"


class Run(NamedTuple):
    """Text of tokens that are alike."""

    text: str
    is_control: bool
    is_target: bool


LEGEND = [Run("control token", True, False), Run(" ", False, False), Run("learned", False, True)]


def mark_example(example: TokenizedExample, tokenizer: Tokenizer) -> list[Run]:
    """Return the text of an example in runs; an end that is learned early stands where it is."""
    tokens = itertools.groupby(
        _tokens(example), lambda token: (token[0] in tokenizer.control_ids, token[1])
    )
    return [
        Run(_text([id_ for id_, _ in run], tokenizer, is_control), is_control, is_target)
        for (is_control, is_target), run in tokens
    ]


def _tokens(example: TokenizedExample) -> Iterator[tuple[int, bool]]:
    """Yield each token with whether it is learned."""
    label, is_target = IGNORE_INDEX, False
    for token, next_label, next_is_target in zip(
        example.input_ids, example.labels, example.loss_mask, strict=True
    ):
        if is_target and label != token:
            yield label, True
            is_target = False
        yield token, is_target
        label, is_target = next_label, next_is_target and next_label != IGNORE_INDEX
    if is_target:
        yield label, True


def _text(ids: list[int], tokenizer: Tokenizer, is_control: bool) -> str:
    if is_control:
        return "".join(tokenizer.tokenizer.convert_ids_to_tokens(ids))
    return tokenizer.decode(ids)


def show_runs(runs: Iterable[Run], *, in_color: bool) -> str:
    """Return marked text for a terminal, in colors or with signs around."""
    shown = []
    for is_target, group in itertools.groupby(runs, lambda run: run.is_target):
        text = "".join(_show_run(run, in_color) for run in group)
        shown.append(f"⟦{text}⟧" if is_target and not in_color else text)
    return "".join(shown)


def _show_run(run: Run, in_color: bool) -> str:
    if not in_color:
        return f"⟨{run.text}⟩" if run.is_control else run.text
    color = _LEARNED * run.is_target + _CONTROL * run.is_control
    return f"{color}{run.text}{_PLAIN}" if color else run.text
