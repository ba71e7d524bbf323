"""From the user's files to the data sets that the ranks read, and the steps over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from src.chat.chat_format import ChatFormat
from src.chat.tokenizer import Tokenizer
from src.data.dataset import DataCounts, TokenDataset
from src.data.dataset_writer import keep_first, split_dataset, write_dataset
from src.data.examples import ExampleFile
from src.data.packing import one_by_one, pack, wrap
from src.data.steps import StepPlan, choose_batch_sizes
from src.data.tokenization import TokenizedExample, cut, tokenize
from src.errors import UserError
from src.settings import TrainSettings


def num_held_out(num_examples: int, settings: TrainSettings) -> int:
    """Return how many examples the validation takes from the tail of the training data."""
    if not settings.run_validation or settings.validation_data or num_examples < 2:
        return 0
    return min(settings.num_validation_samples, max(1, num_examples // 5))


def prepare_data(
    settings: TrainSettings,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    *,
    max_seq_len: int,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Tokenize the files into `folder/train` and `folder/validation`, and say what was decided."""
    limit = max_seq_len
    if settings.pack_sequences:
        limit = min(settings.chunk_size, max_seq_len)
        if limit < settings.chunk_size:
            say(
                f"warning: chunk_size {settings.chunk_size} is over the base model's context; "
                f"it is taken as {limit}"
            )
        if settings.wrap_packed_sequences:
            limit = 2**62  # the stream is cut later
    elif settings.wrap_packed_sequences or settings.chunk_size != 2048:
        say("warning: wrap_packed_sequences and chunk_size have no effect without pack_sequences")

    def read(path: str, name: str | None, part: str, max_length: int) -> DataCounts:
        file = ExampleFile(Path(path), name)

        def tokenized() -> Iterator[tuple[int, TokenizedExample]]:
            for line_number, example in file:
                whole = tokenize(example, tokenizer, chat_format)
                yield line_number, cut(whole, max_length=max_length, eos_id=tokenizer.eos_id)

        counts = write_dataset(tokenized(), folder / part, name=file.name)
        for key, count in file.unknown_keys.most_common(10):
            say(f"warning: {file.name}: the key {key[:40]!r} is not used ({count:,} times)")
        if counts.cut_examples:
            say(
                f"warning: {file.name}: {counts.cut_examples:,} examples were cut to "
                f"{max_length:,} tokens, {counts.cut_tokens:,} tokens are left out"
            )
        return counts

    train = read(settings.train_data, settings.train_data_name, "train", limit)
    if settings.run_validation and settings.validation_data is not None:
        name = settings.validation_data_name
        validation = read(settings.validation_data, name, "validation", max_seq_len)
        num_validation = min(settings.num_validation_samples, validation.examples)
        say(
            f"validation: the first {num_validation:,} of {validation.examples:,} "
            f"examples of {name}"
        )
        keep_first(folder / "validation", num_validation)
    else:
        num_validation = num_held_out(train.examples, settings)
        if settings.run_validation:
            asked = settings.num_validation_samples
            note = "" if num_validation == asked else f" ({asked:,} asked for, at most a fifth)"
            say(f"validation: the last {num_validation:,} of {train.examples:,} examples{note}")
        num_train = train.examples - num_validation
        split_dataset(folder / "train", num_train, folder / "validation")
    if TokenDataset(folder / "train").counts.learned_tokens == 0:
        raise UserError(
            f"{settings.train_data_name}: nothing is left to learn after cutting the examples to "
            f"{limit:,} tokens; expected a larger chunk_size or shorter prompts"
        )


def build_step_plan(
    dataset: TokenDataset, settings: TrainSettings, *, max_seq_len: int, num_devices: int
) -> StepPlan:
    """Return the steps of a run over the examples as they are, packed, or as one stream."""
    chunk_size = min(settings.chunk_size, max_seq_len)
    if not settings.pack_sequences:
        sequences = one_by_one(dataset.offsets)
    elif settings.wrap_packed_sequences:
        sequences = wrap(dataset.offsets, chunk_size=chunk_size)
    else:
        sequences = pack(dataset.offsets, chunk_size=chunk_size)
    plan = choose_batch_sizes(
        train_batch_size=settings.train_batch_size,
        micro_batch_size=settings.micro_batch_size,
        num_devices=num_devices,
    )
    return StepPlan(sequences, plan, settings.num_train_epochs, settings.seed, settings.max_steps)
