"""The base model in memory: one token after the other, with the adapter that a request names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from src.errors import UserError
from src.model.base_model import linear_shapes, load_base_model, training_dtype
from src.model.shape import context_length
from src.serving.adapters import AdapterSlot, LoadedAdapter, load_adapter
from src.serving.sampling import Sampler, SamplingSettings
from src.text.tokenizer import Tokenizer
from src.weights.adapter import AdapterFile


class Engine:
    """Owns the device; its base weights are never written to."""

    def __init__(self, folder: Path, *, known_context: int | None = None, in_4bit: bool = False):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = training_dtype(self.device)
        self.tokenizer = Tokenizer(folder)
        self.context = context_length(folder, known=known_context)
        self.model = load_base_model(folder, dtype=self.dtype, device=self.device, in_4bit=in_4bit)
        self.model.eval()
        self.linear_shapes = linear_shapes(self.model)
        self._slot = AdapterSlot(self.model)

    def load_adapter(self, file: AdapterFile) -> LoadedAdapter:
        """Bring a checked adapter onto the device."""
        return load_adapter(file, dtype=self.dtype, device=self.device)

    def generate(
        self,
        prompt_ids: Sequence[int],
        settings: SamplingSettings,
        *,
        adapter: LoadedAdapter | None,
    ) -> Iterator[int]:
        """Yield token ids until the model ends its turn or `max_new_tokens` are out.

        The token that ends a turn is yielded too. Raises UserError for a prompt that fills the
        context.
        """
        room = self.context - len(prompt_ids)
        if room < 1:
            raise UserError(
                f"prompt: expected fewer than {self.context:,} tokens, the base model's context; "
                f"found {len(prompt_ids):,}"
            )
        sampler = Sampler(
            settings,
            prompt_ids=prompt_ids,
            end_ids=self.tokenizer.end_ids,
            vocab_size=self.model.config.vocab_size,
            device=self.device,
        )
        cache = DynamicCache(config=self.model.config)
        input_ids = torch.tensor([list(prompt_ids)], device=self.device)
        for _ in range(min(settings.max_new_tokens, room)):
            token = sampler.draw(self._logits(input_ids, cache, adapter))
            yield token
            if token in self.tokenizer.end_ids:
                return
            input_ids = torch.tensor([[token]], device=self.device)

    @torch.inference_mode()
    def _logits(
        self, input_ids: torch.Tensor, cache: DynamicCache, adapter: LoadedAdapter | None
    ) -> torch.Tensor:
        """Return the scores after the last token, with this adapter and no other."""
        self._slot.activate(adapter)
        try:
            output = self.model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            self._slot.activate(None)
        return output.logits[0, -1]
