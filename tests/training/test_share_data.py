"""The main rank prepares the data for all ranks, before they meet."""

import threading
from pathlib import Path

import pytest

from src.chat.prompt_encoder import open_prompt_encoder
from src.errors import UserError
from src.training.machines.share import share_data


def test_ranks_wait_for_the_data_without_a_time_limit(make_settings, tmp_path: Path):
    """No collective is open meanwhile, which would end by its own time-out."""
    settings = make_settings()
    encoder = open_prompt_encoder(settings)
    shared: dict[int, list[int]] = {}

    def share(rank: int) -> None:
        datasets = share_data(
            settings, encoder, tmp_path / "data", lambda line: None, is_main=rank == 0
        )
        shared[rank] = [dataset.counts.examples for dataset in datasets]

    waiting = threading.Thread(target=share, args=(1,), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert not shared
    share(0)
    waiting.join(10)
    assert shared[0] == shared[1] == [20, 4]


def test_data_that_cannot_be_prepared_is_not_there(make_settings, tmp_path: Path):
    row = {"prompt": "word " * 300, "completion": "x"}
    settings = make_settings([row], pack_sequences=True, chunk_size=1, run_validation=False)
    with pytest.raises(UserError, match="nothing is left to learn"):
        share_data(
            settings,
            open_prompt_encoder(settings),
            tmp_path / "data",
            lambda line: None,
            is_main=True,
        )
    assert list(tmp_path.glob("*data*")) == [tmp_path / "data.jsonl"]
