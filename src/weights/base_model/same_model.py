"""Are fine-tuned weights served on the base model that they were trained on?"""

from dataclasses import dataclass
from pathlib import Path

from src.base_models import describe_model
from src.errors import UserError
from src.files.printable import printable
from src.weights.adapter.manifest import Manifest
from src.weights.base_model.base_model import BaseModelFiles
from src.weights.base_model.fingerprint import fingerprint_weights


@dataclass(frozen=True)
class ServedModel:
    """The name and the fingerprint of the base model that is served."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, base_model: BaseModelFiles) -> "ServedModel":
        """Return what is compared of a base model."""
        return cls(base_model.name, fingerprint_weights(base_model.folder))

    @property
    def short_name(self) -> str:
        """The name, of a folder without its place."""
        return printable(Path(self.name).name) if Path(self.name).is_dir() else self.name

    def check(self, manifest: Manifest) -> str | None:
        """Return a warning for weights that name another base model.

        Raises UserError where its weights are others; nothing is known of those without a manifest.
        """
        trained_on = manifest.base_model
        shown = f"{printable(trained_on or 'a base model')!r}"
        if manifest.base_model_fingerprint not in (None, self.fingerprint):
            raise UserError(
                f"the weights were trained on {shown}, whose own weights are not those of "
                f"{_short(self.name)!r}, which is served here; expected the same base model"
            )
        if trained_on is None or _names(trained_on) & _names(self.name):
            return None
        served = f"{_short(self.name)!r} is served here"
        return f"warning: the weights were trained on {shown}, and {served}"


def _names(name: str) -> set[str]:
    return {_short(text).lower() for text in (name, describe_model(name).repository)}


def _short(name: str) -> str:
    return printable(Path(name).name)
