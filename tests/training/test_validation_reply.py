"""The reply to the validation prompt costs no run, and leaves no rank alone."""

import pytest
import torch

from src.chat.prompt_encoder import open_prompt_encoder
from src.errors import UserError
from src.training.results.validation_reply import build_reply_generator


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
