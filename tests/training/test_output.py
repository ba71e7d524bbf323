"""What a run leaves can be read again, whatever was asked for."""

from pathlib import Path

import pytest
import torch

from src.chat.chat_format import build_train_format
from src.chat.tokenizer import Tokenizer
from src.data.marked import Run
from src.data.report import DataReport
from src.errors import UserError
from src.settings import MAX_PROMPT_BYTES
from src.training.results.output import OutputWriter
from src.weights.adapter.manifest import read_manifest

REPORT = DataReport(0, "", 0, 0, '"a"', 1, [0, 4], [1], [[Run("<b>", False, True)]])


def test_the_longest_texts_are_read_again(make_settings, tokenizer: Tokenizer, tmp_path: Path):
    """Control characters take the most room in JSON."""
    system_prompt = "\x01" * (MAX_PROMPT_BYTES // 6 - 50)
    asked = {"prompt_template": "{prompt}", "system_prompt": system_prompt}
    with pytest.raises(UserError, match="together"):
        make_settings(**asked, validation_prompt="x" * 1000)
    settings = make_settings(**asked)
    chat_format = build_train_format(
        "tiny", tokenizer, template="{prompt}", system_prompt=system_prompt
    )
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    writer = OutputWriter(settings, chat_format, ["q_proj"], {}, {"train": {}}, REPORT, metrics)
    (tmp_path / "output").mkdir()
    tensors = {f"layers.0.q_proj.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    writer.write(tmp_path / "output", tensors, losses={})
    assert read_manifest(tmp_path / "output").system_prompt == system_prompt
    page = (tmp_path / "output" / "report.html").read_text()
    assert '<span class="learned ">&lt;b&gt;</span>' in page
    assert "0 to 3 tokens: 1" in page


def test_a_loss_that_is_no_number_is_not_written(make_settings, tokenizer, tmp_path: Path):
    """JSON knows none."""
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    chat_format = build_train_format("tiny", tokenizer)
    writer = OutputWriter(make_settings(), chat_format, [], {}, {"train": {}}, REPORT, metrics)
    (tmp_path / "output").mkdir()
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.write(tmp_path / "output", {}, losses={"train_loss": float("nan")})
