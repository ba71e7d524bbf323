"""An example as token ids, with what the model should predict at each position."""

from dataclasses import dataclass, replace

from src.chat.chat_format import Speech
from src.chat.conversation import Dialogue
from src.chat.segments import BOS, EOS, Control, Piece, Text
from src.chat.tokenizer import Tokenizer
from src.data.examples import ChatExample, CompletionExample, Example, TextExample

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenizedExample:
    input_ids: list[int]
    labels: list[int]
    """The token that comes after each position; IGNORE_INDEX where nothing is learned."""
    completion_mask: list[bool]
    """True where the label belongs to a completion, and to no prompt."""
    num_cut: int = 0
    """Tokens that did not fit."""


def tokenize(example: Example, tokenizer: Tokenizer, speech: Speech) -> TokenizedExample:
    """Return an example as token ids; prompt and completion are encoded apart."""
    match example:
        case TextExample(text):
            whole = Text(text.removeprefix("<s>"), learned=True, ends=True)
            pieces = [Control(BOS), whole, Control(EOS)]
        case CompletionExample(prompt, completion):
            pieces = _completion_pieces(speech, speech.of_prompt(prompt), completion)
        case ChatExample(turns, system):
            own = speech.system_prompt if system is None else system
            pieces = speech.prompt_format.pieces(Dialogue(turns, own), num_learned=len(turns))
    return _assemble(pieces, tokenizer)


def _completion_pieces(speech: Speech, dialogue: Dialogue, completion: str) -> list[Piece]:
    if dialogue.is_open:
        rest = Text(completion, learned=True, continues=True, ends=True)
        return [*speech.prompt_format.pieces(dialogue), rest, Control(EOS)]
    *finished, last = dialogue.turns
    answered = Dialogue([*finished, replace(last, answer=completion)], dialogue.system)
    return speech.prompt_format.pieces(answered, num_learned=1)


def _assemble(pieces: list[Piece], tokenizer: Tokenizer) -> TokenizedExample:
    input_ids: list[int] = []
    labels: list[int] = []
    completion_mask: list[bool] = []

    def add_label(token: int, is_learned: bool) -> None:
        if len(labels) < len(input_ids):
            labels.append(token)
            completion_mask.append(is_learned)

    for piece, following in zip(pieces, _controls_after(pieces), strict=True):
        is_learned = isinstance(piece, Text) and piece.learned
        for token in tokenizer.encode_piece(piece):
            add_label(token, is_learned)
            input_ids.append(token)
        if isinstance(piece, Text) and piece.learned and piece.ends:
            # The turn is to end right here, whatever the format puts before its control token.
            add_label(tokenizer.end_id(following), True)
    add_label(IGNORE_INDEX, False)
    return TokenizedExample(input_ids, labels, completion_mask)


def _controls_after(pieces: list[Piece]) -> list[Control | None]:
    """Return the first control token behind each piece."""
    controls: list[Control | None] = []
    following = None
    for piece in reversed(pieces):
        controls.append(following)
        if isinstance(piece, Control):
            following = piece
    return controls[::-1]


def cut(example: TokenizedExample, *, max_length: int, eos_id: int) -> TokenizedExample:
    """Cut an example to `max_length` tokens; it keeps something to learn and its end-of-sequence.

    The end is cut first. Where nothing learned would be left, the prompt loses its beginning.
    """
    num_tokens = len(example.input_ids)
    if num_tokens <= max_length:
        return example
    first_learned = example.completion_mask.index(True)
    start = 0
    if first_learned >= max_length - 1:
        start = min(first_learned - max_length // 2, num_tokens - max_length)
    stop = start + max_length
    input_ids = example.input_ids[start:stop]
    labels = example.labels[start:stop]
    completion_mask = example.completion_mask[start:stop]
    if stop < num_tokens:
        input_ids[-1] = eos_id
        labels[-1], completion_mask[-1] = IGNORE_INDEX, False
        if max_length > 1:
            labels[-2] = eos_id
    if start > 0:
        input_ids[0] = example.input_ids[0]
    return TokenizedExample(input_ids, labels, completion_mask, num_tokens - max_length)
