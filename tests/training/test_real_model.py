"""A real base model learns, and what it learned is served as PEFT computes it."""

import os
from pathlib import Path

import pytest
import torch

from src.cli.docstrings import docstring_pairs
from src.serving.predictor import TextPredictor
from tests.serving.request import REQUEST
from tests.training.runs import metrics


def test_a_real_model_learns_and_is_served_as_peft_computes_it(train, smollm2_dir: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = sorted(docstring_pairs(), key=lambda pair: len(str(pair)))[:100:2]
    question = {"role": "user", "content": rows[-1]["prompt"]}  # held out
    adapter = train(
        rows=rows, base_model=str(smollm2_dir), base_model_dir=str(smollm2_dir), num_processes=2,
        max_steps=10, train_batch_size=4, learning_rate=1e-3, num_validation_samples=8,
    )  # fmt: skip
    before, after = (record["eval_loss"] for record in metrics(adapter) if "eval_loss" in record)
    assert after < 0.85 * before

    os.environ["BASE_MODEL"] = str(smollm2_dir)
    predictor = TextPredictor(str(adapter))
    recorded = {}
    request = {**REQUEST, "prompt": question["content"], "max_new_tokens": 16, "logprobs": 0}
    text = "".join(predictor.stream(request, record_metric=recorded.__setitem__))
    predictor.close()

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    output = model.generate(
        input_ids=ids, max_new_tokens=16, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    answer = output.sequences[0, ids.shape[1] :]
    assert text == tokenizer.decode(answer, skip_special_tokens=True)
    theirs = torch.cat(output.logits).log_softmax(-1).gather(1, answer[:, None])[:, 0].tolist()
    ours = [token["logprob"] for token in recorded["logprobs"][0]]
    assert ours == pytest.approx(theirs[: len(ours)], abs=1e-3)
