"""The work that the serving benchmark gives to every way of serving: prompts, model, adapters."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

CONTEXT = 4352
NUM_ADAPTERS = 8
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class ServeWork:
    """One model on disk and what is asked of it."""

    base_model: str
    adapters: Sequence[str]
    vocab_size: int
    num_tokens: int
    """New tokens of each answer."""

    def save(self, path: Path) -> None:
        """Write it for the processes that do the work."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "ServeWork":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def prompts(self, num: int, length: int, *, seed: int) -> list[list[int]]:
        """Return random prompts, no two of which begin alike."""
        rng = random.Random(seed)
        return [[rng.randrange(10, self.vocab_size) for _ in range(length)] for _ in range(num)]


def make_work(folder: Path, num_tokens: int) -> ServeWork:
    """Make the demo's base model with a long context, and adapters for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from src.local.demo import every_docstring
    from src.local.tiny_model import make_base_model

    base_model = folder / "base-model"
    texts = [example["completion"] for example in every_docstring()]
    make_base_model(base_model, texts, context=CONTEXT)
    adapters = []
    for number in range(NUM_ADAPTERS):
        torch.manual_seed(number)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base_model),
            LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(str(folder / f"adapter-{number}"))
        adapters.append(str(folder / f"adapter-{number}"))
    vocab_size = AutoModelForCausalLM.from_pretrained(base_model).config.vocab_size
    return ServeWork(str(base_model), adapters, vocab_size, num_tokens)
