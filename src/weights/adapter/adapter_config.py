"""The few fields of PEFT's `adapter_config.json` that are taken, and the refusal of the rest."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from src.errors import UserError
from src.files.printable import printable
from src.settings import MAX_RANK
from src.weights.adapter.json_object import read_json_object
from src.weights.archive.other_files import AS_BASE_MODEL

NAME = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_NAMES = 1000

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
    "revision",
    "inference_mode",
    "lora_dropout",
    "fan_in_fan_out",  # how the base model's layer holds its weight, which the layer knows itself
    "megatron_core",
    "qalora_group_size",
}

Rank = Annotated[int, Meta(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Meta(ge=1e-6, le=1e6)]
# PEFT takes regular expressions for names; a hostile one runs for years.
ModuleName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.]{1,200}\Z")]
ModuleNames = Annotated[list[ModuleName], Meta(min_length=1, max_length=MAX_NAMES)]


_NAMES = "plain module names (letters, digits, _ and .)"
_RANK, _ALPHA = f"a whole number from 1 to {MAX_RANK:,}", "a number from 0.000001 to 1,000,000"
EXPECTED = {
    "peft_type": "LORA",
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "use_rslora": "true or false",
    "target_modules": f"'all-linear' or a list of 1 to {MAX_NAMES:,} {_NAMES}",
    "rank_pattern": f"an object of at most {MAX_NAMES:,} {_NAMES}, each with {_RANK}",
    "alpha_pattern": f"an object of at most {MAX_NAMES:,} {_NAMES}, each with {_ALPHA}",
    "init_lora_weights": f"one of {', '.join(map(str, HARMLESS_INITS))}",
}


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which modules an adapter changes, and how strongly."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    target_modules: Annotated[str, Meta(min_length=1)] | ModuleNames
    """A text is a pattern, but for "all-linear": all linear modules but the output layer."""
    rank_pattern: Annotated[dict[ModuleName, Rank], Meta(max_length=MAX_NAMES)] | None = None
    alpha_pattern: Annotated[dict[ModuleName, Alpha], Meta(max_length=MAX_NAMES)] | None = None
    init_lora_weights: bool | str | None = None
    base_model_name_or_path: Any = None
    exclude_modules: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None

    @property
    def tensors_tell_targets(self) -> bool:
        """Whether modules are selected by patterns, which are a stranger's and never run."""
        is_pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        return is_pattern or any(not _is_empty(getattr(self, name)) for name in SELECTING)

    def targets(self, module: str) -> bool:
        """Tell whether the adapter changes this linear module."""
        if isinstance(self.target_modules, str):
            return module.rsplit(".", 1)[-1] != "lm_head"
        return any(suffix in self.target_modules for suffix in _suffixes(module))

    def rank_of(self, module: str) -> int:
        """Return the rank of the module's matrices."""
        return _first_match(self.rank_pattern or {}, module) or self.r

    def scale_of(self, module: str) -> float:
        """Return the factor of the module's update."""
        alpha = _first_match(self.alpha_pattern or {}, module) or self.lora_alpha
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return the settings of a plain LoRA adapter; raises UserError that names what is not one."""
    fields = read_json_object(folder / NAME, max_bytes=MAX_BYTES)
    try:
        config = msgspec.convert(fields, AdapterConfig)
    except msgspec.ValidationError as error:
        raise UserError(_explain(str(error), fields)) from None
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UserError(f"{NAME}: a value is not valid Unicode text") from None
    for key, value in fields.items():
        if key not in {*AdapterConfig.__struct_fields__, *IGNORED} and not (
            _is_empty(value) or (key, value) == ("bias", "none")
        ):
            raise UserError(
                f"{NAME}: {printable(key, 40)} is not supported, found {printable(value, 40)}; "
                f"expected plain LoRA without it; else {AS_BASE_MODEL}"
            )
    if config.init_lora_weights not in HARMLESS_INITS:
        raise UserError(
            f"{NAME}: init_lora_weights {printable(config.init_lora_weights, 40)!r} changed the "
            "base model that this adapter was trained on, expected an adapter converted to plain "
            "LoRA (in PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return config


def _explain(problem: str, fields: dict[str, Any]) -> str:
    """Return a sentence for what msgspec found, such as: Expected `int` >= 1 - at `$.r`."""
    match = re.search(r"(?:\$\.|missing required field `)(\w+)", problem)
    assert match is not None
    name = match[1]
    return f"{NAME}: {name} must be {EXPECTED[name]}, found {printable(fields.get(name), 60)}"


def _suffixes(module: str) -> Iterable[str]:
    """Yield a.b.c, b.c and c for the module a.b.c."""
    parts = module.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _first_match(pattern: dict[str, Any], module: str) -> Any:
    # As PEFT does: the first key in the file's order wins, not the longest.
    return next((value for key, value in pattern.items() if _matches(key, module)), None)


def _matches(key: str, module: str) -> bool:
    """Tell whether the key is the module's name or its end; PEFT's point stands for anything."""
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    return all(k in (".", m) for k, m in zip(key, module[start:], strict=True))


def _is_empty(value: Any) -> bool:
    # 0 is not empty: it can be the number of a layer.
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
