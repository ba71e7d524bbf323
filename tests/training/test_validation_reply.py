"""The reply to the validation prompt costs no run, and leaves no rank alone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from src.chat.prompt_encoder import open_prompt_encoder
from src.errors import UserError
from src.training.results.validation_reply import build_reply_generator
from tests.training.ranks import run_ranks


class Full:
    """A model without memory for a reply."""

    def generate(self, *_: object, **__: object) -> torch.Tensor:
        raise MemoryError


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_rank_without_memory_does_not_leave_the_others_waiting(make_settings, is_sharded: bool):
    """Under ZeRO-3 they would wait for its part of each layer."""
    settings = make_settings(validation_prompt="What?")
    generate_reply = build_reply_generator(
        settings, open_prompt_encoder(settings), Full(), torch.device("cpu"), is_sharded=is_sharded
    )
    if is_sharded:
        with pytest.raises(MemoryError):
            generate_reply()
    else:
        assert generate_reply() is None


def test_a_prompt_that_fills_the_context_is_refused(make_settings):
    with pytest.raises(UserError, match="validation_prompt: expected fewer than 256 tokens"):
        open_prompt_encoder(make_settings(validation_prompt="What? " * 90))
    open_prompt_encoder(make_settings(validation_prompt="What? " * 90, run_validation=False))


def end_early_on_one_rank() -> None:
    """Have every token end the reply of rank 1, and no wait last longer than this test."""
    from src.training import worker

    signal.alarm(60)
    build_reply_generator = worker.build_reply_generator

    def build(settings: Any, encoder: Any, *arguments: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            encoder.tokenizer.end_ids = set(range(400))
        return build_reply_generator(settings, encoder, *arguments, **options)

    worker.build_reply_generator = build


def test_ranks_whose_replies_end_apart_do_not_wait_for_each_other(make_settings, tmp_path: Path):
    """Under ZeRO-3 each layer needs all ranks, also those whose reply is at its end."""
    os.environ["ZERO_STAGE"] = "3"
    settings = make_settings(validation_prompt="What?", max_steps=1, train_batch_size=2)
    run_ranks(settings, tmp_path, num_processes=2, prepare=end_early_on_one_rank)
    assert "validation sample at step 1: " in (tmp_path / "log").read_text()
