"""What a plan tells is what is done."""

import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from src.cli.client import main
from src.data.prepare import build_step_plan
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import TokenizedExample
from src.environment import TrainEnvironment
from src.errors import UserError
from src.training.plan import decide, room
from src.training.plan.decide import make_plan
from src.training.plan.dry_run import plan_training
from src.training.plan.fit import FILL
from src.training.plan.plan import TrainingPlan
from src.training.plan.preview import preview_examples
from src.training.plan.resources import Resources
from src.training.run import run_training
from tests.conftest import ROWS

LLAMA_70B_CONFIG = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}

FLOAT8 = TrainEnvironment(in_float8=True)


def inputs(write_rows, **values) -> dict[str, object]:
    return {"train_data": write_rows(ROWS), **values}


def test_the_plan_is_the_run(base_dir: Path, write_rows, tmp_path: Path, capfd):
    """`--plan` prints what the run prints, and trains nothing."""
    os.environ["BASE_MODEL"] = str(base_dir)
    data = str(write_rows(ROWS))
    options = ["-i", "num_train_epochs=2", "-i", "train_batch_size=6", "-i", "max_steps=3"]
    assert main(["train", data, *options, "--plan"]) == 0
    planned_lines = [
        line for line in capfd.readouterr().out.splitlines() if line.startswith("plan:")
    ]
    assert len(planned_lines) == 6
    weights = tmp_path / "weights.tar"
    assert main(["train", data, *options, "-o", str(weights)]) == 0
    out = capfd.readouterr().out.splitlines()
    told = [line for line in out if line.startswith("plan:")]
    assert told[:4] == planned_lines[:4]
    (steps,) = re.findall(r"plan: (\d+) steps \(2 epochs x 4, 8 without max_steps\)", told[2])
    assert [line for line in out if line.startswith("step ")][-1].startswith(
        f"step {steps}/{steps}"
    )
    assert "train_batch_size 6 = 2 CPU processes x micro-batch 3 x accumulation 1" in told[2]
    (parameters,) = re.findall(r"([\d,]+) trainable parameters", told[3])
    assert int(parameters.replace(",", "")) > 1000
    # The memory: told before, and measured at the end. Of so small a model it is mostly libraries.
    (measured, planned) = re.findall(
        r"memory: (\d+) MB at the peak of a CPU process, (\d+) MB planned", "\n".join(out)
    )[0]
    assert 2 / 3 < float(planned) / float(measured) < 3 / 2


def test_the_longest_example_is_named(base_dir: Path, write_rows):
    os.environ["BASE_MODEL"] = str(base_dir)
    rows = [*ROWS, {"prompt": "Count", "completion": "one two three " * 9}, *ROWS[:3]]
    lines = plan_training({"train_data": write_rows(rows), "run_validation": False})
    assert any(f"(data.jsonl, line {len(ROWS) + 1})" in line for line in lines)


def test_processes_without_room_for_their_libraries_are_refused_at_once(base_dir, write_rows):
    os.environ |= {"BASE_MODEL": str(base_dir), "DEVICE_MEMORY_GB": "0.1"}
    for start in (plan_training, partial(run_training, record_metric=print)):
        with pytest.raises(
            UserError, match=r"520 MB each, and there are 100 MB; expected a larger"
        ):
            start(inputs(write_rows))


@pytest.mark.parametrize(
    ("name", "expected", "found"),
    [
        *(("DEVICE_MEMORY_GB", "a number above 0", x) for x in ("0", "-1", "much", "inf", "nan")),
        *(("FROZEN_SECONDS", "a number above 0", x) for x in ("", "0", "a minute")),
        *(("NUM_PROCESSES", "a number of at least 1", x) for x in ("0", "-1", "two", "1.5", "²")),
        *(("ZERO_STAGE", "2 or 3", x) for x in ("1", "9", "two")),
        *(("COMPILE", "0 or 1", x) for x in ("yes", "2")),
        *(("DTYPE", "float32, bfloat16 or float16", x) for x in ("bf16", "Float32", "1")),
        ("CHECKPOINT_DIR", "a folder that can be written to", "/proc/checkpoints"),
    ],
)
@pytest.mark.parametrize("start", [plan_training, partial(run_training, record_metric=print)])
def test_a_switch_that_cannot_be_meant_is_refused_before_any_work(
    start, name: str, expected: str, found: str, base_dir: Path, write_rows
):
    os.environ |= {"BASE_MODEL": str(base_dir), name: found}
    with pytest.raises(UserError, match=f"^{name}: expected {expected}[;,] found '?{found}"):
        start(inputs(write_rows))


@pytest.mark.parametrize(
    ("model_type", "stage", "told"),
    [
        ("llama", None, "compiling the layer"),
        ("llama", 3, None),
        ("gpt_neox", None, None),
    ],
)
def test_only_layers_of_ours_are_compiled(
    plan_on, monkeypatch: pytest.MonkeyPatch, model_type: str, stage: int | None, told: str | None
):
    """And nothing is told of others, whether a compiler is there or not."""
    for reason, sentence in ((None, told), ("no compiler", told and "not compiled: no compiler")):
        monkeypatch.setattr(decide, "eager_reason", lambda *_, reason=reason, **__: reason)
        plan = plan_on(num_gpus=8, gigabytes=400, zero_stage=stage, model_type=model_type)
        assert (plan.eager_reason is None) == (told is not None and reason is None)
        line = plan.lines()[2]
        assert sentence in line if sentence else "compil" not in line


def test_a_cpu_compiles_the_layers_of_a_long_run(plan_on, monkeypatch: pytest.MonkeyPatch):
    """In 16 bits with tiles, where products take less of the time than what is between them."""

    def is_compiled(*, num_steps: int = 2, **values) -> bool:
        plan = plan_on(
            num_gpus=2,
            gigabytes=900,
            device="cpu",
            num_train_epochs=1,
            max_steps=num_steps,
            **values,
        )
        return plan.eager_reason is None

    work = plan_on(num_gpus=1, gigabytes=900).work
    num_parameters = work.shape.linear_parameters + work.shape.other_parameters
    monkeypatch.setattr(decide, "LONG_RUN", 16 * 2048 / 2 * num_parameters)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert is_compiled()
    assert not is_compiled(num_steps=1)
    assert not is_compiled(dtype=torch.float32)
    assert not is_compiled(environment=TrainEnvironment(compile=False))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not is_compiled()


def test_the_plan_refuses_what_the_run_would_refuse(base_dir: Path, write_rows):
    os.environ["BASE_MODEL"] = str(base_dir)
    with pytest.raises(UserError, match=r"lora_target_modules: .* some of .*q_proj.*; found nope"):
        plan_training(inputs(write_rows, lora_target_modules="q_proj,nope"))
    with pytest.raises(UserError, match="resume_from: the server has no CHECKPOINT_DIR"):
        plan_training(inputs(write_rows, resume_from="auto"))


@pytest.fixture
def plan_on(make_settings, tmp_path: Path):
    """Return a function that plans a run of Llama 2 70B on GPUs that are not here."""
    example = TokenizedExample([5] * 2048, [5] * 2048, [True] * 2048)
    write_tokens(enumerate([example] * 16, start=1), tmp_path / "data")
    data = TokenDataset(tmp_path / "data", name="data.jsonl")

    def plan(
        *, num_gpus: int, gigabytes: float, libraries: float = 0.0, zero_stage: int | None = None,
        model_type: str = "llama", device: str = "cuda", dtype: torch.dtype = torch.bfloat16,
        **values,
    ) -> TrainingPlan:  # fmt: skip
        config = {**LLAMA_70B_CONFIG, "model_type": model_type}
        (tmp_path / "config.json").write_text(json.dumps(config))
        settings = make_settings(train_batch_size=8, base_model_dir=str(tmp_path), **values)
        steps = build_step_plan(data, settings, max_seq_len=4096, num_devices=num_gpus)
        free = gigabytes * 1e9
        resources = Resources(
            device=torch.device(device),
            available=free,
            libraries=libraries,
            alone=free,
            dtype=dtype,
        )
        return make_plan(settings, data, steps, resources, zero_stage=zero_stage)

    return plan


def test_70b_on_eight_gpus_shares_the_weights(plan_on):
    plan = plan_on(num_gpus=8, gigabytes=80)
    assert plan.zero_stage == 3
    assert plan.num_recomputed == 80
    assert plan.peak is not None
    assert plan.peak < 80e9
    assert "= 8 GPUs x micro-batch 1 x accumulation 1" in plan.lines()[1]


def test_weights_are_shared_where_the_libraries_leave_no_room_for_them(plan_on):
    assert plan_on(num_gpus=8, gigabytes=150).zero_stage == 2
    assert plan_on(num_gpus=8, gigabytes=150, libraries=8e9).zero_stage == 3


def test_gated_delta_layers_are_not_shared_out(plan_on):
    assert plan_on(num_gpus=8, gigabytes=300, model_type="qwen3_5_text").zero_stage == 2
    with pytest.raises(
        UserError, match=r"ZERO_STAGE: expected 2 .* gated delta layers, .* found 3"
    ):
        plan_on(num_gpus=8, gigabytes=300, model_type="qwen3_5_text", zero_stage=3)
    with pytest.raises(UserError, match="the training takes at least"):
        plan_on(num_gpus=8, gigabytes=90, model_type="qwen3_5_text")


def test_70b_in_4_bit_on_one_gpu(plan_on):
    plan = plan_on(num_gpus=1, gigabytes=64, peft_method="qlora")
    assert plan.zero_stage == 2
    assert plan.max_tokens == 2048
    assert 0 < plan.num_recomputed < 40
    assert plan.peak is not None
    assert plan.peak < 64e9


def test_what_cublas_and_the_allocator_take_of_a_gpu_counts(plan_on):
    on_one = partial(plan_on, num_gpus=1, gigabytes=64, peft_method="qlora")
    bare, plan = on_one(), on_one(libraries=5e9)
    assert bare.peak is not None
    assert plan.peak is not None
    assert plan.num_recomputed > bare.num_recomputed  # room for them is made
    assert plan.peak <= 5e9 + FILL * 59e9
    (line,) = (line for line in plan.lines() if "plan: memory" in line)
    assert "of 64.0 GB free, 5.1 GB of it for the allocator's gaps (" in line
    assert "libraries 5.0 GB" in line


def test_a_gpu_without_float8_is_refused_where_weights_would_be_in_it(
    plan_on, monkeypatch: pytest.MonkeyPatch
):
    def refuse(device: torch.device) -> None:
        raise UserError(f"a {device} of 2020")

    monkeypatch.setattr(room, "check_device", refuse)
    on_one = partial(plan_on, num_gpus=1, gigabytes=200, environment=FLOAT8)
    with pytest.raises(UserError, match="a cuda of 2020"):
        on_one()
    assert on_one(peft_method="qlora").base_weights == "4-bit"


def test_70b_in_16_bit_on_one_gpu_is_refused(plan_on):
    with pytest.raises(
        UserError, match=r"takes at least 1\d\d\.\d GB, and a GPU has 80\.0 GB .* peft_method=qlora"
    ):
        plan_on(num_gpus=1, gigabytes=80)


def test_a_rank_that_serving_would_refuse_is_refused(plan_on):
    plan_on(num_gpus=1, gigabytes=80, peft_method="qlora", lora_rank=128)
    with pytest.raises(UserError, match=r"lora_rank: .* 6\.\d GB .*, found rank 1024 of 39\.3 GB"):
        plan_on(num_gpus=1, gigabytes=80, peft_method="qlora", lora_rank=1024)


@pytest.fixture
def plan_on_cpus(make_settings, base_dir: Path, tmp_path: Path):
    """Return a function that plans a run of the tiny model on processes of so many bytes."""
    example = TokenizedExample([5] * 512, [5] * 512, [True] * 512)
    write_tokens(enumerate([example] * 8, start=1), tmp_path / "data")
    data = TokenDataset(tmp_path / "data", name="data.jsonl")

    def plan(
        available: float,
        *,
        alone: float | None = None,
        dtype: torch.dtype = torch.float32,
        **values,
    ) -> TrainingPlan:
        settings = make_settings(train_batch_size=4, base_model_dir=str(base_dir), **values)
        steps = build_step_plan(data, settings, max_seq_len=512, num_devices=2)
        resources = Resources(
            device=torch.device("cpu"),
            available=available,
            libraries=500e6,
            alone=alone or available,
            dtype=dtype,
        )
        return make_plan(settings, data, steps, resources)

    return plan


def test_a_plan_that_does_not_fit_does_not_start(plan_on_cpus):
    """Libraries and the allocator's gaps count, and what is told to fit does."""
    roomy = plan_on_cpus(10e9)
    assert roomy.peak is not None
    found = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        available = 500e6 + share * (roomy.peak - 500e6)
        try:
            found.append(plan_on_cpus(available).peak <= available)
        except UserError as error:
            found.append(re.sub(r"\d[\d.,]*", "N", str(error)))
    assert found[0] == (
        "the training takes at least N MB, and a CPU process has N MB of free memory; expected "
        "examples (or a chunk_size) of at most N tokens (N MB), or a smaller base model or more "
        "memory"
    )
    assert found[-1] is True


def test_products_that_are_compiled_in_16_bits_count(plan_on_cpus):
    """As many as a run has steps, up to what is kept of them."""
    peaks = [
        plan_on_cpus(10e9, dtype=torch.bfloat16, num_train_epochs=n, max_steps=n).peak
        for n in (1, 5, 20, 40)
    ]
    assert [peak - peaks[0] for peak in peaks[1:]] == pytest.approx([4 * 17e6, *[19 * 17e6] * 2])


def test_one_process_is_proposed_where_it_has_the_room(plan_on_cpus):
    for alone, is_proposed in ((10e9, True), (504e6, False)):
        with pytest.raises(UserError) as caught:
            plan_on_cpus(502e6, alone=alone)
        assert ("NUM_PROCESSES=1" in str(caught.value)) == is_proposed
    plan_on_cpus(10e9)


def test_examples_are_shown_as_the_model_reads_them(base_dir: Path, write_rows):
    os.environ["BASE_MODEL"] = str(base_dir)
    asked = {"train_data": write_rows([*ROWS[:2], {"text": "red"}]), "chunk_size": 8}
    shown = [*preview_examples({**asked, "pack_sequences": True}, 2, in_color=False)]
    assert shown[0] == "⟨control token⟩ ⟦learned⟧"
    assert shown[1].startswith("\ndata.jsonl, line 1: 8 tokens, ")
    assert " cut, " in shown[1]
    assert len(shown) == 3
    shown = [*preview_examples(asked, 9, in_color=False)]
    assert shown[2].endswith("\n⟨<s>⟩What is the colour of number 1?\n⟦It is green.⟨</s>⟩⟧")
    assert shown[3] == "\ndata.jsonl, line 3: 4 tokens, 3 learned\n⟨<s>⟩⟦red⟨</s>⟩⟧"
