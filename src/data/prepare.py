"""From the user's files to the data sets that the ranks read, and the steps over them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from src.chat.prompt_encoder import PromptEncoder
from src.chat.template import warn_of_escapes
from src.data.marked import Run
from src.data.odd_rows import OddRows
from src.data.packing import one_by_one, pack, wrap
from src.data.reading.example import Example
from src.data.reading.example_file import ExampleFile
from src.data.report import DataReport, report_data
from src.data.steps import StepPlan, choose_batch_sizes
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import TokenizedExample, cut, tokenize
from src.errors import UserError
from src.settings import TrainSettings

DEFAULT_CHUNK_SIZE = TrainSettings.chunk_size
NO_LIMIT = 2**62
_PARTS, _REPORT = "parts.json", "report.json"


class _Part(NamedTuple):
    """Some examples of one token file; `name` is the user's file."""

    file: str
    name: str
    first: int
    last: int


def num_held_out(num_examples: int, settings: TrainSettings) -> int:
    """Return how many examples the validation takes from the tail of the training data."""
    if not settings.run_validation or settings.validation_data or num_examples < 2:
        return 0
    return min(settings.num_validation_samples, max(1, num_examples // 5))


def prepare_data(
    settings: TrainSettings,
    encoder: PromptEncoder,
    *,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Tokenize the files into `folder`, for `open_datasets`, and log what was decided."""
    folder.mkdir(exist_ok=True)
    if warning := warn_of_escapes("prompt_template", settings.prompt_template):
        log(warning)
    log(f"plan: {encoder.chat_format.describe()}")

    def write(path: str, name: str, part: str, max_length: int) -> TokenDataset:
        file, odd_rows = ExampleFile(Path(path), name), OddRows(encoder.chat_format)

        def tokenized() -> Iterator[tuple[int, TokenizedExample]]:
            for line_number, example, sequences in tokenize_file(file, encoder, max_length):
                odd_rows.look(line_number, example)
                for sequence in sequences:
                    yield line_number, sequence

        write_tokens(tokenized(), folder / part)
        dataset = TokenDataset(folder / part, name=name)
        for key, count in file.unknown_keys.most_common(10):
            log(f"warning: {name}: the key {key[:40]!r} is not used ({count:,} times)")
        for line in odd_rows.warnings(name):
            log(line)
        counts = dataset.counts
        if counts.cut_examples:
            log(
                f"warning: {name}: {counts.cut_examples:,} examples were cut to "
                f"{max_length:,} tokens, {counts.cut_tokens:,} tokens are left out"
            )
        return dataset

    limit = longest_example(settings, encoder.max_seq_len, log)
    train = write(settings.train_data, settings.train_data_name, "train", limit)
    last = len(train)
    if settings.run_validation and settings.validation_data is not None:
        name = settings.validation_data_name or Path(settings.validation_data).name
        validation = write(settings.validation_data, name, "validation", encoder.max_seq_len)
        num_examples = validation.counts.examples
        num_validation = min(settings.num_validation_samples, num_examples)
        log(f"validation: the first {num_validation:,} of {num_examples:,} examples of {name}")
        held_out = _Part("validation", name, 0, validation.first_sequence(num_validation))
    else:
        num_examples = train.counts.examples
        num_validation = num_held_out(num_examples, settings)
        if settings.run_validation:
            asked = settings.num_validation_samples
            note = "" if num_validation == asked else f" ({asked:,} asked for, at most a fifth)"
            log(f"validation: the last {num_validation:,} of {num_examples:,} examples{note}")
        last = train.first_sequence(num_examples - num_validation)
        held_out = _Part("train", train.name, last, len(train))
    kept = _Part("train", train.name, 0, last)
    (folder / _PARTS).write_text(json.dumps([kept, held_out]))
    datasets = open_datasets(folder)
    if datasets[0].counts.learned_tokens == 0:
        raise UserError(
            f"{train.name}: nothing is left to learn after cutting the examples to "
            f"{limit:,} tokens; expected a larger chunk_size or shorter prompts"
        )
    report = report_data(*datasets, encoder.tokenizer)
    for line in report.warnings():
        log(line)
    (folder / _REPORT).write_text(json.dumps(asdict(report)))


def tokenize_file(
    file: ExampleFile, encoder: PromptEncoder, max_length: int
) -> Iterator[tuple[int, Example, list[TokenizedExample]]]:
    """Yield (line number, example, its sequences), cut to `max_length` tokens.

    Raises UserError for an example that the prompt format has no place for.
    """
    for line_number, example in file:
        try:
            sequences = tokenize(example, encoder.chat_format)
        except UserError as error:
            raise UserError(f"{file.name}, line {line_number}: {error}") from None
        yield line_number, example, [cut(s, max_length=max_length) for s in sequences]


def open_datasets(folder: Path) -> tuple[TokenDataset, TokenDataset]:
    """Return the data for training and for validation, which `prepare_data` wrote."""
    parts = [_Part(*part) for part in json.loads((folder / _PARTS).read_text())]
    train, validation = (
        TokenDataset(folder / part.file, name=part.name, first=part.first, last=part.last)
        for part in parts
    )
    return train, validation


def read_report(folder: Path) -> DataReport:
    """Return what `prepare_data` found to report."""
    report = json.loads((folder / _REPORT).read_text())
    report["examples"] = [[Run(*run) for run in runs] for runs in report["examples"]]
    return DataReport(**report)


def longest_example(settings: TrainSettings, max_seq_len: int, log: Callable[[str], None]) -> int:
    """Return the tokens that a training example is cut to."""
    if not settings.pack_sequences:
        if settings.wrap_packed_sequences or settings.chunk_size != DEFAULT_CHUNK_SIZE:
            log(
                "warning: wrap_packed_sequences and chunk_size have no effect without "
                "pack_sequences"
            )
        return max_seq_len
    limit = min(settings.chunk_size, max_seq_len)
    if limit < settings.chunk_size:
        log(
            f"warning: chunk_size {settings.chunk_size} is over the base model's context; "
            f"it is taken as {limit}"
        )
    return NO_LIMIT if settings.wrap_packed_sequences else limit


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
    batch_sizes = choose_batch_sizes(
        train_batch_size=settings.train_batch_size,
        micro_batch_size=settings.micro_batch_size,
        num_devices=num_devices,
    )
    return StepPlan(
        sequences, batch_sizes, settings.num_train_epochs, settings.seed, settings.max_steps
    )
