"""The few fields of PEFT's `adapter_config.json` that are taken, and the refusal of the rest."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.printable import printable
from src.settings import MAX_RANK
from src.weights.adapter.json_object import read_json_object

NAME = "adapter_config.json"
MAX_BYTES = 1 << 20
MIN_ALPHA, MAX_ALPHA = 1e-6, 1e6
MAX_NAMES = 1000

TAKEN = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
}
SELECTING = {"exclude_modules", "layers_to_transform", "layers_pattern"}
"""They leave modules out; which, the adapter's tensors tell as well."""
HARMLESS_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""All others of PEFT change the base model too: what was learned fits only to that."""
# Of no effect on a trained adapter that we load ourselves. Any other field, known to PEFT today
# or tomorrow, must be empty: it would change the computation.
IGNORED = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
}


@dataclass(frozen=True)
class LoraSettings:
    """Which modules an adapter changes, and how strongly."""

    lora_rank: int
    lora_alpha: float
    use_rslora: bool
    target_modules: frozenset[str] | None
    """None stands for all linear modules but the output layer."""
    tensors_tell_targets: bool
    """They are selected by a pattern, which is a stranger's program and is never run."""
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    def targets(self, module: str) -> bool:
        """Tell whether the adapter changes this linear module."""
        if self.target_modules is None:
            return module.rsplit(".", 1)[-1] != "lm_head"
        return any(suffix in self.target_modules for suffix in _suffixes(module))

    def rank_of(self, module: str) -> int:
        """Return the rank of the module's matrices."""
        key = _matching_key(self.rank_pattern, module)
        return self.lora_rank if key is None else self.rank_pattern[key]

    def scale_of(self, module: str) -> float:
        """Return the factor of the module's update."""
        key = _matching_key(self.alpha_pattern, module)
        alpha = self.lora_alpha if key is None else self.alpha_pattern[key]
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(folder: Path) -> LoraSettings:
    """Return the settings of a plain LoRA adapter."""
    config = read_json_object(folder / NAME, max_bytes=MAX_BYTES)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{NAME}: expected peft_type LORA, found {printable(config.get('peft_type'), 40)}"
        )
    for key, value in config.items():
        if key not in TAKEN | SELECTING | IGNORED and not (
            _is_empty(value) or (key, value) == ("bias", "none")
        ):
            raise UserError(
                f"{NAME}: {printable(key, 40)} is not supported, expected a plain LoRA adapter "
                f"without it, found {printable(value, 40)}"
            )
    _check_init(config.get("init_lora_weights"))
    targets = config.get("target_modules")
    is_pattern = isinstance(targets, str) and targets not in ("", "all-linear")
    return LoraSettings(
        lora_rank=_rank(config.get("r"), "r"),
        lora_alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=_flag(config.get("use_rslora", False), "use_rslora"),
        target_modules=None if is_pattern else _target_modules(targets),
        tensors_tell_targets=is_pattern or any(not _is_empty(config.get(k)) for k in SELECTING),
        rank_pattern={
            key: _rank(value, "rank_pattern")
            for key, value in _pattern(config.get("rank_pattern"), "rank_pattern").items()
        },
        alpha_pattern={
            key: _alpha(value, "alpha_pattern")
            for key, value in _pattern(config.get("alpha_pattern"), "alpha_pattern").items()
        },
    )


def _suffixes(module: str) -> Iterable[str]:
    """Yield a.b.c, b.c and c for the module a.b.c."""
    parts = module.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _matching_key(pattern: dict[str, Any], module: str) -> str | None:
    # As PEFT does: the first key in the file's order wins, not the longest.
    return next((key for key in pattern if _matches(key, module)), None)


def _matches(key: str, module: str) -> bool:
    """Tell whether the key is the module's name or its end; PEFT's point stands for anything."""
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    return all(k in (".", m) for k, m in zip(key, module[start:], strict=True))


def _is_empty(value: Any) -> bool:
    # 0 is not empty: it can be the number of a layer.
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _check_init(value: Any) -> None:
    if not isinstance(value, bool | str | None) or value not in HARMLESS_INITS:
        raise UserError(
            f"{NAME}: init_lora_weights {printable(value, 40)!r} changed the base model that this "
            "adapter was trained on, expected an adapter converted to plain LoRA (in PEFT: "
            "save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _rank(value: Any, key: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise UserError(
            f"{NAME}: {key} must be a whole number from 1 to {MAX_RANK}, "
            f"found {printable(_short(value), 40)}"
        )
    return value


def _alpha(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not MIN_ALPHA <= value <= MAX_ALPHA:
        raise UserError(
            f"{NAME}: {key} must be a number from {MIN_ALPHA} to {MAX_ALPHA:,.0f}, "
            f"found {printable(_short(value), 40)}"
        )
    return float(value)


def _short(value: Any) -> object:
    """Return a value whose text is cheap: Python refuses to print a very long number."""
    return "a huge number" if type(value) is int and abs(value) > 1 << 64 else value


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{NAME}: {key} must be true or false, found {printable(value, 40)}")
    return value


def _target_modules(value: Any) -> frozenset[str] | None:
    if value == "all-linear":
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NAMES:
        raise UserError(
            f"{NAME}: target_modules must be a list of 1 to {MAX_NAMES} module names "
            f"or 'all-linear', found {printable(_outline(value), 40)}"
        )
    return frozenset(_plain_name(name, "target_modules") for name in value)


def _outline(value: Any) -> object:
    return f"a list of {len(value)}" if isinstance(value, list) else value


def _pattern(value: Any, key: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise UserError(f"{NAME}: {key} must be an object of at most {MAX_NAMES} module names")
    return {_plain_name(name, key): entry for name, entry in value.items()}


def _plain_name(name: Any, key: str) -> str:
    # PEFT takes regular expressions here; a hostile one runs for years.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name):
        raise UserError(
            f"{NAME}: {key} must hold plain module names (letters, digits, _ and .), "
            f"found {printable(name, 40)!r}"
        )
    return name
