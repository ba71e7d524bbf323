"""The base model in memory and the thread that owns it: requests go in, tokens come out."""

import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from src.chat.tokenizer import Tokenizer
from src.errors import UserError
from src.model.base_model import linear_shapes, load_base_model, training_dtype
from src.model.shape import max_sequence_length
from src.serving.engine.batch import Batch
from src.serving.engine.kv_budget import adapter_bytes_that_fit, num_slots_that_fit
from src.serving.engine.model_runner import LlamaRunner, ModelRunner
from src.serving.engine.request import Event, Finished, Sequence
from src.serving.engine.scheduler import Scheduler
from src.serving.engine.totals import Totals
from src.serving.lora.weights import LoadedAdapter, load_adapter
from src.serving.model.llama import LlamaModel, refusal
from src.serving.model.transformers_model import TransformersRunner
from src.serving.sampling.params import SamplingParams
from src.serving.sampling.sampler import Sampler
from src.weights.adapter.adapter import AdapterFile
from src.weights.cache.cache_use import CacheUse

MAX_SLOTS = 32
MAX_ADAPTERS = 16


class Engine:
    """Owns the device; its base weights are never written to."""

    def __init__(
        self,
        folder: Path,
        *,
        known_max_seq_len: int | None = None,
        in_4bit: bool = False,
        max_slots: int = MAX_SLOTS,
        max_adapters: int = MAX_ADAPTERS,
        looks_ahead: bool | None = None,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # It builds a plan for each new length of a prompt, while all answers wait.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.dtype = training_dtype(self.device)
        self.tokenizer = Tokenizer(folder)
        self.max_seq_len = max_sequence_length(folder, known=known_max_seq_len)
        started = time.monotonic()
        self.model = load_base_model(folder, dtype=self.dtype, device=self.device, in_4bit=in_4bit)
        self.model.eval()
        self.load_seconds = time.monotonic() - started
        self.linear_shapes = linear_shapes(self.model)
        self.vocab_size: int = self.model.config.vocab_size
        self.totals = Totals()
        with torch.inference_mode():
            self._scheduler = self._build(max_slots, max_adapters, looks_ahead)
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _build(self, max_slots: int, max_adapters: int, looks_ahead: bool | None) -> Scheduler:
        forward: ModelRunner
        reason = refusal(self.model)
        if reason is None:
            decoder = LlamaModel(self.model)
            if self.device.type == "cuda":
                # Weights that became parts of wider ones have left gaps.
                torch.cuda.empty_cache()
            adapter_bytes = adapter_bytes_that_fit(self.device)
            self.num_slots = num_slots_that_fit(
                decoder.bytes_per_token * (self.max_seq_len + 1), max_slots, self.device
            )
            forward = LlamaRunner(
                decoder,
                num_slots=self.num_slots,
                max_seq_len=self.max_seq_len,
                num_adapters=max_adapters,
                adapter_bytes=adapter_bytes,
            )
        else:
            print(f"this base model runs in transformers, one row at a time: {reason}", flush=True)
            self.num_slots = max_slots
            forward = TransformersRunner(self.model)
        self._forward = forward
        sampler = Sampler(
            num_slots=self.num_slots,
            vocab_size=self.vocab_size,
            end_ids=self.tokenizer.end_ids,
            device=self.device,
        )
        steps = Batch(
            forward,
            sampler,
            num_slots=self.num_slots,
            max_seq_len=self.max_seq_len,
            device=self.device,
        )
        if looks_ahead is None:
            # Looking ahead takes the place of captured steps and of overlapping them.
            looks_ahead = not self.is_captured
        return Scheduler(
            forward,
            steps,
            self.totals,
            num_slots=self.num_slots,
            end_ids=self.tokenizer.end_ids,
            can_overlap=self.is_captured,
            looks_ahead=looks_ahead and forward.is_static,
        )

    def load_adapter(self, file: AdapterFile, *, key: str | None = None) -> LoadedAdapter:
        """Bring a checked adapter into memory."""
        return load_adapter(file, dtype=self.dtype, key=key)

    def submit(self, request: Sequence) -> None:
        """Take a request; what comes of it is delivered on the engine's thread.

        Raises UserError for a prompt that fills the context.
        """
        room = self.max_seq_len - len(request.prompt_ids)
        if room < 1:
            raise UserError(
                f"prompt: expected fewer than {self.max_seq_len:,} tokens, the base model's "
                f"context; found {len(request.prompt_ids):,}"
            )
        request.max_tokens = min(request.settings.max_new_tokens, room)
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        self._inbox.put(request)

    def cancel(self, request: Sequence) -> None:
        """End a request; its slot is free after the step that runs."""
        request.is_canceled = True
        self._inbox.put(None)

    def generate(
        self,
        prompt_ids: list[int],
        settings: SamplingParams,
        *,
        adapter: LoadedAdapter | None,
    ) -> Iterator[int]:
        """Yield token ids until the model ends its turn or `max_new_tokens` are out.

        The token that ends a turn is yielded too. Raises UserError for a prompt that fills the
        context.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = Sequence(prompt_ids, settings, events.put, adapter=adapter)
        self.submit(request)
        try:
            while not isinstance(event := events.get(), Finished):
                yield event.id
            if event.error is not None:
                raise event.error
        finally:
            self.cancel(request)

    @property
    def is_captured(self) -> bool:
        """Whether steps are captured once for each number of rows and length."""
        return self._forward.is_static and self.device.type == "cuda"

    @property
    def num_running(self) -> int:
        """How many answers have a slot."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """How many answers wait for a slot."""
        return self._scheduler.num_waiting

    def adapter_use(self) -> CacheUse:
        """Return how well the adapters on the device serve."""
        return self._forward.adapter_use()

    def check_alive(self) -> None:
        """Raise an error where nothing will be delivered any more."""
        if not self._thread.is_alive():
            raise RuntimeError("the engine has stopped")

    def close(self) -> None:
        """End all requests and the thread."""
        self._is_closed = True
        self._inbox.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._take_new()
                try:
                    self._scheduler.step()
                except Exception as error:
                    print(f"the engine failed: {error}", flush=True)
                    if "CUDA error" in str(error):
                        # No work on this device succeeds any more; Cog starts a new worker.
                        os._exit(1)
                    self._scheduler.fail(error)
        finally:
            self._is_closed = True
            self._scheduler.fail(RuntimeError("the engine is closed"))

    def _take_new(self) -> None:
        is_idle = self._scheduler.is_idle
        while True:
            try:
                request = self._inbox.get(block=is_idle)
            except queue.Empty:
                return
            is_idle = False
            if request is not None:
                self._scheduler.add(request)
