"""The sizes of a base model, read from its configuration alone."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable

PAGE_RANK = 8
"""Adapters that are served lie in pages of this rank."""
ADAPTER_SHARE = 0.15
"""Of a device's memory beside the base model, what adapters may take when they are served."""

DELTA_CHUNK = 64
"""Tokens of which a gated delta makes products of matrices."""

CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
"""What architectures call the longest sequence in their configuration."""
UNLIMITED_CONTEXT = 2048
"""For those whose positions have no limit, and whose configuration names none, such as Bloom."""

Sizes = dict[str, tuple[int, int]]
"""(out features, in features) of linear layers by name."""
Groups = tuple[Sizes, ...]
"""Linear layers of one decoder layer; those that read the same input are together."""


@dataclass(frozen=True)
class DeltaShape:
    """Sizes of the layers that have a gated delta in place of attention."""

    num_layers: int
    inputs: Sizes
    """The linear layers that read what comes into a layer."""
    output: Sizes
    num_heads: int
    key_size: int
    value_size: int

    def kept_bytes(self, itemsize: int) -> float:
        """Return what training keeps for a token: all inputs but one, and what comes of them."""
        features = sum(out for out, _ in self.inputs.values()) + self.num_heads * self.value_size
        return (features - self.num_heads) * itemsize + 12 * self.num_heads

    @property
    def again_bytes(self) -> float:
        """Return what the backward pass takes for a token in float32, as measured."""
        features = max(out for out, _ in self.inputs.values())
        within, state = DELTA_CHUNK, self.key_size * self.value_size / DELTA_CHUNK
        of_head = 10 * self.key_size + 4.5 * self.value_size + 8 * within + 2.6 * state
        return 4 * (3 * features + self.num_heads * of_head)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; the defaults are Llama's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    is_tied: bool
    """Whether embeddings and head are the same weights."""
    qkv_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up_names: tuple[str, ...] = ("gate_proj", "up_proj")
    num_experts: int = 0
    """Of a layer, in place of gate, up and down; none is adapted."""
    shared_size: int = 0
    """Inner features of an expert that all tokens share beside them; it is adapted."""
    num_chosen: int = 0
    """Experts that a token goes through."""
    num_more: int = 0
    """Parameters of experts, biases and norms, beside the two norms of each layer's states."""
    num_normed: int = 0
    """Features of a token before the norms in a layer that is no linear layer's input."""
    norms_in_float32: bool = False
    windows: tuple[int | None, ...] = ()
    """How many of the last tokens each layer sees; None is all."""
    has_score_cap: bool = False
    has_sinks: bool = False
    has_logit_cap: bool = False
    is_gated: bool = False
    """Whether queries come with a gate of what the attention gives."""
    delta: DeltaShape | None = None
    """Of some of the layers."""

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_size

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_size

    @property
    def kinds(self) -> tuple[tuple[int, Groups], ...]:
        """How many layers of a kind there are, and their groups: first those with attention."""
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = self.query_size * (1 + self.is_gated), self.key_value_size, self.key_value_size
        attention = (
            _name_sizes(self.qkv_names, qkv, hidden),
            {"o_proj": (hidden, self.query_size)},
        )
        outs, mlp = (inner, inner), ()
        if self.num_experts:
            inner = self.shared_size
            outs = inner, inner, 1
        if inner:
            gate_up = _name_sizes(self.gate_up_names, outs, hidden)
            mlp = (gate_up, {"down_proj": (hidden, inner)})
        if self.delta is None:
            return ((self.num_layers, (*attention, *mlp)),)
        num_deltas = self.delta.num_layers
        return (
            (self.num_layers - num_deltas, (*attention, *mlp)),
            (num_deltas, (self.delta.inputs, self.delta.output, *mlp)),
        )

    @property
    def layer_linears(self) -> Sizes:
        """Linear layers of one decoder layer of each kind."""
        groups = [group for _, groups in self.kinds for group in groups]
        return {name: size for group in groups for name, size in group.items()}

    @property
    def linear_parameters(self) -> int:
        """Parameters of all decoder layers' linear layers, which 4-bit models hold in 4-bit."""
        return sum(
            count * sum(out * inner for group in groups for out, inner in group.values())
            for count, groups in self.kinds
        )

    @property
    def other_parameters(self) -> int:
        """Parameters of embeddings, head, norms, biases and experts."""
        tables = (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return tables + norms + self.num_more

    def adapted(self, target_modules: str) -> Sizes:
        """Return the adapted ones of `layer_linears`; `target_modules` as users write it."""
        sizes = self.layer_linears
        return {name: sizes[name] for name in choose_targets(target_modules, sizes)}

    def adapted_kinds(self, target_modules: str) -> list[tuple[int, list[Sizes]]]:
        """Return the groups of each kind of which a layer is adapted, as they are in `kinds`."""
        adapted = self.adapted(target_modules)
        return [
            (count, [group for group in groups if adapted.keys() & group])
            for count, groups in self.kinds
        ]

    def adapter_parameters(self, target_modules: str, rank: int) -> int:
        """Return the parameters of LoRA matrices of a rank."""
        adapted = self.adapted(target_modules)
        return rank * sum(
            count * sum(sum(size) for group in groups for n, size in group.items() if n in adapted)
            for count, groups in self.kinds
        )

    def served_adapter_bytes(self, target_modules: str, rank: int, *, itemsize: int) -> int:
        """Return what an adapter takes on the device that serves it, in pages of its own."""
        numbers = 0
        for count, groups in self.adapted_kinds(target_modules):
            for group in groups:
                in_features = next(iter(group.values()))[1]
                width = in_features + sum(out for out, _ in group.values())
                numbers += count * len(group) * width
        return num_pages_of(rank) * PAGE_RANK * numbers * itemsize


def _name_sizes(names: tuple[str, ...], outs: tuple[int, ...], in_features: int) -> Sizes:
    """Return the sizes of layers, or of the one that has the outputs of them all."""
    outs = outs if len(names) > 1 else (sum(outs),)
    return {name: (out, in_features) for name, out in zip(names, outs, strict=True)}


def num_pages_of(rank: int) -> int:
    """Return how many pages an adapter of this rank takes when it is served."""
    return -(-rank // PAGE_RANK)


def choose_targets(asked: str, known: Iterable[str]) -> list[str]:
    """Return the names of the layers to adapt; `all-linear` is all of them.

    Raises UserError for a name that is not known.
    """
    if asked.strip() == "all-linear":
        return sorted(known)
    names = {name.strip() for name in asked.split(",") if name.strip()}
    unknown = sorted(names.difference(known))
    if unknown or not names:
        raise UserError(
            f"lora_target_modules: expected all-linear or some of {', '.join(sorted(known))}; "
            f"found {', '.join(unknown) or 'none'}"
        )
    return sorted(names)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the base model's config.json."""
    return json.loads((folder / "config.json").read_text())


def check_architecture(folder: Path) -> None:
    """Raise UserError for an architecture that transformers does not know as a language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = read_config(folder).get("model_type")
    if found not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"base model {folder.name}: its model_type, {printable(found, 40)!r}, is none of the "
            f"{len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} causal language models that transformers "
            f"{version('transformers')} knows"
        )


def text_config(folder: Path) -> dict[str, Any]:
    """Return what config.json says of the language model, which may be one part of a larger one."""
    config = read_config(folder)
    return {**config, **(config.get("text_config") or {})}


def vocabulary_rows(folder: Path) -> int | None:
    """Return the rows of the embedding by config.json; None where it does not tell."""
    return text_config(folder).get("vocab_size")


def max_sequence_length(folder: Path, *, known: int | None = None) -> int:
    """Return the longest sequence that the base model reads, in tokens."""
    config = text_config(folder)
    named = [config.get(name) for name in CONTEXT_NAMES]
    limits = [limit for limit in (*named, known) if isinstance(limit, int) and limit > 0]
    return min(limits, default=UNLIMITED_CONTEXT)
