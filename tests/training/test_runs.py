"""Real runs on CPU processes: one curve, however the work is arranged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.errors import UserError
from tests.conftest import ROWS
from tests.training.processes import session_processes
from tests.training.ranks import RanksFailed
from tests.training.runs import CURVE, losses, metrics, on_processes


def test_the_arrangement_does_not_change_the_curve(train):
    """Ranks, micro-batches, accumulation and the stage of ZeRO only share out the work."""
    alone = train(**CURVE, micro_batch_size=4)
    plain = losses(alone)
    assert len(plain) == 12
    assert plain[-1] < 0.75 * plain[0]
    shared = train(**CURVE, num_processes=2, micro_batch_size=1)
    assert losses(shared) == pytest.approx(plain, abs=1e-4)
    os.environ["ZERO_STAGE"] = "3"
    shared = train(**CURVE, num_processes=2)
    assert losses(shared) == pytest.approx(plain, abs=1e-4)
    expected, found = (load_file(o / "adapter_model.safetensors") for o in (alone, shared))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_packing_does_not_change_the_curve(train):
    """One sequence holds what was a global batch, so even the order is the same."""
    rows = ROWS[:8]
    options = {**CURVE, "run_validation": False}
    unpacked = losses(train(rows=rows, **options))
    packing = {"pack_sequences": True, "chunk_size": 250}
    output = train(rows=rows, **{**options, "train_batch_size": 1}, **packing)
    manifest = json.loads((output / "training.json").read_text())
    assert manifest["data"]["sequences"] == 1
    assert losses(output) == pytest.approx(unpacked, abs=1e-4)


def test_the_curve_is_that_of_a_plain_peft_loop(train, base_dir: Path):
    """Thirty lines of torch and PEFT alone, over the same rows in the same order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from src.data.steps import shuffle_epoch

    options = {**CURVE, "train_batch_size": 4, "num_train_epochs": 5, "run_validation": False}
    ours = losses(train(**options, num_processes=2, learning_rate_schedule="constant"))

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    torch.manual_seed(42)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3,
                                  weight_decay=0.0)  # fmt: skip
    theirs = []
    for epoch in range(5):
        order = shuffle_epoch(len(ROWS), seed=42, epoch=epoch)
        for start in range(0, len(ROWS), 4):
            total, count = torch.zeros(()), 0
            for row in (ROWS[i] for i in order[start : start + 4]):
                prompt = [tokenizer.bos_token_id, *tokenizer.encode(row["prompt"] + "\n")]
                reply = [*tokenizer.encode(row["completion"]), tokenizer.eos_token_id]
                logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
                total = total + torch.nn.functional.cross_entropy(
                    logits, torch.tensor(reply), reduction="sum"
                )
                count += len(reply)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, (len(theirs) + 1) / 3)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            theirs.append(float(total) / count)
    assert len(theirs) == 30
    assert ours == pytest.approx(theirs, rel=0.01)


def test_qlora_trains_on_two_processes(train, base_dir: Path, capfd):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = train(
        **CURVE, peft_method="qlora", num_processes=2, validation_prompt=ROWS[0]["prompt"]
    )
    curve = losses(output)
    assert curve[-1] < 0.8 * curve[0]
    assert "validation sample at step 12: " in capfd.readouterr().out
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), output)


def test_zero_3_generates_a_sample_on_all_ranks(train, capfd):
    """A short one: no reply goes beyond the context."""
    os.environ["ZERO_STAGE"] = "3"
    prompt = "What? " * 80
    train(**CURVE, num_processes=2, max_steps=1, rows=ROWS[:9], validation_prompt=prompt)
    assert capfd.readouterr().out.count("validation sample at step") == 2


def test_same_seed_same_adapter(train):
    outputs = [train(**CURVE, max_steps=2, lora_dropout=0.1) for _ in range(2)]
    first, second = [(o / "adapter_model.safetensors").read_bytes() for o in outputs]
    assert first == second


def test_every_validation_example_counts_once(train):
    """Seven examples on two ranks in groups of two: the same mean as one by one on one rank."""
    options = {**CURVE, "max_steps": 1, "train_batch_size": 2}
    validation = {"num_validation_samples": 7}

    def loss_before(**values) -> float:
        output = train(rows=ROWS * 2, **options, **validation, **values)
        return next(record["eval_loss"] for record in metrics(output) if "eval_loss" in record)

    alone = loss_before()
    assert loss_before(num_processes=2, validation_batch_size=2) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_small_data_works(train, num_rows: int, capfd):
    output = train(rows=ROWS[:num_rows], max_steps=2)
    data = json.loads((output / "training.json").read_text())["data"]
    held_out = 0 if num_rows == 1 else 1
    assert data["validation"]["examples"] == held_out
    assert data["train"]["examples"] == num_rows - held_out
    assert f"the last {held_out} of {num_rows} examples" in capfd.readouterr().out


def test_other_loss_rules(train):
    """Prompt weight, wrapped chunks, text rows, a given template: all train and all come down."""
    rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in ROWS[:12]] + ROWS[12:]
    output = train(
        **CURVE,
        rows=rows,
        prompt_loss_weight=0.1,
        pack_sequences=True,
        wrap_packed_sequences=True,
        chunk_size=64,
        prompt_template="Q: {prompt}\nA: ",
        learning_rate_schedule="linear",
    )
    manifest = json.loads((output / "training.json").read_text())
    assert manifest["prompt_template"] == "Q: {prompt}\nA: "
    curve = losses(output)
    assert curve[-1] < curve[0]


def test_a_user_error_in_a_rank_is_one_sentence(launch, capfd):
    with pytest.raises(UserError, match="lora_target_modules: expected all-linear or some of"):
        launch(lora_target_modules="q_proj,nope")
    assert "Traceback" not in capfd.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(train):
    with pytest.raises(RanksFailed, match=r"FloatingPointError: step \d+: the \w+ is not finite"):
        train(**{**CURVE, "learning_rate": 1e30, "warmup_ratio": 0.0}, num_processes=2)


def test_the_death_of_the_supervisor_leaves_none(tmp_path: Path, make_settings):
    settings = on_processes(make_settings(**{**CURVE, "num_train_epochs": 500}), 2)
    settings.save(tmp_path / "asked.json")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    code = (
        "from pathlib import Path; from src.settings import TrainSettings;"
        "from src.training.supervise.supervisor import run_workers;"
        f"run_workers(TrainSettings.load(Path({str(tmp_path / 'asked.json')!r})),"
        f"Path({str(run_dir)!r}), on_metric=print)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    ranks = run_dir / "ranks" / "1.json"
    while not (ranks.is_file() and json.loads(ranks.read_text())["step"] >= 2):
        assert supervisor.poll() is None
        time.sleep(0.1)
    assert len(session_processes(str(run_dir))) >= 3
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 2
    while session_processes(str(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_processes(str(run_dir)) == []
