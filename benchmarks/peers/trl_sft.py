"""A peer of the benchmark: TRL's SFTTrainer with PEFT, told what to do by a JSON file."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

work = json.loads(Path(sys.argv[1]).read_text())


def written(role: str, text: str):
    """Return a text as the base model's chat template takes it, or as it is."""
    return [{"role": role, "content": text}] if work["chat"] else text + "\n" * (role == "user")


rows = [json.loads(line) for line in Path(work["data"]).read_text().splitlines()]
trainer = SFTTrainer(
    model=work["base_model"],
    train_dataset=Dataset.from_list(
        [
            {
                "prompt": written("user", row["prompt"]),
                "completion": written("assistant", row["completion"]),
            }
            for row in rows
        ]
    ),
    peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    args=SFTConfig(
        output_dir=work["output"],
        num_train_epochs=work["epochs"],
        per_device_train_batch_size=work["micro_batch_size"],
        gradient_accumulation_steps=1,
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        max_length=work["max_length"],
        packing=work["packed"],
        use_liger_kernel=work["liger"],
        gradient_checkpointing=False,
        bf16=work["bf16"],
        model_init_kwargs={"dtype": "bfloat16" if work["bf16"] else "float32"},
        use_cpu=work["use_cpu"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    ),
)
print(f"steps {trainer.args.max_steps}", flush=True)
trainer.train()
