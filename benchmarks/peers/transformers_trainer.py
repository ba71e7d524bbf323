"""A peer of the benchmark: the plain Transformers Trainer with PEFT, padding to the longest."""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

work = json.loads(Path(sys.argv[1]).read_text())
tokenizer = AutoTokenizer.from_pretrained(work["base_model"])
tokenizer.pad_token = tokenizer.eos_token
examples = []
for line in Path(work["data"]).read_text().splitlines():
    row = json.loads(line)
    if work["chat"]:
        dialogue = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(dialogue, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(text)
    else:
        prompt = [tokenizer.bos_token_id, *tokenizer.encode(row["prompt"] + "\n")]
    reply = [*tokenizer.encode(row["completion"]), tokenizer.eos_token_id]
    ids = (prompt + reply)[: work["max_length"]]
    examples.append({"input_ids": ids, "labels": ([-100] * len(prompt) + reply)[: len(ids)]})
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(
        work["base_model"], dtype=torch.bfloat16 if work["bf16"] else torch.float32
    ),
    LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
)
Trainer(
    model=model,
    train_dataset=examples,
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    args=TrainingArguments(
        output_dir=work["output"],
        num_train_epochs=work["epochs"],
        per_device_train_batch_size=work["micro_batch_size"],
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        bf16=work["bf16"],
        use_cpu=work["use_cpu"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    ),
).train()
