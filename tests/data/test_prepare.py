"""What preparing the data leaves out is said."""

from pathlib import Path

from src.chat.prompt_encoder import open_prompt_encoder
from src.data.prepare import open_datasets, prepare_data
from src.data.token_file import TokenDataset


def prepare(settings, folder: Path) -> tuple[TokenDataset, list[str]]:
    said: list[str] = []
    prepare_data(settings, open_prompt_encoder(settings), folder=folder, log=said.append)
    return open_datasets(folder)[0], said


def test_a_beginning_that_is_left_out_is_counted(make_settings, tmp_path: Path):
    """Every example gets the model's own beginning: one that a user wrote would be a second."""
    rows = [{"text": "%sred"}, {"prompt": "%sWhat is it?", "completion": "<s>red"}, {"text": "<b>"}]
    datasets = []
    for beginning in ("<s>", ""):
        written = [
            {key: text.replace("%s", beginning) for key, text in row.items()} for row in rows
        ]
        settings = make_settings(written, run_validation=False)
        dataset, said = prepare(settings, tmp_path / f"data-{len(beginning)}")
        datasets.append(dataset.input_ids.tolist())
        warnings = [line for line in said if "begin with" in line]
        assert len(warnings) == bool(beginning)
        if beginning:
            assert (
                "data.jsonl: 2 examples (the first is line 1) begin with <s>, which is left out"
                in warnings[0]
            )
    assert datasets[0] == datasets[1]
