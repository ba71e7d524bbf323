"""The base model in memory and the thread that owns it: requests go in, tokens come out."""

import os
import queue
import threading
import time
from functools import partial
from pathlib import Path

import torch

from src.chat.tokenizer import Tokenizer
from src.errors import RankLost, UserError
from src.gpus import find_device
from src.graphs.capture import Capture, cuda_capture
from src.graphs.step_graphs import CudaGraphs
from src.model.base_model import linear_shapes, load_base_model
from src.model.core.compiled import eager_reason, keep_code_in
from src.model.core.float8 import check_device
from src.model.partition import build_empty
from src.model.precision import choose_dtype
from src.model.shape import check_architecture, max_sequence_length, read_config
from src.serving.engine.batch import Batch
from src.serving.engine.request import Request, Sequence
from src.serving.engine.runners import RunnerOptions, build_runner
from src.serving.engine.scheduler import Scheduler
from src.serving.engine.totals import Totals
from src.serving.lora.weights import LoadedAdapter, load_adapter
from src.serving.native.library import find_library
from src.serving.parallel.followers import Followers, Job
from src.serving.parallel.size import choose_partition
from src.serving.sampling import Sampler
from src.weights.adapter.adapter import AdapterFile
from src.weights.base_model.check import is_bitsandbytes_4bit

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
        dtype: str | None = None,
        in_float8: bool = False,
        compile: bool | None = None,
        code_folder: Path | None = None,
        max_slots: int = MAX_SLOTS,
        max_adapters: int = MAX_ADAPTERS,
        max_context: int | None = None,
        cache_bytes: float | None = None,
        tensor_parallel: int | None = None,
        can_speculate: bool | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Load a base model; `capture` records its steps, by default as CUDA graphs on a GPU.

        Without a `dtype`, it computes in what the device is fastest in. `compile` is `COMPILE`;
        the compiled code is kept in its folder. `cache_bytes` are those of the KV cache, by default
        what is free; `tensor_parallel` is `TENSOR_PARALLEL`. Raises UserError where what is asked
        for cannot be, or where there is no room.
        """
        self.device = find_device()
        # It builds a plan for each new length of a prompt, while all answers wait.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.dtype = choose_dtype(self.device, dtype)
        check_architecture(folder)
        if in_float8 and is_bitsandbytes_4bit(read_config(folder)):
            print("BASE_WEIGHTS=fp8 without effect on 4-bit weights", flush=True)
            in_float8 = False
        if in_float8:
            check_device(self.device)
        self.tokenizer = Tokenizer(folder)
        max_seq_len = max_sequence_length(folder, known=known_max_seq_len)
        if max_context is not None and max_context > max_seq_len:
            print(f"MAX_CONTEXT without effect: the model's context is {max_seq_len:,}", flush=True)
        partition = choose_partition(
            folder, tensor_parallel, device=self.device, dtype=self.dtype, in_4bit=in_4bit
        )
        if capture is None and self.device.type == "cuda" and partition is None:
            capture = cuda_capture()
        options = RunnerOptions(
            max_slots=max_slots,
            max_adapters=max_adapters,
            max_seq_len=min(max_seq_len, max_context or max_seq_len),
            cache_bytes=cache_bytes,
            is_captured=bool(capture),
            in_float8=in_float8,
            is_compiled=self._prepare_compiler(compile, code_folder),
            library=None if in_float8 or partition else find_library(self.device, compile),
        )
        self._inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._followers: Followers | None = None
        if partition is not None:
            code_folder = None if compile is False else code_folder
            is_on_gpu = self.device.type == "cuda"
            job = Job(folder, partition, self.dtype, options, code_folder, is_on_gpu)
            self._followers = Followers(job, on_lost=partial(self._inbox.put, None))
        try:
            started = time.monotonic()
            self.model = load_base_model(
                folder, dtype=self.dtype, device=self.device, in_4bit=in_4bit, partition=partition
            )
            self.model.eval()
            self.load_seconds = time.monotonic() - started
            self.linear_shapes = linear_shapes(build_empty(folder) if partition else self.model)
            self.vocab_size = len(self.model.get_output_embeddings().weight)
            self.tokenizer.check_rows(self.model.get_input_embeddings().num_embeddings)
            with torch.inference_mode():
                self.runner, self.max_seq_len = build_runner(self.model, options, self._followers)
                self.num_slots = max_slots
                self.is_captured = capture is not None and self.runner.is_static
                batch = self._make_batch(capture)
        except BaseException:
            self._end_followers()
            raise
        self.totals = Totals()
        if can_speculate is None:
            # Speculation takes the place of captured steps and of overlapping them.
            can_speculate = not self.is_captured
        self.scheduler = Scheduler(
            batch,
            self.totals,
            end_ids=self.tokenizer.end_ids,
            can_overlap=self.is_captured,
            can_speculate=can_speculate and self.runner.can_speculate,
        )
        self._is_closed, self._closing = False, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _make_batch(self, capture: Capture | None) -> Batch:
        return Batch(
            self.runner,
            Sampler(
                num_slots=self.num_slots,
                vocab_size=self.vocab_size,
                end_ids=self.tokenizer.end_ids,
                device=self.device,
                unused_ids=self.tokenizer.unused_rows(self.vocab_size),
            ),
            num_slots=self.num_slots,
            device=self.device,
            graphs=CudaGraphs(capture) if capture and self.is_captured else None,
        )

    def _end_followers(self) -> None:
        if self._followers is not None:
            self._followers.close()

    def _prepare_compiler(self, asked: bool | None, code_folder: Path | None) -> bool:
        """Return whether layers are to be compiled; say why not where that is a surprise."""
        reason = eager_reason(asked, on_gpu=self.device.type == "cuda")
        if reason:
            print(f"the layers are not compiled: {reason}", flush=True)
        if asked is not False and code_folder is not None:
            keep_code_in(code_folder)
        return reason is None

    def load_adapter(self, file: AdapterFile, *, key: str) -> LoadedAdapter:
        """Bring a checked adapter into memory."""
        return load_adapter(file, dtype=self.dtype, key=key)

    def submit(self, request: Request) -> Sequence:
        """Take a request; what comes of it is handed out on the engine's thread.

        Raises UserError for a prompt that fills the context.
        """
        room = self.max_seq_len - len(request.prompt_ids)
        if room < 1:
            raise UserError(
                f"prompt: expected fewer than {self.max_seq_len:,} tokens, the context "
                f"that is served; found {len(request.prompt_ids):,}"
            )
        sequence = Sequence(request, max_tokens=min(request.sampling.max_new_tokens, room))
        with self._closing:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._inbox.put(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a request; its slot is free after the step that runs."""
        sequence.is_canceled = True
        self._inbox.put(None)

    def check_alive(self) -> None:
        """Raise an error where no events will come any more."""
        if not self._thread.is_alive():
            raise RuntimeError("the engine has stopped")

    def close(self) -> None:
        """End all requests and the thread."""
        self._is_closed = True
        self._inbox.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        reason = RuntimeError("the engine is closed")
        try:
            while not self._is_closed:
                self._take_new()
                try:
                    if self._followers is not None:
                        self._followers.check()
                    self.scheduler.step()
                except Exception as error:
                    print(f"the engine failed: {error}", flush=True)
                    if isinstance(error, torch.AcceleratorError):
                        # Nothing succeeds on this device before the process ends. An error would
                        # end this thread alone and leave a server that looks ready; when its
                        # worker is gone, Cog reports it as unhealthy.
                        os._exit(1)
                    self.scheduler.fail(error)
                    if isinstance(error, RankLost):
                        reason = error
                        break
        finally:
            with self._closing:
                self._is_closed = True
            # What was submitted until then is in the inbox.
            while not self._inbox.empty():
                self._take_new()
            self.scheduler.fail(reason)
            self._end_followers()

    def _take_new(self) -> None:
        can_wait = self.scheduler.is_idle and not self._is_closed
        while True:
            try:
                sequence = self._inbox.get(block=can_wait)
            except queue.Empty:
                return
            can_wait = False
            if sequence is not None:
                self.scheduler.add(sequence)
