"""An example as token ids, with what the model should predict at each position."""

from dataclasses import dataclass, replace

from src.chat.chat_format import ChatFormat
from src.chat.conversation import Conversation
from src.chat.segments import BOS, EOS, Control, Segment, Text
from src.chat.tokenizer import Tokenizer
from src.data.examples import ChatExample, CompletionExample, Example, TextExample

IGNORE_INDEX = -100
_OWN_BOS = "<s>"


@dataclass(frozen=True)
class TokenizedExample:
    input_ids: list[int]
    labels: list[int]
    """The token that comes after each position; IGNORE_INDEX where none is predicted."""
    loss_mask: list[bool]
    """True where the label belongs to a completion, and to no prompt."""
    num_cut: int = 0
    """Tokens that did not fit."""


def tokenize(example: Example, tokenizer: Tokenizer, chat_format: ChatFormat) -> TokenizedExample:
    """Return an example as token ids; prompt and completion are encoded apart."""
    match example:
        case TextExample(text):
            target = Text(text.removeprefix(_OWN_BOS), is_target=True, ends=True)
            segments = [Control(BOS), target, Control(EOS)]
        case CompletionExample(prompt, completion):
            segments = _completion_segments(chat_format, chat_format.of_prompt(prompt), completion)
        case ChatExample(turns, system):
            own = chat_format.system_prompt if system is None else system
            segments = chat_format.prompt_format.segments(
                Conversation(turns, own), num_target_turns=len(turns)
            )
    return _assemble(segments, tokenizer)


def begins_with_bos(example: Example) -> bool:
    """Tell whether the user wrote a beginning of sequence, which is left out of the text."""
    match example:
        case TextExample(text) | CompletionExample(prompt=text):
            return text.startswith(_OWN_BOS)
        case ChatExample():
            return False


def _completion_segments(
    chat_format: ChatFormat, conversation: Conversation, completion: str
) -> list[Segment]:
    if conversation.is_open:
        rest = Text(completion, is_target=True, continues=True, ends=True)
        return [*chat_format.prompt_format.segments(conversation), rest, Control(EOS)]
    *finished, last = conversation.turns
    answered = Conversation([*finished, replace(last, answer=completion)], conversation.system)
    return chat_format.prompt_format.segments(answered, num_target_turns=1)


def _assemble(segments: list[Segment], tokenizer: Tokenizer) -> TokenizedExample:
    input_ids: list[int] = []
    labels: list[int] = []
    loss_mask: list[bool] = []

    def add_label(token: int, is_target: bool) -> None:
        if len(labels) < len(input_ids):
            labels.append(token)
            loss_mask.append(is_target)

    for segment, following in zip(segments, _controls_after(segments), strict=True):
        is_target = isinstance(segment, Text) and segment.is_target
        for token in tokenizer.encode_segment(segment):
            add_label(token, is_target)
            input_ids.append(token)
        if isinstance(segment, Text) and segment.is_target and segment.ends:
            # The turn is to end right here, whatever the format puts before its control token.
            add_label(tokenizer.end_id(following), True)
    add_label(IGNORE_INDEX, False)
    return TokenizedExample(input_ids, labels, loss_mask)


def _controls_after(segments: list[Segment]) -> list[Control | None]:
    """Return the first control token behind each segment."""
    controls: list[Control | None] = []
    following = None
    for segment in reversed(segments):
        controls.append(following)
        if isinstance(segment, Control):
            following = segment
    return controls[::-1]


def cut(example: TokenizedExample, *, max_length: int, eos_id: int) -> TokenizedExample:
    """Cut an example to `max_length` tokens; it keeps something to learn and its end-of-sequence.

    The end is cut first. Where no target would be left, the prompt loses its beginning.
    """
    num_tokens = len(example.input_ids)
    if num_tokens <= max_length:
        return example
    first_target = example.loss_mask.index(True)
    start = 0
    if first_target >= max_length - 1:
        start = min(first_target - max_length // 2, num_tokens - max_length)
    stop = start + max_length
    input_ids = example.input_ids[start:stop]
    labels = example.labels[start:stop]
    loss_mask = example.loss_mask[start:stop]
    if stop < num_tokens:
        input_ids[-1] = eos_id
        labels[-1], loss_mask[-1] = IGNORE_INDEX, False
        if max_length > 1:
            labels[-2] = eos_id
    if start > 0:
        input_ids[0] = example.input_ids[0]
    return TokenizedExample(input_ids, labels, loss_mask, num_tokens - max_length)
