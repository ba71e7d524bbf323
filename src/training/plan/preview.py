"""The first examples of a training as the model reads them."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.training.inputs import resolve_settings


def preview_examples(
    inputs: Mapping[str, Any], num_examples: int, *, in_color: bool
) -> Iterator[str]:
    """Yield lines that show the first examples; nothing is trained."""
    from src.chat.prompt_encoder import open_prompt_encoder
    from src.data.marked import LEGEND, mark_example, show_runs
    from src.data.prepare import longest_example, tokenize_file
    from src.data.reading.example_file import ExampleFile

    settings = resolve_settings(inputs, with_weights=False)
    if not settings.train_data:
        raise UserError("train_data: examples are shown on the machine with the file")
    encoder = open_prompt_encoder(settings)
    limit = longest_example(settings, encoder.max_seq_len, log=lambda line: None)
    file = ExampleFile(Path(settings.train_data), settings.train_data_name)
    yield show_runs(LEGEND, in_color=in_color)
    for line_number, _, sequences in islice(tokenize_file(file, encoder, limit), num_examples):
        for sequence in sequences:
            cut = f", {sequence.num_cut:,} cut" if sequence.num_cut else ""
            yield (
                f"\n{file.name}, line {line_number}: {len(sequence.input_ids):,} tokens{cut}, "
                f"{len(sequence.target_ids):,} learned\n"
                f"{show_runs(mark_example(sequence, encoder.tokenizer), in_color=in_color)}"
            )
